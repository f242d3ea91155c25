"""Whether the splits of a user's data set are alike, and whether anybody is in two of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

import numpy as np

from ablate.datasets.splitting import Division
from ablate.datasets.types import SPLITS, Record, SplitName

ALIKE_P = 0.001
"""Splits differ in a column where the test's p-value is below this."""

SHARE = 0.2
"""Differences of a value's share between two splits that are smaller are not told."""

MOST_CLASSES = 12
"""A column with more values than this is compared by its numbers, if it has some."""

PREFIX = "the prefix of the file names"

_PERSON = re.compile(r"(patient|subject|person|case|participant)([ _-]?(id|no|nr|number|code))?", re.IGNORECASE)


def unlike_splits(division: Division) -> Iterator[tuple[str, str]]:
    """Yield each column, or `PREFIX`, in which the splits differ, and how, in words.

    A column of classes is compared by a chi-squared test of homogeneity, one of numbers by the Kruskal-Wallis test.
    """
    for name in _columns(division):
        values = {split: _values(division.splits[split], name) for split in SPLITS}
        values = {split: found for split, found in values.items() if found}
        if len(values) < 2:
            continue
        distinct = {value for found in values.values() for value in found}
        said = ""
        if 2 <= len(distinct) <= MOST_CLASSES:
            said = _classes(values, sorted(distinct))
        elif name != PREFIX and (numbers := _numbers(values)) is not None:
            said = _medians(numbers)
        if said:
            yield name, said


def in_two_splits(division: Division) -> Iterator[tuple[str, list[str]]]:
    """Yield each column that names a person, and the values of it that occur in more than one split."""
    for name in _columns(division):
        if _PERSON.fullmatch(name):
            seen = Counter(value for split in SPLITS for value in set(_values(division.splits[split], name)))
            twice = sorted(value for value, count in seen.items() if count > 1)
            if twice:
                yield name, twice


def kept_words(division: Division, stratify: str | None, group: str | None) -> Iterator[tuple[str, str]]:
    """Yield what a stratified or grouped division holds, for a reader: shares of each value, numbers of groups."""
    if stratify is not None:
        values = {split: _values(division.splits[split], stratify) for split in SPLITS}
        for value in sorted({value for found in values.values() for value in found}):
            shares = ", ".join(f"{found.count(value) / len(found):.0%} of {split}" for split, found in values.items())
            yield f"{stratify} {value}", shares
    if group is not None:
        groups = {split: set(_values(division.splits[split], group)) for split in SPLITS}
        yield f"values of {group}", ", ".join(f"{len(found)} in {split}" for split, found in groups.items())


def nearly_equal(records: Sequence[Record], column: str) -> list[tuple[str, str]]:
    """Return pairs of values of a column that differ in upper and lower case or in spaces alone."""
    alike: dict[str, set[str]] = {}
    for record in records:
        if column in record.columns:
            value = record.columns[column]
            alike.setdefault("".join(value.split()).casefold(), set()).add(value)
    return [(found[0], found[1]) for values in alike.values() if len(found := sorted(values)) > 1]


def _columns(division: Division) -> list[str]:
    records = [record for split in SPLITS for record in division.splits[split]]
    return [*dict.fromkeys(column for record in records for column in record.columns), PREFIX]


def _values(records: Sequence[Record], name: str) -> list[str]:
    if name == PREFIX:
        prefixes = [re.split(r"[\d_.\s-]", record.name, maxsplit=1)[0] for record in records]
        return prefixes if any(prefixes) else []
    return [record.columns[name] for record in records if name in record.columns]


def _classes(values: Mapping[SplitName, Sequence[str]], distinct: Sequence[str]) -> str:
    from scipy.stats import chi2_contingency

    counts = np.array([[list(found).count(value) for value in distinct] for found in values.values()])
    if chi2_contingency(counts).pvalue >= ALIKE_P:
        return ""
    shares = counts / counts.sum(axis=1, keepdims=True)
    spread = shares.max(axis=0) - shares.min(axis=0)
    worst = int(spread.argmax())
    if spread[worst] < SHARE:
        return ""
    parts = ", ".join(f"{share:.0%} of {split}" for split, share in zip(values, shares[:, worst], strict=True))
    return f"{distinct[worst]!r} is {parts}"


def _numbers(values: Mapping[SplitName, Sequence[str]]) -> dict[SplitName, list[float]] | None:
    try:
        return {split: [float(value) for value in found] for split, found in values.items()}
    except ValueError:
        return None


def _medians(values: Mapping[SplitName, Sequence[float]]) -> str:
    from scipy.stats import kruskal

    if kruskal(*values.values()).pvalue >= ALIKE_P:
        return ""
    return "its median is " + ", ".join(f"{median(found):g} in {split}" for split, found in values.items())
