"""Equal computing: what arms without a pre-training of their own fine-tune longer for what the others spent on theirs.

The arms of a place are the trials that agree in everything but pre-training, fine-tuning and seeds. There, a trial that
pre-trains nothing gets the largest amount that another is charged for its pre-training, in optimizer steps or in
seconds, as further optimizer steps of fine-tuning. What comes out is an ordinary trial with `finetune.steps`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError

from ablate.errors import InputError
from ablate.space.explain import explain
from ablate.space.files import Source
from ablate.space.lengths import Length, num_held_out
from ablate.space.networks import COSTLESS, NetworkSpec
from ablate.space.spec import PositiveNumber, Spec
from ablate.space.trial import Pretraining, TrialSpec

KEY = "equal"
"""The key of a search space."""

FINETUNE = "finetune"
"""The cost of fine-tuning whatever its images and network are, as a method's name is that of its pre-training."""


class Equal(Spec):
    """What is made equal between the arms of a search space."""

    by: Literal["epochs", "steps", "seconds"] = Field(
        "epochs", description="what arms have alike: fine-tuning as it is given, or all optimizer steps, or all seconds"
    )
    pretraining: Literal["whole", "divided"] = Field(
        "whole", description="what a trial is charged: its whole pre-training, or its part of what trials share"
    )
    costs: dict[str, PositiveNumber] | None = Field(None, description="seconds of one optimizer step, see `StepCosts`")

    @classmethod
    def of(cls, space: Mapping[str, Any], source: Source | None = None) -> Equal:
        """Return what a search space says; refuse at its place in `source` what it must not say."""
        value = space.get(KEY, {})
        source = source or Source("search space", space, None)
        try:
            equal = cls.model_validate(value if isinstance(value, dict) else {"by": value})
        except ValidationError as error:
            fields = {name: info.annotation for name, info in cls.model_fields.items()}
            place, message = explain(error.errors(include_url=False)[0], fields)
            if not isinstance(value, dict):
                source.refuse((KEY,), message.replace("by", KEY, 1))
            source.refuse((KEY, *place), message)
        if equal.pretraining != "whole" and equal.by == "epochs":
            source.refuse(
                (KEY, "pretraining"), f"pretraining must be left out where by is epochs; got {equal.pretraining}"
            )
        if equal.costs is not None and equal.by != "seconds":
            source.refuse((KEY, "costs"), f"costs must be left out unless by is seconds; got by {equal.by}")
        return equal


@dataclass(frozen=True)
class StepSeconds:
    """Measured seconds of optimizer steps, on a GPU of a whole one."""

    pretrain: Callable[[Pretraining], float]
    finetune: Callable[[TrialSpec], float]  # one more step; where a share of the shots validates, in both phases


class StepCosts:
    """Seconds of one optimizer step by words: from a search space, or measured and then as they are recorded there.

    Words name the method or `finetune`, the batch, the network and the image size; the first word alone stands for all
    that are not named. Measured seconds are rounded to three digits first, so that what is recorded gives the same.
    """

    def __init__(self, given: Mapping[str, float], measured: StepSeconds | None) -> None:
        self._given, self._measured = given, measured
        self.used: dict[str, float] = {}

    def pretrain(self, pretraining: Pretraining) -> float:
        """Return the seconds of a step of a pre-training."""
        fields = pretraining.fields
        words = f"{fields.method}, batch {fields.batch_size} x {fields.accumulate}, "
        words += _network_words(pretraining.network, pretraining.image_size)
        return self._of(words, lambda measured: measured.pretrain(pretraining))

    def finetune(self, trial: TrialSpec) -> float:
        """Return the seconds of one more step of a trial's fine-tuning."""
        fields, twice = trial.finetune, ", inside_shots" if trial.validation == "inside_shots" else ""
        words = f"{FINETUNE}, {trial.shots} shots of {trial.dataset}{twice}, "
        words += f"batch {fields.batch_size} x {fields.accumulate}, {_network_words(trial.network, trial.image_size)}"
        return self._of(words, lambda measured: measured.finetune(trial))

    def _of(self, words: str, measure: Callable[[StepSeconds], float]) -> float:
        if self._measured is not None:
            if words not in self.used:
                self.used[words] = float(f"{measure(self._measured):.3g}")
            return self.used[words]
        short = words.partition(",")[0]
        for name in (words, short):
            if name in self._given:
                self.used[name] = float(self._given[name])
                return self.used[name]
        given = f" (equal.costs names {', '.join(self._given)})" if self._given else ""
        raise InputError(
            f"equal by seconds needs the seconds of one optimizer step of '{words}'{given}; give "
            f"--costs RUN, a run that measured them, or write them into equal.costs, as these words or as '{short}'"
        )


def _network_words(network: NetworkSpec, image_size: int) -> str:
    fields = (value for name, value in network.fields.items() if name not in COSTLESS)
    values = ("-".join(map(str, value)) if isinstance(value, tuple) else value for value in fields)
    return " ".join(map(str, (network.kind, *values))) + f", {image_size} px"


def equalised(
    trials: Sequence[TrialSpec], equal: Equal, measured: StepSeconds | None
) -> tuple[list[TrialSpec], dict[str, Any]]:
    """Return the trials of a search space with equal computing, and what the search space then says under `equal`.

    Args:
        trials: of the whole search space, because trials share pre-trainings.
        equal: what is made equal.
        measured: measured seconds, in the place of those in `equal.costs`; of use by seconds alone.

    Raises:
        InputError: nothing is pre-trained; the number of steps, or the seconds of one, is not known.
    """
    if equal.by == "epochs":
        return list(trials), {}
    if not any(trial.pretraining for trial in trials):
        raise InputError(f"equal must be epochs where nothing is pre-trained; got {equal.by}; remove it")
    costs = StepCosts(equal.costs or {}, measured)
    charged = _charged_steps(trials, divided=equal.pretraining == "divided")
    largest: dict[object, float] = defaultdict(float)
    for trial, steps in zip(trials, charged, strict=True):
        if trial.pretraining is not None:
            each = costs.pretrain(trial.pretraining) if equal.by == "seconds" else 1.0
            place = _place(trial)
            largest[place] = max(largest[place], steps * each)
    found = []
    for trial in trials:
        amount = 0.0 if trial.pretraining is not None else largest[_place(trial)]
        if equal.by == "seconds":
            further = amount / costs.finetune(trial) if amount else 0.0
        else:
            further = amount / (2 if trial.validation == "inside_shots" else 1)  # each step is done in both phases
        found.append(_longer(trial, int(further)) if further >= 1 else trial)
    said = {"by": equal.by, "pretraining": equal.pretraining}
    return found, said | ({"costs": costs.used} if equal.by == "seconds" else {})


def _place(trial: TrialSpec) -> object:
    """Return all that the arms of one place have in common."""
    apart = {"pretrain", "finetune", "seed", "draw"}
    return tuple((name, getattr(trial, name)) for name in TrialSpec.model_fields if name not in apart)


def _charged_steps(trials: Sequence[TrialSpec], *, divided: bool) -> list[float]:
    """Return the optimizer steps of pre-training that each trial is charged.

    Divided, the steps between two snapshots are shared by the trials that start from the second or from a later one.
    """
    wanted: dict[str, list[int]] = defaultdict(list)
    for trial in trials:
        if trial.pretraining is not None:
            wanted[trial.pretraining.key].append(trial.pretraining.fields.steps)
    return [
        0.0
        if trial.pretraining is None
        else _share(trial.pretraining.fields.steps, wanted[trial.pretraining.key])
        if divided
        else float(trial.pretraining.fields.steps)
        for trial in trials
    ]


def _share(steps: int, wanted: Iterable[int]) -> float:
    """Return the part of `steps` that one of several takes who share a pre-training and want so many steps of it."""
    wanted, before, share = sorted(wanted), 0, 0.0
    for end in sorted(set(wanted)):
        if end <= steps:
            share += (end - before) / sum(other >= end for other in wanted)
            before = end
    return share


def _longer(trial: TrialSpec, further: int) -> TrialSpec:
    """Return a trial whose fine-tuning is longer by some optimizer steps."""
    steps = trial.finetune.steps
    if steps is None:
        if trial.shots == "all":
            raise InputError(
                "equal by steps or seconds needs finetune.steps where shots are all: the number of images, and so that "
                f"of the steps of an epoch, is not known; got epochs {trial.finetune.epochs} (dataset {trial.dataset})"
            )
        steps = Length.of(trial.finetune, trial.shots - num_held_out(trial, trial.shots)).total
    data = trial.model_dump()
    data["finetune"] |= {"epochs": None, "steps": steps + further}
    return TrialSpec.model_validate(data)
