"""Which stage starts next, what stages cost, what fits a machine, and the simulator.

`running`, `stage`, `doctor`, `launch` and `cli` call it. It needs no Ray, and torch only to count the operations of a
network that no shipped search space has.
"""
