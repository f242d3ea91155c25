"""What the tuning of a run chose, what it spent, and whether the ranking of arms depends on the budget."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ablate.report.analysis import Analysis
from ablate.report.chart_kinds import Chart, Line, LineChart
from ablate.report.conditions import CONDITIONAL
from ablate.report.grouping import INITIALISATION, TRANSFER, field_label, order_of, value_label
from ablate.report.metrics import METRICS
from ablate.report.render import Cell, Table, slug
from ablate.report.roles import tune_spec
from ablate.report.run_data import RunData
from ablate.report.ticks import HOUR, time_text
from ablate.stats import best_so_far, expected_best


@dataclass(frozen=True)
class Tuned:
    """The tuning of one arm at one place."""

    arm: str  # as in the table `tuning`
    place: str
    repeat: int
    rows: pd.DataFrame  # its configurations within the budget, by number
    pretrain_hours: float  # of all pre-trainings that its tuning trials start from

    @property
    def label(self) -> str:
        """The arm for a reader: `DDPM`, or its fields."""
        parts = dict(part.split("=", 1) for part in self.arm.split(",") if "=" in part)
        return ", ".join(
            value_label(name, value) if name in (INITIALISATION, TRANSFER) else f"{field_label(name)} {value}"
            for name, value in parts.items()
            if (name, value) != (TRANSFER, "network")
        )

    @property
    def method(self) -> str:
        """The initialisation, which decides a line's colour."""
        parts = dict(part.split("=", 1) for part in self.arm.split(",") if "=" in part)
        return parts.get(INITIALISATION, self.arm)

    @property
    def values_N(self) -> np.ndarray:  # noqa: N802 - the shape suffix
        """Validation errors of configurations that were judged to their end, by number; NaN for the others."""
        finished = (self.rows["state"] == "finished").to_numpy()
        values: np.ndarray = np.where(finished, self.rows["val_mre"].to_numpy(np.float64), np.nan)
        return values

    @property
    def hours(self) -> float:
        """Hours of fine-tuning and pre-training behind the choice."""
        return float(self.rows["finetune_gpu_hours"].fillna(0.0).sum()) + self.pretrain_hours

    def best_within(self, hours: float) -> float:
        """Return the least value of the first configurations that take no more than `hours` together; NaN if none."""
        spent = self.pretrain_hours + self.rows["finetune_gpu_hours"].fillna(0.0).cumsum().to_numpy(np.float64)
        reached = best_so_far(self.values_N)[spent <= hours * (1 + 1e-9)]
        return float(reached[-1]) if len(reached) else math.nan


def tunings(run: RunData) -> list[Tuned]:
    """Return the tunings of a run, by arm and place, those that the run's `run.yaml` asks for."""
    spec = tune_spec(run.described)
    if not spec or not len(run.tuning):
        return []
    budget = int(spec["budget"])
    attempts = run.stages[run.stages["kind"] == "tune"]
    keys = dict(zip(attempts["trial_id"], attempts["pretrain_key"], strict=True))
    before = run.stages[run.stages["kind"] == "pretrain"]
    seconds = (before["seconds"] * before["gpus"].where(before["gpus"] > 0, 1.0)).groupby(before["pretrain_key"]).sum()
    found = []
    for (arm, place, repeat), rows in run.tuning.groupby(["arm", "place", "repeat"], sort=False):
        used = rows[rows["number"] < budget].sort_values("number", ignore_index=True)
        own = {keys.get(trial_id) for ids in used["trial_ids"] for trial_id in ids}
        hours = math.fsum(float(seconds.get(key, 0.0)) for key in own if isinstance(key, str)) / HOUR
        found.append(Tuned(str(arm), str(place), int(str(repeat)), used, hours))
    return sorted(found, key=lambda tuned: (_order(tuned.place), _order(tuned.arm), tuned.repeat))


def _order(text: str) -> tuple[object, ...]:
    parts = (part.partition("=") for part in text.split(","))
    return tuple(order_of(name, int(value) if value.isdigit() else value) for name, _, value in parts)


def _place_text(place: str) -> str:
    parts = [part.split("=", 1) for part in place.split(",") if "=" in part]
    return ", ".join(f"{value} shots" if name == "shots" else value if name == "dataset" else f"{name} {value}"
                     for name, value in parts) or "everywhere"  # fmt: skip


def _named(found: Tuned, repeats: int) -> str:
    return f"{found.label} (repeat {found.repeat})" if repeats > 1 else found.label


def tuning_tables(analysis: Analysis) -> Iterator[Table]:
    """Yield the chosen settings of each arm and place, and what the tuning spent."""
    found, spec = tunings(analysis.run), tune_spec(analysis.run.described)
    if not found:
        return
    unit = _unit(analysis.run)
    repeats = max(tuned.repeat for tuned in found) + 1
    yield _chosen_table(found, spec, unit, repeats)
    yield _budget_table(found, spec, unit, repeats)


def _chosen_table(found: Sequence[Tuned], spec: Mapping[str, Any], unit: str, repeats: int) -> Table:
    names = list(dict.fromkeys(name for tuned in found for row in tuned.rows["fields"] for name in json.loads(row)))
    partly = [name for name in names if not all(name in json.loads(tuned.rows["fields"].iloc[0]) for tuned in found)]
    rows, records = [], []
    for tuned in found:
        values = [json.loads(text) for text in tuned.rows["fields"]]
        chosen = tuned.rows.index[tuned.rows["chosen"]]
        number = int(chosen[0]) if len(chosen) else None
        cells = [Cell(_named(tuned, repeats), tuned.label), Cell(_place_text(tuned.place), tuned.place)]
        record: dict[str, object] = {"arm": tuned.arm, "place": tuned.place, "repeat": tuned.repeat}
        for name in names:
            if name not in values[0]:
                cells.append(Cell("–", None))
                continue
            before, after = values[0][name], None if number is None else values[number][name]
            cells.append(Cell(_setting(before, after), after if isinstance(after, (int, float)) else str(after)))
            record |= {f"default {name}": before, f"chosen {name}": after}
        default, best = tuned.values_N[0], math.nan if number is None else tuned.values_N[number]
        cells += [_value_cell(default), _value_cell(best), Cell("–" if number is None else str(number), number)]
        rows.append(tuple(cells))
        records.append(record | {"val_mre_default": _known(default), "val_mre": _known(best), "number": number})
    marked = [f"{name} *" if name in partly else name for name in names]
    notes = [CONDITIONAL]
    notes += ["* a field that only some arms have."] if partly else []
    yield_units = f" ({unit})" if unit else ""
    return Table(
        "tuning-chosen",
        f"Settings by arm and place: default → chosen, out of {spec['budget']} configurations each, by the MRE"
        f"{yield_units} on the validation images, mean over {len(spec['seeds'])} tuning seeds.",
        ("arm", "at", *marked, "validation, default", "validation, chosen", "number"),
        tuple(rows),
        tuple(records),
        tuple(notes),
        text_columns=2 + len(names),
    )


def _setting(before: object, after: object) -> str:
    text = _value_text(before)
    return text if after is None or after == before else f"{text} → {_value_text(after)}"


def _value_text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _value_cell(value: float) -> Cell:
    return Cell(METRICS["val_mre"].text(value), value) if math.isfinite(value) else Cell("–", None)


def _budget_table(found: Sequence[Tuned], spec: Mapping[str, Any], unit: str, repeats: int) -> Table:
    least = {place: min(tuned.hours for tuned in found if tuned.place == place) for place in {t.place for t in found}}
    rows, records = [], []
    for tuned in found:
        states = tuned.rows["state"].value_counts()
        counts = {name: int(states.get(name, 0)) for name in ("finished", "stopped", "failed")}
        opened = len(tuned.rows) - sum(counts.values())
        trials = sum(len(ids) for ids in tuned.rows["trial_ids"])
        hours, equal = float(tuned.rows["finetune_gpu_hours"].fillna(0.0).sum()), tuned.best_within(least[tuned.place])
        rows.append((
            Cell(_named(tuned, repeats), tuned.label), Cell(_place_text(tuned.place), tuned.place),
            *(Cell(str(counts[name]), counts[name]) for name in counts), Cell(str(trials), trials),
            Cell(time_text(HOUR * hours), hours), Cell(time_text(HOUR * tuned.pretrain_hours), tuned.pretrain_hours),
            _value_cell(equal),
        ))  # fmt: skip
        records.append({
            "arm": tuned.arm, "place": tuned.place, "repeat": tuned.repeat, **counts, "open": opened,
            "tuning_trials": trials, "finetune_gpu_hours": hours, "pretrain_gpu_hours": tuned.pretrain_hours,
            "equal_gpu_hours": least[tuned.place], "val_mre_at_equal_gpu_hours": _known(equal),
        })  # fmt: skip
    halve = [f"{100 * float(share):g} %" for share in spec.get("halve") or ()]
    stopped = f" After {', '.join(halve)} of the optimizer steps the worse half of a round stopped." if halve else ""
    return Table(
        "tuning-budget",
        f"Budget by arm and place: configurations that were judged to their end, stopped and failed, and the time of "
        f"their trials; last: the best validation MRE{f' ({unit})' if unit else ''} at equal time, that of the arm "
        "that took least.",
        ("arm", "at", "finished", "stopped", "failed", "trials", "fine-tuning", "pre-training", "at equal time"),
        tuple(rows),
        tuple(records),
        (
            f"Sampler: {spec.get('sampler', 'tpe')}, {spec['budget']} configurations in rounds of {spec['round']}."
            f"{stopped} Times are GPU time, on a CPU that of a slot; pre-trainings count once for each arm, in full. "
            "–: no configuration had ended by then.",
        ),
        text_columns=2,
    )


def _unit(run: RunData) -> str:
    units = sorted({str(unit) for unit in run.trials["unit"].dropna()})
    return units[0] if len(units) == 1 else ""


# --- figures ----------------------------------------------------------------------------------------


def tuning_charts(analysis: Analysis) -> Iterator[Chart]:
    """Yield the best value so far against the number of configurations, and against the time spent.

    For `random` without halving there is also the expected best of n configurations, the default left out.
    """
    found, spec = tunings(analysis.run), tune_spec(analysis.run.described)
    if not found:
        return
    unit, repeats = _unit(analysis.run), max(tuned.repeat for tuned in found) + 1
    label = f"best validation MRE{f' ({unit})' if unit else ''}"
    random = spec.get("sampler") == "random" and not spec.get("halve")
    for place in dict.fromkeys(tuned.place for tuned in found):
        here = [tuned for tuned in found if tuned.place == place and np.isfinite(tuned.values_N).any()]
        if not here:
            continue
        where = _place_text(place)
        against = {"configurations": _by_number, "hours": _by_hours} | ({"draws": _by_draws} if random else {})
        for name, points in against.items():
            lines, of_method = [], Counter[str]()
            for tuned in here:
                x, y = points(tuned)
                hover = tuple(f"{_named(tuned, repeats)}: {METRICS['val_mre'].text(v)}" for v in y)
                lines.append(Line(_named(tuned, repeats), tuned.method, of_method[tuned.method], x, y, hover=hover))
                of_method[tuned.method] += 1
            yield LineChart(
                slug("tuning", name, place),
                f"{_TITLES[name]}: {where}",
                _AXES[name],
                label if name != "draws" else label.replace("best", "expected best"),
                tuple(lines),
                x_log=name == "hours",
                note=_NOTES[name] + " " + CONDITIONAL,
            )


_TITLES = {
    "configurations": "Best value so far",
    "hours": "Best value at a time spent",
    "draws": "Expected best of n configurations",
}
_AXES = {
    "configurations": "configurations",
    "hours": "GPU-hours (on a CPU, hours of a slot)",
    "draws": "configurations",
}
_NOTES = {
    "configurations": "The least validation error of the configurations so far, the arm's default first.",
    "hours": "Fine-tuning of all tuning seeds so far; the arm's pre-trainings count from the start.",
    "draws": "Unbiased estimate of the least validation error of n random configurations; the default is left out.",
}


def _shown(x: np.ndarray, y: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    known = np.isfinite(y)
    return tuple(map(float, x[known])), tuple(map(float, y[known]))


def _by_number(tuned: Tuned) -> tuple[tuple[float, ...], tuple[float, ...]]:
    best = best_so_far(tuned.values_N)
    return _shown(np.arange(1, len(best) + 1), best)


def _by_hours(tuned: Tuned) -> tuple[tuple[float, ...], tuple[float, ...]]:
    spent = tuned.pretrain_hours + tuned.rows["finetune_gpu_hours"].fillna(0.0).cumsum().to_numpy(np.float64)
    return _shown(spent, best_so_far(tuned.values_N))


def _by_draws(tuned: Tuned) -> tuple[tuple[float, ...], tuple[float, ...]]:
    best = expected_best(tuned.values_N[1:])
    return _shown(np.arange(1, len(best) + 1), best)
