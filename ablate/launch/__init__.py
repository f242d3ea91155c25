"""Launches: the cluster that a file describes is brought up, runs a search space, and is taken down."""
