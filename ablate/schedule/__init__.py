"""Which stage starts next, what stages cost, what fits a machine, and the simulator. Needs neither torch nor Ray."""
