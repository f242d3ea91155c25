"""The numbers by which trials are compared: their units, digits, and whether less or more is better."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import pandas as pd

from ablate.errors import InputError, nearest
from ablate.tables import TABLES

MEAN_SHAPE = "mean_shape"
"""The constant prediction that every initialisation is held against, see `ablate.finetune.mean_shape`."""

Better: TypeAlias = Literal["lower", "higher"]

LENGTH = "length"
"""Unit of metrics that are in the trial's own unit, mm or px."""

RATES = ("sdr", "paper_sdr")
"""Columns that hold a rate for each threshold; a metric names one: `sdr@2.5`."""


@dataclass(frozen=True)
class Metric:
    """A number that a trial has."""

    name: str  # as the user writes it
    column: str
    label: str
    better: Better | None
    unit: str = ""  # LENGTH: the trial's
    digits: int = 2
    scale: float = 1.0  # from the table's number to the text's
    threshold: float | None = None

    def titled(self, unit: str | None) -> str:
        """Return the metric with the unit of its threshold and its own: `SDR within 2.5 mm (%)`, `MRE (mm)`.

        Args:
            unit: of the trials; None if they have several.
        """
        name = (
            self.label.replace(f"within {self.threshold:g}", f"within {self.threshold:g} {unit}")
            if (unit and self.threshold is not None)
            else self.label
        )
        own = self.unit_text(unit)
        return f"{name} ({own})" if own else name

    def text(self, value: float) -> str:
        """Return the number as a reader sees it, in the unit of `unit_text`."""
        scaled = value * self.scale
        return f"{scaled:.{self.digits}f}" if abs(scaled) >= 10**-self.digits or not scaled else f"{scaled:.2g}"

    def spread_text(self, value: float) -> str:
        """Return a standard deviation with as many decimals as the mean before it."""
        return f"{value * self.scale:.{self.digits}f}"

    def unit_text(self, unit: str | None, *, percent: bool = True) -> str:
        """Return the unit, `unit` being that of the trials."""
        if self.unit == LENGTH:
            return unit or ""
        return "" if self.unit == "%" and not percent else self.unit


_KNOWN: tuple[Metric, ...] = (
    Metric("mre", "mre", "MRE", "lower", LENGTH),
    Metric("mre_median", "mre_median", "Median radial error", "lower", LENGTH),
    Metric("mre_std", "mre_std", "Standard deviation of the radial errors", "lower", LENGTH),
    Metric("paper_mre", "paper_mre", "MRE by the paper's protocol", "lower", LENGTH),
    Metric("val_mre", "val_mre", "MRE on the validation images", "lower", LENGTH),
    Metric("val_loss", "val_loss", "Validation loss", "lower", digits=4),
    Metric("parameters", "parameters", "Parameters", "lower", "million", scale=1e-6),
    Metric("peak_memory_bytes", "peak_memory_bytes", "Peak memory", "lower", "GiB", scale=2**-30),
    Metric("pretrain_seconds", "pretrain_seconds", "Pre-training time", "lower", "s", 1),
    Metric("finetune_seconds", "finetune_seconds", "Fine-tuning time", "lower", "s", 1),
    Metric("evaluate_seconds", "evaluate_seconds", "Evaluation time", "lower", "s", 1),
    Metric("best_epoch", "best_epoch", "Best epoch", None, digits=1),
    Metric("epochs", "epochs", "Epochs", None, digits=1),
    Metric("labels", "labels", "Annotated images seen", None, digits=0),
)
METRICS = {metric.name: metric for metric in _KNOWN}
"""Every metric but the rates, which depend on the thresholds of the data sets."""


def rate_metric(column: str, threshold: float) -> Metric:
    """Return the metric of a success detection rate at one threshold."""
    label = f"SDR within {threshold:g}" + (" by the paper's protocol" if column == "paper_sdr" else "")
    return Metric(f"{column}@{threshold:g}", column, label, "higher", "%", 1, 100.0, threshold)


def thresholds_of(trials: pd.DataFrame, column: str = "sdr") -> list[float]:
    """Return the thresholds at which some trial has a rate, ascending."""
    return sorted({float(rate["threshold"]) for rates in trials[column] if _is_list(rates) for rate in rates})


def metric_of(trials: pd.DataFrame, name: str) -> Metric:
    """Return the metric called `name`; raise `InputError` if no trial can have it."""
    column, at, threshold = name.strip().partition("@")
    column = column.replace(".", "_")
    known = [*METRICS, *(f"{rate}@{t:g}" for rate in RATES for t in thresholds_of(trials, rate))]
    if column in RATES:
        found = thresholds_of(trials, column)
        try:
            wanted = float(threshold) if at else math.nan
        except ValueError:
            wanted = math.nan
        if wanted in found or (not found and wanted > 0):
            return rate_metric(column, wanted)
        choices = ", ".join(f"{column}@{t:g}" for t in found) or f"{column}@THRESHOLD"
        raise InputError(f"--metric {name}: {column} needs one of the run's thresholds: {choices}")
    if not at and column in METRICS:
        return METRICS[column]
    if not at and column in TABLES["trials"].names and pd.api.types.is_numeric_dtype(trials[column].dtype):
        return Metric(column, column, column.replace("_", " "), None, digits=3)
    raise InputError(f"--metric must be one of {', '.join(known)}; got {name!r}{nearest(name, known)}")


def metric_values(trials: pd.DataFrame, metric: Metric) -> list[float | None]:
    """Return the metric of every trial, None where it has none."""
    if metric.threshold is None:
        return [None if pd.isna(value) else float(value) for value in trials[metric.column]]
    values: list[float | None] = []
    for rates in trials[metric.column]:
        pairs = rates if _is_list(rates) else []
        found = [float(rate["rate"]) for rate in pairs if rate["threshold"] == metric.threshold]
        values.append(found[0] if found else None)
    return values


def mean_shape_values(trials: pd.DataFrame, metric: Metric) -> list[float | None]:
    """Return the metric of the mean shape of every trial's shots, None where it has none."""
    column = f"{MEAN_SHAPE}_{metric.column}"
    return metric_values(trials, replace(metric, column=column)) if column in trials else [None] * len(trials)


def _is_list(value: object) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str)
