"""Machines that ssh reaches: what is sent to them, Ray on them, and the driver as a job there."""
