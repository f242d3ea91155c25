"""Prints the README's table of what the search spaces `paper` and `recommended` differ in, and why.

Usage: python tests/profiles.py
"""

from collections.abc import Mapping
from typing import Any

from ablate.space import METHODS, TrialSpec, find_grid, flatten, load_grid, trial_fields
from ablate.space.words import spoken

PROFILES = ("paper", "recommended")

NOT_COMPARED = {"shots", "seed", "draw", "dataset", "pretrain_dataset"}
"""Axes of the search spaces, and what follows from them."""

REASONS: Mapping[str, str] = {
    "few_shot": "the first files of a folder are one draw; intervals need several",
    "pretrain_seed": "one pre-training says nothing about another",
    "network_kind": "a tenth of the operations (0.35 against 3.49 TFLOP for a forward pass)",
    "network_width": "of the authors' U-Net",
    "network_channels": "of diffusers' U-Net",
    "network_layers_per_block": "of diffusers' U-Net",
    "network_attention": "of diffusers' U-Net",
    "network_input_range": "noise of mean 0 on images of mean 0: 24.0 % of timesteps leave more signal than noise, "
    "against 12.4 % in [0, 1]",
    "network_input": "weights trained on ImageNet see the input that they were trained on",
    "pretrain_input": "fine-tuning sees what pre-training saw",
    "pretrain_rectify": "the U-Net's decoder takes the map before the ReLU",
    "pretrain_clip_on": "a bound on the sum of 8 groups is an eighth of it on their mean, and acts in most steps",
    "pretrain_epoch_end": "every step counts as many images",
    "pretrain_ema_ramp": "an average from the first step on holds initial weights for hundreds of steps",
    "pretrain_augment_shift": "noise and timesteps are augmentation enough; it costs a sampling of each image",
    "pretrain_augment_rotate": "as shift",
    "pretrain_views": "every image has views of its own, whatever the size of a group",
    "pretrain_momentum_update": "the number of groups in a step does not change the momentum",
    "pretrain_min_crop": "as for every method, so that methods are compared and not crops",
    "pretrain_local_min_crop": "an eighth of min_crop, DINO's own proportion",
    "pretrain_local_max_crop": "min_crop, as DINO's own",
    "pretrain_solarize": "as for every method",
    "pretrain_jitter": "as for every method",
    "pretrain_negatives": "4 images leave 6 negatives, the 32 of a step 62",
    "pretrain_projector_layers": "MoCo v3's own for convolutional encoders",
    "pretrain_predictor_norm": "MoCo v3's own",
    "pretrain_hidden_dim": "SimCLR's own",
    "pretrain_prototypes": "DINO's own",
    "pretrain_head_norm": "DINO's own for convolutional encoders",
    "pretrain_teacher_temperature": "DINO's own; 0.5 is above the student's 0.1, and sharpens nothing",
    "pretrain_center_momentum": "DINO's own",
    "pretrain_snapshot": "DINO's own: the teacher is the better of the two throughout training",
    "finetune_target": "a landmark between two pixels stays there: 11 of a disk's 109 px differ",
    "finetune_augment_normalize": "an image keeps its grey values wherever it is shifted",
}
"""Why `recommended` differs, by field as a column."""


def fields_of(name: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the fields of a profile's trials by data set and method, of the first trial of each."""
    found: dict[tuple[str, str], list[TrialSpec]] = {}
    for trial in load_grid(find_grid(name)).trials:
        found.setdefault((trial.dataset, trial.method), []).append(trial)
    fields = {key: used_fields(trials[0]) for key, trials in found.items()}
    for key, trials in found.items():
        if len({getattr(trial.pretrain, "seed", None) for trial in trials}) > 1:
            fields[key]["pretrain_seed"] = "trial"
    return fields


def used_fields(trial: TrialSpec) -> dict[str, Any]:
    """Return the fields that matter to a trial."""
    network = {f"network_{field}" for field in ("kind", *trial.network.fields)}
    return {
        field: value
        for field, value in flatten(trial).items()
        if field not in NOT_COMPARED and (not field.startswith("network_") or field in network)
    }


def differences() -> dict[tuple[str, str, str], set[str]]:
    """Return field, value in `paper` and value in `recommended` with the methods that differ so."""
    paper, recommended = map(fields_of, PROFILES)
    assert paper.keys() == recommended.keys(), "both profiles have the same data sets and methods"
    found: dict[tuple[str, str, str], set[str]] = {}
    for key, ours in recommended.items():
        for field in dict.fromkeys((*paper[key], *ours)):
            values = [words(field, profile.get(field)) for profile in (paper[key], ours)]
            if values[0] != values[1]:
                found.setdefault((field, *values), set()).add(key[1])
    return found


def words(field: str, value: Any) -> str:
    """Return a value as the table shows it; a dash for a field that is not there."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(spoken(field, value))


def table() -> str:
    """Return the table in Markdown."""
    rows = ["| field | of | `paper` | `recommended` | why |", "|---|---|---|---|---|"]
    methods = {method for methods in differences().values() for method in methods}
    for (field, ours, theirs), which in differences().items():
        of = "all" if which == methods else ", ".join(METHODS[name].label for name in METHODS if name in which)
        path = next(field_of.path for field_of in trial_fields() if field_of.column == field)
        rows.append(f"| `{'.'.join(path)}` | {of} | {ours} | {theirs} | {REASONS[field]} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
