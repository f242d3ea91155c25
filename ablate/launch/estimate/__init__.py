"""How long a run takes on a cluster that a file describes, and what it costs."""
