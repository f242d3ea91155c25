"""ablate: a distributed ablation runner for few-shot landmark detection in X-ray images."""

__version__ = "0.1.0"
