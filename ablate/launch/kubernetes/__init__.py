"""Runs as RayJobs of KubeRay on a Kubernetes cluster."""
