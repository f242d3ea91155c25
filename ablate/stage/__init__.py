"""One attempt at one stage of a run: what it may use, what it records, its checkpoints, rows and pictures.

The workers of a run and `ablate trial` use this room. It knows neither Ray nor the other stages.
"""
