"""Checks of a run before any compute: data, shots, networks, weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

from ablate.datasets import Dataset, load_dataset, require_dataset
from ablate.errors import InputError
from ablate.space import ImagenetSpec, TrialSpec, WeightsSpec

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
    names = dict.fromkeys(name for trial in trials for name, _ in _datasets_of(trial))
    infos = {name: require_dataset(name, data_dir) for name in names}
    for name, info in infos.items():
        for warning in info.warnings[:WARNINGS_SHOWN]:
            warn(f"warning: {warning}")
        if len(info.warnings) > WARNINGS_SHOWN:
            warn(f"warning: {len(info.warnings) - WARNINGS_SHOWN} more; ablate data check {name} lists them")
    if any(trial.precision == "bf16" for trial in trials):
        from ablate.stage.machine import choose_device, slow_bf16
        from ablate.stage.settings import Settings

        if slow := slow_bf16(choose_device(Settings())):
            warn(f"warning: {slow}; --set precision=fp32 makes other trials of the same search space that are faster")
    from ablate.finetune import check_finetune
    from ablate.network.building import check_network
    from ablate.network.imagenet import check_imagenet
    from ablate.network.starting import Start, check_start
    from ablate.network.weights import check_weights
    from ablate.stage.inputs import check_unlabelled, check_whole_groups

    for network, size in dict.fromkeys((trial.network, trial.image_size) for trial in trials):
        check_network(network, size)
    for trial in trials:
        check_finetune(trial, infos[trial.dataset].of(trial.fold).train)
    for trial in trials:
        pretraining = trial.pretraining
        if pretraining is not None:
            source = infos[pretraining.fields.dataset]
            if source.folds is not None and source.name != trial.dataset:
                raise InputError(
                    f"pretrain.dataset must not be divided into folds, unless it is the trial's own; {source.name} has "
                    f"{source.folds} (dataset {trial.dataset}); give a copy of it with splits of another kind"
                )
            sizes = source.of(pretraining.fold)
            check_unlabelled(pretraining, sizes.unlabelled)
            check_whole_groups(pretraining, sizes)
            check_weights(pretraining)
    read = functools.cache(Start.read)
    starts = dict.fromkeys((trial.network, trial.image_size, trial.pretrain) for trial in trials)
    for network, size, start in starts:
        if isinstance(start, ImagenetSpec):
            check_imagenet(network, start.weights, image_size=size)
        elif isinstance(start, WeightsSpec):
            check_start(network, size, start, read(start))


def _datasets_of(trial: TrialSpec) -> Iterator[tuple[str, int | None]]:
    """Yield the data sets of a trial, each with the fold of it that the trial uses."""
    yield trial.dataset, trial.fold
    if trial.pretraining is not None:
        yield trial.pretraining.fields.dataset, trial.pretraining.fold


def prepare(
    trials: Sequence[TrialSpec], data_dir: str | None, say: Callable[[str], None] = lambda text: None
) -> dict[str, tuple[Dataset, ...]]:
    """Decode and cache every data set at every size that some trial uses; return each by name, at one of its sizes.

    Of a data set that is divided into folds there are those that some trial uses, in order; of another there is one.
    `say` is told before each, which may take minutes.
    """
    wanted: dict[str, dict[tuple[int, int | None], None]] = {}
    for trial in trials:
        for name, fold in _datasets_of(trial):
            wanted.setdefault(name, {})[trial.image_size, fold] = None
    loaded = {}
    for name, uses in wanted.items():
        by_fold: dict[int | None, Dataset] = {}
        for size in sorted({size for size, _ in uses}):
            say(f"preparing {name} at {size} x {size} pixels")
            by_fold |= {fold: load_dataset(name, data_dir, size, fold) for other, fold in uses if other == size}
        loaded[name] = tuple(by_fold[fold] for fold in sorted(by_fold, key=lambda fold: fold or 0))
    return loaded
