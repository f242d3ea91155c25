"""Clusters on AWS, Google Cloud and Azure, which Ray's own launcher brings up behind closed ports."""
