"""Checks of a run before any compute: data, shots, networks, weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ablate.datasets import Dataset, load_dataset, require_dataset
from ablate.space import ImagenetSpec, Pretrain, TrialSpec, WeightsSpec

WARNINGS_SHOWN = 5
"""Warnings of a data set that are shown before a run; the others are counted."""


def check_trials(
    trials: Sequence[TrialSpec], data_dir: str | None, warn: Callable[[str], None] = lambda text: None
) -> None:
    """Refuse, before any compute, trials that could not run: data, shots, networks, weights.

    `warn` is told the warnings of the data sets' readers.

    Raises:
        InputError: the first thing that is wrong, with its cure.
    """
    names = dict.fromkeys(name for trial in trials for name in _datasets_of(trial))
    infos = {name: require_dataset(name, data_dir) for name in names}
    for name, info in infos.items():
        for warning in info.warnings[:WARNINGS_SHOWN]:
            warn(f"warning: {warning}")
        if len(info.warnings) > WARNINGS_SHOWN:
            warn(f"warning: {len(info.warnings) - WARNINGS_SHOWN} more; ablate data check {name} lists them")
    from ablate.finetune import check_finetune
    from ablate.network.building import check_network
    from ablate.network.imagenet import check_imagenet
    from ablate.network.starting import check_start
    from ablate.network.weights import check_weights
    from ablate.stage.trial import check_unlabelled

    for network, size in dict.fromkeys((trial.network, trial.image_size) for trial in trials):
        check_network(network, size)
    for trial in trials:
        check_finetune(trial, infos[trial.dataset].train)
    for trial in trials:
        if trial.pretraining is not None:
            check_unlabelled(trial.pretraining, infos[trial.pretraining.fields.dataset].unlabelled)
            check_weights(trial.pretraining)
    starts = dict.fromkeys((trial.network, trial.image_size, trial.pretrain) for trial in trials)
    for network, size, start in starts:
        if isinstance(start, ImagenetSpec):
            check_imagenet(network, start.weights, image_size=size)
        elif isinstance(start, WeightsSpec):
            check_start(network, size, start)


def _datasets_of(trial: TrialSpec) -> Iterator[str]:
    yield trial.dataset
    if isinstance(trial.pretrain, Pretrain):
        yield trial.pretrain.dataset


def prepare(trials: Sequence[TrialSpec], data_dir: str | None) -> dict[str, Dataset]:
    """Decode and cache every data set at every size that some trial uses; return one of each name."""
    loaded: dict[str, Dataset] = {}
    for name, size in dict.fromkeys((name, trial.image_size) for trial in trials for name in _datasets_of(trial)):
        loaded[name] = load_dataset(name, data_dir, size)
    return loaded
