"""The network of a trial: building it, its initial weights, heat maps, metrics, evaluation, counting its operations.

Images are float (B, 1, H, W) in [0, 1]. Pre-training, fine-tuning, stages and prediction use this package, the checks
before a run too, and the costs of stages count networks with it. It knows data sets and search spaces, and nothing of
stages or runs.
"""
