"""From a grid to a report on a cluster: what a cluster file describes is brought up, used, and taken down."""
