"""Trials that take about a second, for tests of everything around the training."""

from ablate.space import METHODS, NetworkSpec, TrialSpec

OWN = {
    "mocov3": {"hidden_dim": 16, "projection_dim": 8},
    "mocov2": {"hidden_dim": 16, "projection_dim": 8, "queue": 16},
    "mocov1": {"projection_dim": 8, "queue": 16},
    "simclr": {"hidden_dim": 16, "projection_dim": 8},
    "simclrv2": {"hidden_dim": 16, "projection_dim": 8},
    "dino": {"hidden_dim": 16, "bottleneck_dim": 8, "prototypes": 16, "local_crops": 2},
    "swav": {"hidden_dim": 16, "projection_dim": 8, "prototypes": 6, "queue": 16, "local_crops": 2},
    "byol": {"hidden_dim": 16, "projection_dim": 8},
    "simsiam": {"hidden_dim": 16, "projection_dim": 8, "predictor_dim": 4},
    "barlow_twins": {"hidden_dim": 16, "projection_dim": 8},
}
"""Small projection heads, by method."""

SMALL_NETWORKS = {
    "unet": {"kind": "unet", "channels": (8, 16), "layers_per_block": 1},
    "encoder": {"kind": "encoder", "encoder": "tu-test_resnet"},
    "reference": {"kind": "reference", "width": 4},
    "scn": {"kind": "scn", "channels": (16, 32), "dropout": 0, "spatial_channels": 8, "spatial_kernel": 3},
}
"""The smallest network of a kind, where its row in `NETWORKS` needs other fields than channels."""


def small_network(kind):
    """Return the smallest network of a kind, also of one that a row in `NETWORKS` has just added."""
    return NetworkSpec.model_validate(SMALL_NETWORKS.get(kind, {"kind": kind, "channels": (8, 16)}))


TRAINED = tuple(name for name, method in METHODS.items() if method.code)


def tiny_fields(method="scratch", **fields):
    """Return the fields of a tiny trial on generated radiographs; `pretrain` is merged, the rest replaces."""
    own = {"steps": 6, "batch_size": 4, "accumulate": 1, "lr": 1e-3, **OWN.get(method, {})} if method in TRAINED else {}
    pretrain = {"method": method, **own, **fields.pop("pretrain", {})}
    finetune = {
        "epochs": 2,
        "batch_size": 2,
        "accumulate": 2,
        "lr": 1e-3,
        "loss": "spatial_ce",
        "target": "gaussian",
        "sigma": 1.0,
        **fields.pop("finetune", {}),
    }
    return {
        "dataset": "synthetic",
        "image_size": 16,
        "shots": 3,
        "network": {"kind": "unet", "channels": [8, 16], "layers_per_block": 1, "attention": "none"},
        "evaluate": {"decode": "local_mean"},
        "pretrain": pretrain,
        "finetune": finetune,
        **fields,
    }


def tiny_trial(method="scratch", **fields):
    """Return a tiny trial, see `tiny_fields`."""
    return TrialSpec.model_validate(tiny_fields(method, **fields))
