"""The answer of a run in sentences: what is best at each number of shots, by how much, and what that does not cover."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ablate.report.analysis import Analysis, Arm, Panel
from ablate.report.conditions import CONDITIONAL, is_tuned
from ablate.report.grouping import Key
from ablate.report.mean_shapes import average_mean_shapes
from ablate.report.metrics import METRICS
from ablate.stats import Comparison
from ablate.words import counted


@dataclass(frozen=True)
class Answer:
    """What one comparison says."""

    title: str  # the data set, and what else tells it apart
    findings: tuple[str, ...]  # a sentence for each number of shots
    limits: tuple[str, ...]  # what the evidence does not cover


def answers(analysis: Analysis) -> Iterator[Answer]:
    """Yield the answer of each panel that has a comparison."""
    for panel in analysis.panels:
        constants = average_mean_shapes(analysis.grouping, panel.group, METRICS["mre"])
        findings = tuple(
            text + _against_mean_shape(panel, column, constants.get(column))
            for column in panel.group.columns
            if (text := _finding(panel, column))
        )
        if findings:
            yield Answer(panel.title, findings, tuple(_limits(panel)))


def _compared(panel: Panel, column: Key) -> list[Arm]:
    """Return the arms at a number of shots, best first: where settings were tuned, with those alone."""
    arms = [arm for arm in panel.column_arms(column) if arm.mre.value is not None]
    tuned = [arm for arm in arms if is_tuned(arm.row)]
    return sorted(tuned or arms, key=lambda arm: arm.mre.value or 0.0)


def _finding(panel: Panel, column: Key) -> str:
    arms = _compared(panel, column)
    if not arms:
        return ""
    best, unit = arms[0], panel.unit
    text = f"{column.label('shots')} shots: {best.label}, {best.mre.value:.2f} {unit}"
    if len(arms) == 1:
        return f"{text}; nothing to compare with."
    other = arms[1]
    pairs = panel.compared.comparisons.get(column, ())
    pair = next((pair for pair in pairs if {pair.a, pair.b} == {best.label, other.label}), None)
    if pair is None:
        return f"{text}; next {other.label}, {other.mre.value:.2f} {unit}, on another network."
    return f"{text}, {_difference(pair, best.label, unit)} {other.label}, {other.mre.value:.2f} {unit}{_verdict(pair)}."


def _against_mean_shape(panel: Panel, column: Key, constant: float | None) -> str:
    best = min((arm.mre.value for arm in _compared(panel, column) if arm.mre.value is not None), default=None)
    if best is None or constant is None or best < constant:
        return ""
    return f" It is no better than the mean shape, {constant:.2f} {panel.unit}, which needs no training."


def _difference(pair: Comparison, best: str, unit: str) -> str:
    """Return how far the best is below the other: `0.75 mm (95 % interval 0.20 to 1.30) below`."""
    found, sign = pair.difference, 1 if pair.b == best else -1
    if found.value is None:
        return "before"
    text = f"{sign * found.value:.2f} {unit}"
    if found.lower is not None and found.upper is not None and found.num_seeds > 1:
        low, high = sorted((sign * found.lower, sign * found.upper))
        text += f" (95 % interval {low:.2f} to {high:.2f})"
    return f"{text} below"


def _verdict(pair: Comparison) -> str:
    if pair.difference.num_seeds < 2:
        return "; one seed, so that nothing is said of other trainings"
    if not pair.tested:
        return "; not tested"
    if pair.differs:
        return f"; they differ (p = {pair.p_holm:.2g} after Holm's correction)"
    return f"; that they differ is not shown (p = {pair.p_holm:.2g} after Holm's correction)"


def _limits(panel: Panel) -> Iterator[str]:
    """Yield what the numbers of a panel do not cover."""
    arms = list(panel.arms.values())
    seeds = [arm.mre.num_seeds for arm in arms]
    few = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    yield f"Other trainings: each number rests on {few} independent training{'s' * (max(seeds) > 1)}."
    if any(arm.single for arm in arms):
        yield f"Other pre-trainings: {_names([arm.label for arm in arms if arm.single])} rest on one."
    networks = len(panel.networks)
    yield (
        "Other networks: all numbers are of one."
        if networks == 1
        else (f"Other networks: there are {networks}, and the network goes with the initialisation.")
    )
    yield f"Other data sets: all test images are of {panel.dataset} ({counted(len(panel.errors.images), 'image')})."
    if panel.tuned_note:
        yield panel.tuned_note
    if any(is_tuned(row) for row in panel.group.rows):
        yield CONDITIONAL


def _names(labels: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(labels))
