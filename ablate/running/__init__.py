"""A run: its driver and checks, its display, stopping and watching it, and Ray Tune, which spreads its stages.

The command line, the Python functions and launches use this room; only `ray_tune` in it imports Ray.
"""
