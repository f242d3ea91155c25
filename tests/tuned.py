"""A tiny search space that is tuned, and what tests ask of its runs."""

import yaml
from tiny import tiny_fields

from ablate.space import find_grid, load_grid

SEARCH = {
    "finetune.lr": {"log": [1e-4, 1e-1]},
    "finetune.epochs": [2, 4],
    "pretrain.steps": {"choices": [4, 6], "only": ["ddpm"]},
}


def tune_section(**changes):
    """Return a section `tune`; a change to None leaves a key out."""
    section = {
        "budget": 4,
        "round": 2,
        "arm": ["pretrain.method"],
        "per": ["dataset", "shots"],
        "seeds": [100, 101],
        "search": SEARCH,
        "halve": [0.5],
        **changes,
    }
    return {name: value for name, value in section.items() if value is not None}


def tuned_space(*, grid=None, tune=None, **base):
    """Return a search space of ddpm and scratch at 3 and 4 shots."""
    fields = {name: value for name, value in tiny_fields("ddpm", **base).items() if name not in ("shots", "pretrain")}
    own = {name: value for name, value in tiny_fields("ddpm")["pretrain"].items() if name != "method"}
    methods = [value["method"] for value in (grid or {}).get("pretrain", [{"method": "ddpm"}])]
    return {
        "name": "tuned-tiny",
        "base": {**fields, "few_shot": "random", **({"pretrain": own} if "ddpm" in methods else {})},
        "blocks": [
            {
                "grid": {
                    "shots": [3, 4],
                    "seed": [0, 1],
                    "pretrain": [{"method": "ddpm"}, {"method": "scratch"}],
                    **(grid or {}),
                }
            }
        ],
        "tune": tune_section() if tune is None else tune,
    }


def write_space(path, **changes):
    """Write a search space, see `tuned_space`; return its path."""
    path.write_text(yaml.safe_dump(tuned_space(**changes), sort_keys=False))
    return path


def load_space(path, **changes):
    """Write a search space and expand it."""
    return load_grid(find_grid(str(write_space(path, **changes))))
