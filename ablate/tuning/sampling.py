"""The configurations of a round, asked of Optuna's samplers.

A round is asked of a study in memory that is rebuilt from the rounds before it, with a sampler seeded by the place, the
round and the repeat: the same for every arm, so that equal arms get equal configurations.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ablate.space import SearchSpec, Settings, Study
from ablate.tuning.configuration import Configuration

if TYPE_CHECKING:
    import optuna


def ask(study: Study, configurations: Sequence[Configuration], count: int) -> list[Settings]:
    """Return the settings of the next round.

    Args:
        study: what is tuned.
        configurations: of the rounds before, all ended; none for the first round.
        count: how many.
    """
    import optuna

    place = configurations[-1].round + 1 if configurations else 0
    with quiet():
        distributions = {name: distribution(found) for name, found in study.search.items()}
        found = optuna.create_study(sampler=_sampler(study, place))
        if study.spec.sampler == "qmc":
            # One sequence for all rounds: the first trial tells its space, and what earlier rounds took is passed over.
            found.add_trial(frozen(study, Configuration.of(study, 0, study.defaults), value=0.0))
            taken = max(0, place * study.spec.round - 1)
        else:
            found.add_trials([frozen(study, configuration) for configuration in configurations])
            taken = 0
        asked = [found.ask(distributions) for _ in range(taken + count)][taken:]
    return [{name: _plain(study.search[name], trial.params[name]) for name in study.search} for trial in asked]


def _sampler(study: Study, place: int) -> optuna.samplers.BaseSampler:
    import optuna

    spec = study.spec
    if spec.sampler == "qmc":
        seed = seed_of(study.place, study.repeat)
        return optuna.samplers.QMCSampler(scramble=True, seed=seed, warn_independent_sampling=False)
    seed = seed_of(study.place, study.repeat, place)
    if spec.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(n_startup_trials=spec.round, multivariate=True, constant_liar=True, seed=seed)


def seed_of(*parts: object) -> int:
    """Return a number below 2 ** 32 that depends on the parts alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


def distribution(search: SearchSpec) -> optuna.distributions.BaseDistribution:
    """Return the values of a field as Optuna knows them; choices that are lists are known by their text."""
    from optuna import distributions

    if search.choices is not None:
        return distributions.CategoricalDistribution([_known(choice) for choice in search.choices])
    low, high = search.bounds
    if search.whole is not None:
        return distributions.IntDistribution(int(low), int(high))
    return distributions.FloatDistribution(low, high, log=search.log is not None)


def _known(choice: Any) -> Any:
    return str(choice) if isinstance(choice, (list, tuple)) else choice


def _plain(search: SearchSpec, value: Any) -> Any:
    if search.choices is None:
        return value
    return next(choice for choice in search.choices if _known(choice) == value)


def frozen(study: Study, configuration: Configuration, value: float | None = None) -> optuna.trial.FrozenTrial:
    """Return an ended configuration as Optuna knows it.

    One that was stopped is pruned, with its value at the rung; one that failed is pruned without any, which samplers
    hold to be worse than all others.
    """
    import optuna

    value = configuration.value if value is None else value
    whole = configuration.state == "finished" or configuration.state is None
    rungs = {} if value is None or whole else {(configuration.halted_at or 0) + 1: value}
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.COMPLETE if whole else optuna.trial.TrialState.PRUNED,
        value=value if whole else None,
        params=known_settings(configuration),
        distributions={name: distribution(found) for name, found in study.search.items()},
        intermediate_values=rungs,
    )


def known_settings(configuration: Configuration) -> dict[str, Any]:
    """Return the settings of a configuration as Optuna knows them."""
    return {name: _known(found) for name, found in configuration.settings.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna from telling of studies and trials that nobody but this module sees."""
    import optuna

    logger = logging.getLogger("optuna")
    level = logger.level
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        logger.setLevel(level)


def stand_in(study: Study, configurations: Sequence[Configuration], count: int) -> list[Settings]:
    """Return settings that a round might have, without Optuna: for predictions of time, where no result is known."""
    start = len(configurations)
    return [
        {name: found.nth(seed_of(study.place, number, name) / 2**32) for name, found in study.search.items()}
        for number in range(start, start + count)
    ]


def as_json(settings: Settings) -> Mapping[str, Any]:
    """Return settings as JSON values."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
