"""The seconds that stages take, by default and by what an earlier run measured.

The defaults divide floating-point operations by a sustained rate, so they are right within a factor of a few and, which
matters more for priorities, in their proportions. A measured run corrects them: a stage costs the default
times the median ratio of measured to default seconds among the most similar stages that were measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from ablate import tables
from ablate.errors import InputError
from ablate.schedule.flops import forward_flops
from ablate.schedule.stages import Costs
from ablate.space import Contrasted, Length, MultiCrop, Pretraining, StepSeconds, TrialSpec, WholeNetwork, num_held_out
from ablate.store import Store

# --- the facts behind the defaults ------------------------------------------------------------------

GPU_FLOPS: Mapping[str, float] = {"unet": 30e12, "encoder": 10e12}
"""Operations per second that training sustains on a modern GPU (A100 class) in TF32, torch's default for convolutions.

A fifth of the peak of 156e12 for the U-Net's dense 3 x 3 convolutions on a handful of images; a third of that for
encoders such as DenseNet, whose many narrow layers and batch norms are bound by memory.
"""

GPU_PASS_SECONDS: Mapping[str, float] = {"unet": 0.015, "encoder": 0.040}
"""Seconds that the smallest forward and backward pass takes: launching its 1 500 to 4 000 kernels at 10 us each."""

CPU_FLOPS: Mapping[str, float] = {"unet": 50e9, "encoder": 35e9}
"""Operations per second of training on one core of a server CPU with AVX-512 in float32; measured: 52e9 for a
16-32-64 channel U-Net at 64 x 64, 53e9 for ResNet-18, 32e9 for DenseNet-161."""

CPU_PASS_SECONDS: Mapping[str, float] = {"unet": 0.005, "encoder": 0.015}
"""As GPU_PASS_SECONDS, at some 3 us for each operation that torch dispatches."""

TRAIN, INFER = 3, 1
"""Operations of a pass with gradients and of one without, in forward passes: a backward pass has twice as many."""

VIEWS: Mapping[str, tuple[float, float]] = {
    "simclr": (2, 0),
    "simclrv2": (2, 0),
    "barlow_twins": (2, 0),
    "simsiam": (2, 0),
    "mocov1": (1, 1),
    "mocov2": (1, 1),
    "mocov3": (2, 2),
    "byol": (2, 2),
    "dino": (2, 2),  # and the local crops, see LOCAL_AREA
    "swav": (2, 0),  # and the local crops
}
"""Encoder passes for one image and step, with and without gradients; other self-supervised methods as `mocov3`."""

LOCAL_AREA = (96 / 224) ** 2
"""Pixels of a local crop, as a share of a global one's (Caron et al. 2020 and 2021)."""

NUM_IMAGES: Mapping[str, tuple[int, int, int]] = {
    "chest": (195, 34, 50),
    "cephalo": (130, 20, 250),
    "hand": (550, 59, 300),
    "synthetic": (130, 20, 100),
}
"""Images for training, validation and testing (paper, section 4); a user's data set counts as `cephalo`."""

STAGE_SECONDS = 2.0
"""Seconds of a stage that train nothing: starting, loading data and weights, writing tables."""


# --- default costs ---------------------------------------------------------------------------------


class Work(NamedTuple):
    """What a device has to do."""

    flops: float
    passes: float  # forward passes, whatever their number of images


def work_seconds(work: Work, kind: str, gpus: float) -> float:
    """Return the seconds of work of a kind of network on a share of a GPU, or on one CPU core if `gpus` is 0.

    A share slows the arithmetic down in proportion, as where its neighbours are busy too, but not the launching of
    kernels; a second GPU does not help, for no stage uses two.
    """
    kind = kind if kind in GPU_FLOPS else "unet"  # a kind without figures of its own, until a run has measured it
    if gpus == 0:
        return work.flops / CPU_FLOPS[kind] + work.passes * CPU_PASS_SECONDS[kind]
    return work.flops / (GPU_FLOPS[kind] * min(gpus, 1.0)) + work.passes * GPU_PASS_SECONDS[kind]


def step_work(pretraining: Pretraining) -> Work:
    """Return what one optimizer step of a pre-training has to do; raise `InputError` for an impossible network."""
    fields = pretraining.fields
    encoder, whole = forward_flops(pretraining.network, pretraining.image_size)
    if isinstance(fields, WholeNetwork):
        flops, views = float(whole * TRAIN), 1.0
    else:
        trained, followed = VIEWS.get(fields.method, VIEWS["mocov3"])
        if isinstance(fields, MultiCrop):
            trained += fields.local_crops * LOCAL_AREA
        if isinstance(fields, Contrasted) and fields.negatives == "step" and fields.accumulate > 1:
            followed += trained  # passes are made twice, at first without a graph
        flops, views = encoder * (TRAIN * trained + INFER * followed), trained + followed
    return Work(flops * fields.batch_size * fields.accumulate, views * fields.accumulate)


class Amount(NamedTuple):
    """What a fine-tuning does, if nothing ends it early, on data sets as `NUM_IMAGES` has them."""

    lengths: tuple[Length, ...]  # of its phases: a second one where a share of the shots validates
    validations: int
    judged: int  # images of one validation
    test: int  # images

    @classmethod
    def of(cls, trial: TrialSpec) -> Amount:
        """Return what the fine-tuning and the evaluation of a trial are."""
        train, val, test = NUM_IMAGES.get(trial.dataset, NUM_IMAGES["cephalo"])
        shots = train if trial.shots == "all" else trial.shots
        held_out = num_held_out(trial, shots)
        first = Length.of(trial.finetune, shots - held_out)
        judged = {"full": val, "inside_shots": held_out, "none": 0}[trial.validation]
        lengths = (first, replace(first, num_images=shots)) if held_out else (first,)
        return cls(lengths, first.num_validations if judged else 0, judged, test)


def default_costs(*, gpus_pretrain: float = 1.0, gpus_finetune: float = 0.25) -> Costs:
    """Return costs for stages of which nothing was measured.

    Fine-tuning counts with all its epochs or steps, though it may stop early, and with as many again on all shots where
    a share of them validates. The time to decode the heatmaps of validation and test images is left out. The returned
    functions raise `InputError` for a network that cannot be built.

    Args:
        gpus_pretrain: GPUs that a pre-training holds; 0 for one CPU core.
        gpus_finetune: GPUs that a fine-tuning holds; 0 for one CPU core.
    """

    def pretrain_step(pretraining: Pretraining) -> float:
        return work_seconds(step_work(pretraining), pretraining.network.kind, gpus_pretrain)

    def finetune(trial: TrialSpec) -> float:
        amount = Amount.of(trial)
        trained, passes = 0.0, 0.0
        for length in amount.lengths:
            epochs = length.total / length.num_windows
            trained += epochs * length.num_images
            passes += epochs * math.ceil(length.num_images / trial.finetune.batch_size)
        _, whole = forward_flops(trial.network, trial.image_size)
        flops = whole * (TRAIN * trained + INFER * (amount.validations * amount.judged + amount.test))
        return STAGE_SECONDS + work_seconds(Work(flops, passes), trial.network.kind, gpus_finetune)

    return Costs(pretrain_step, finetune)


class Expected(Protocol):
    """Returns the costs of stages that hold shares of a GPU, or none."""

    def __call__(self, *, gpus_pretrain: float, gpus_finetune: float) -> Costs:
        """Return them."""
        ...


# --- measuring --------------------------------------------------------------------------------------

_Level = tuple[object, ...]


class Ratios:
    """Ratios of measured to expected seconds, in groups of stages from the most to the least similar."""

    def __init__(self) -> None:
        self._found: dict[_Level, list[float]] = {}
        self._medians: dict[_Level, float] = {}

    def __len__(self) -> int:
        return len(self._found.get((), ()))

    def add_pretraining(self, pretraining: Pretraining, ratio: float) -> None:
        """Note a measured pre-training."""
        self._add(_pretrain_levels(pretraining), ratio)

    def add_finetuning(self, trial: TrialSpec, ratio: float) -> None:
        """Note a measured fine-tuning."""
        self._add(_finetune_levels(trial), ratio)

    def scale(self, expected: Costs) -> Costs:
        """Return costs that are `expected`, times the median ratio among the most similar stages that were measured."""
        return Costs(
            pretrain_step=lambda pretraining: (
                expected.pretrain_step(pretraining) * self._of(_pretrain_levels(pretraining))
            ),
            finetune=lambda trial: expected.finetune(trial) * self._of(_finetune_levels(trial)),
            measured=expected.measured or len(self) > 0,
        )

    def _add(self, levels: Sequence[_Level], ratio: float) -> None:
        for level in levels:
            self._found.setdefault(level, []).append(ratio)

    def _of(self, levels: Sequence[_Level]) -> float:
        """Return the median of the first level that was measured; 1 if none was."""
        for level in levels:
            if level in self._found:
                if level not in self._medians:
                    self._medians[level] = statistics.median(self._found[level])
                return self._medians[level]
        return 1.0


def _pretrain_levels(pretraining: Pretraining) -> list[_Level]:
    fields, network = pretraining.fields, pretraining.network
    how = (fields.batch_size, fields.accumulate, pretraining.precision)
    exact = (fields.method, network, pretraining.image_size, *how)
    # the last three: any method on this kind of network, any pre-training, any stage
    return [
        ("pretrain", *exact),
        ("pretrain", fields.method, network.kind),
        ("pretrain", network.kind),
        ("pretrain",),
        (),
    ]


def _finetune_levels(trial: TrialSpec) -> list[_Level]:
    data = (trial.dataset, trial.shots, trial.validation)
    exact = (*data, trial.network, trial.image_size, trial.method, trial.finetune, trial.precision)
    # then: other shots of the data set, other data sets, other methods, any fine-tuning, any stage
    return [
        ("finetune", *exact),
        ("finetune", trial.dataset, trial.network, trial.image_size, trial.method),
        ("finetune", trial.method, trial.network.kind),
        ("finetune", trial.network.kind),
        ("finetune",),
        (),
    ]


def measured_costs(
    store: Store, *, gpus_pretrain: float = 1.0, gpus_finetune: float = 0.25, expected: Expected = default_costs
) -> Costs | None:
    """Return costs by the seconds of the run in `store`; None if it finished no stage on this kind of device.

    They come from the attempts in the table `stages` that finished, with the shares of a GPU that they held, of trials
    whose row is in `trials`. A pre-training counts by its seconds per step, a fine-tuning only if one attempt did all
    of it. For other shares, and for stages unlike any that was measured, what is expected is scaled by the median ratio
    of measured to expected among the most similar stages: same method, network, image size and batch (or data set,
    shots, method, network and fine-tuning), then the same method on this kind of network, the same kind of network, all
    of them.

    Args:
        store: of an earlier run, or of the one that goes on.
        gpus_pretrain: GPUs that a pre-training will hold; 0 for a CPU.
        gpus_finetune: GPUs that a fine-tuning will hold; 0 for a CPU.
        expected: returns costs for shares of a GPU, such as those that a bench measured.
    """
    ratios = Ratios()
    trials = _trials_of(store)
    pretrainings = {
        trial.pretrain_key: trial.pretraining for trial, _ in trials.values() if trial.pretraining is not None
    }
    columns = ["kind", "pretrain_key", "trial_id", "from_step", "to_step", "seconds", "gpus"]
    for row in tables.read_table(store, "stages", columns, [("outcome", "==", "finished")]).to_pylist():
        kind, gpus, seconds = row["kind"], float(row["gpus"] or 0.0), float(row["seconds"] or 0.0)
        wanted = gpus_pretrain if kind == "pretrain" else gpus_finetune
        if (gpus > 0) != (wanted > 0):
            continue  # a CPU says nothing about a GPU
        usual = expected(gpus_pretrain=gpus, gpus_finetune=gpus)
        if kind == "pretrain":
            pretraining, steps = pretrainings.get(row["pretrain_key"]), (row["to_step"] or 0) - (row["from_step"] or 0)
            if pretraining is not None and steps > 0 and seconds > 0:
                ratio = seconds / steps / usual.pretrain_step(pretraining)
                ratios.add_pretraining(pretraining, ratio)
        elif row["trial_id"] in trials:
            trial, times = trials[row["trial_id"]]
            if kind == "trial":  # its seconds are those of the pre-training too
                seconds = float(times["finetune_seconds"] or 0.0) + float(times["evaluate_seconds"] or 0.0)
                spent = float(times["pretrain_seconds"] or 0.0)
                if trial.pretraining is not None and spent > 0:
                    steps = trial.pretraining.fields.steps
                    ratio = spent / steps / usual.pretrain_step(trial.pretraining)
                    ratios.add_pretraining(trial.pretraining, ratio)
            elif row["from_step"]:
                continue  # an earlier attempt did a part
            if seconds > 0:
                ratios.add_finetuning(trial, seconds / usual.finetune(trial))
    if not len(ratios):
        return None
    return ratios.scale(expected(gpus_pretrain=gpus_pretrain, gpus_finetune=gpus_finetune))


def costs_for(store: Store, *, gpus_pretrain: float = 1.0, gpus_finetune: float = 0.25) -> Costs:
    """Return the costs that the run in `store` has measured so far, the defaults if it has measured none."""
    found = measured_costs(store, gpus_pretrain=gpus_pretrain, gpus_finetune=gpus_finetune)
    return found or default_costs(gpus_pretrain=gpus_pretrain, gpus_finetune=gpus_finetune)


def require_measured(store: Store, *, gpus_pretrain: float, gpus_finetune: float) -> Costs:
    """Return the costs measured by the run in `store`; raise `InputError` if it has measured none that fit."""
    costs = measured_costs(store, gpus_pretrain=gpus_pretrain, gpus_finetune=gpus_finetune)
    if costs is None:
        where = "on a GPU" if gpus_pretrain > 0 else "without a GPU"
        raise InputError(
            f"--costs must be a run with finished stages {where}; {store.label} has none in tables/stages; "
            "leave --costs out to plan with default times"
        )
    return costs


_MANY_STEPS = 10_000
"""Optimizer steps by which a fine-tuning is made longer to find what one more costs: validations stay as many."""


def step_seconds(costs: Costs) -> StepSeconds:
    """Return the seconds of one optimizer step of pre-trainings and of fine-tunings, by the costs of whole stages."""

    def finetune(trial: TrialSpec) -> float:
        data = trial.model_dump()
        short, long = (
            TrialSpec.model_validate({**data, "finetune": {**data["finetune"], "epochs": None, "steps": steps}})
            for steps in (_MANY_STEPS, 2 * _MANY_STEPS)
        )
        return (costs.finetune(long) - costs.finetune(short)) / _MANY_STEPS

    return StepSeconds(costs.pretrain_step, finetune)


def measured_steps(store: Store) -> StepSeconds:
    """Return the seconds of optimizer steps by the stages of a run: of a whole GPU, or where it used none on a CPU.

    Raises:
        InputError: the run has finished no stage.
    """
    for gpus in (1.0, 0.0):
        costs = measured_costs(store, gpus_pretrain=gpus, gpus_finetune=gpus)
        if costs is not None:
            return step_seconds(costs)
    raise InputError(
        f"--costs must be a run with finished stages; {store.label} has none in tables/stages; write the seconds of "
        "optimizer steps into equal.costs of the search space instead"
    )


# --- trials from their rows -------------------------------------------------------------------------

_TIMES = ("pretrain_seconds", "finetune_seconds", "evaluate_seconds")


def _trials_of(store: Store) -> dict[str, tuple[TrialSpec, Mapping[str, Any]]]:
    """Return every finished trial of a run by its id, with its row."""
    table = tables.read_table(store, "trials", filters=[("status", "==", "finished")])
    return {
        row["trial_id"]: (tables.trial_of_row(row), {name: row[name] for name in _TIMES}) for row in table.to_pylist()
    }
