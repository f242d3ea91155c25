"""The network of a trial: building it, the weights it starts from, heat maps, metrics and evaluation.

Images are float (B, 1, H, W) in [0, 1]. Pre-training, fine-tuning and prediction use this room; it knows data sets and
search spaces, and nothing of stages or runs.
"""
