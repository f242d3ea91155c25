"""Dividing the annotated images of a data set into train, val and test, once or into folds.

A rule takes the images by sorted name or at random, and may keep the shares of a column's values in every split and
the images of one group, such as a patient, together. What is random depends on the seed and on each image's name (or
group) alone: an image that is added leaves the order of the others as it was. S strata, P parts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from ablate.datasets.types import SPLITS, UNLABELLED, FloatArray, IntArray, Part, Problems, Record, SplitName
from ablate.words import counted

Amount: TypeAlias = int | float
"""A number of images, or their share (between 0 and 1)."""


@dataclass(frozen=True)
class SplitRule:
    """How the annotated images are divided."""

    train: Amount | None = None
    val: Amount | None = None
    test: Amount | None = None  # None: the rest
    random: int | None = None  # seed; None: by sorted name
    stratify: str | None = None  # the column whose shares every split keeps
    group: str | None = None  # the column whose images stay together
    folds: int | None = None  # every image is in the test split of exactly one


@dataclass(frozen=True)
class Division:
    """Which records are in which part; each part keeps the order of the names."""

    splits: Mapping[SplitName, tuple[Record, ...]] = field(default_factory=lambda: dict.fromkeys(SPLITS, ()))
    unlabelled: tuple[Record, ...] = ()  # for pre-training alone

    @property
    def ordered(self) -> list[Record]:
        """The records in the order train, val, test, unlabelled."""
        return [*(record for name in SPLITS for record in self.splits[name]), *self.unlabelled]

    @property
    def parts(self) -> list[Part]:
        """Where each record in `ordered` stands."""
        return [*(name for name in SPLITS for _ in self.splits[name]), *([UNLABELLED] * len(self.unlabelled))]


def divide(
    rule: SplitRule, name: str, records: Sequence[Record], unlabelled: Sequence[Record], problems: Problems, cure: str
) -> tuple[Division, ...]:
    """Return the one division of a data set, or one for each fold; an empty one after an error that was gathered.

    Args:
        rule: how to divide.
        name: of the data set, for messages.
        records: the annotated images, by sorted name.
        unlabelled: those without landmarks; none that shares a group with val or test is in the division.
        problems: told what is wrong: too few images or groups, or an image without a value in a column.
        cure: what is said where the number of images does not fit.
    """
    if not records:
        return (Division(),)
    try:
        _check_columns(rule, records)
        if rule.folds is None:
            parts = _assign(rule, records, _targets(rule, name, len(records), cure), str(rule.random))
            divisions = [parts]
        else:
            divisions = _fold(rule, name, records, cure)
        for number, parts in enumerate(divisions):
            _require_all(rule, name, parts, None if rule.folds is None else number)
    except _UnfitError as error:
        problems.error(str(error))
        return (Division(),)
    return tuple(_division(rule, records, unlabelled, parts) for parts in divisions)


class _UnfitError(ValueError):
    """The rule does not fit the images; its text is a whole message."""


def _check_columns(rule: SplitRule, records: Sequence[Record]) -> None:
    for option, column in (("stratify", rule.stratify), ("group", rule.group)):
        if column is None:
            continue
        without = [record.name for record in records if not record.columns.get(column)]
        if without:
            raise _UnfitError(
                f"splits.{option}: every annotated image needs a value in column {column}; "
                f"{counted(len(without), 'image')} without one, for example {without[0]}; "
                f"fill it in, or remove {option}"
            )
    if rule.stratify is not None:
        values = Counter(record.columns[rule.stratify] for record in records)
        if len(values) > 1 and 2 * len(values) > len(records):
            raise _UnfitError(
                f"splits.stratify: column {rule.stratify} must have few values, so that each is in every split; got "
                f"{len(values)} values in {len(records)} images; choose another column, or sort its values into classes"
            )


def _targets(rule: SplitRule, name: str, num_images: int, cure: str) -> dict[str, int]:
    """Return the number of images of each split."""
    given = [rule.train, rule.val, rule.test]
    if any(isinstance(amount, float) for amount in given):
        train, val = (max(1, round(float(amount or 0) * num_images)) for amount in given[:2])
        test = num_images - train - val
        if test >= 1:
            return {"train": train, "val": val, "test": test}
        raise _UnfitError(
            f"{name}: splits train {rule.train}, val {rule.val} leave no test image of {num_images}; {cure}"
        )
    train, val = int(rule.train or 0), int(rule.val or 0)
    fixed = train + val
    test = num_images - fixed if rule.test is None else int(rule.test)
    if test < 1 or fixed + test != num_images:
        needed = f"at least {fixed + 1}" if rule.test is None else f"exactly {fixed + test}"
        rest = "the rest" if rule.test is None else test
        raise _UnfitError(
            f"{name}: splits train {train}, val {val}, test {rest} need {needed} annotated images; found "
            f"{num_images}; {cure}"
        )
    return {"train": train, "val": val, "test": test}


def _fold(rule: SplitRule, name: str, records: Sequence[Record], cure: str) -> list[list[str]]:
    """Return the split of every record in each fold."""
    assert rule.folds is not None
    folds = rule.folds
    if len(records) < max(folds, 3):
        raise _UnfitError(
            f"{name}: {folds} folds need at least {max(folds, 3)} annotated images; found {len(records)}; {cure}"
        )
    small, larger = divmod(len(records), folds)
    sizes = {str(number): small + (number < larger) for number in range(folds)}
    fold_of = [int(part) for part in _assign(rule, records, sizes, str(rule.random))]
    divisions = []
    for fold in range(folds):
        parts = ["test" if other == fold else "train" for other in fold_of]
        rest = [position for position, part in enumerate(parts) if part == "train"]
        if rule.val is None:
            chosen = [position for position in rest if fold_of[position] == (fold + 1) % folds]
        else:
            share = rule.val * len(records) if isinstance(rule.val, float) else rule.val
            num_val = max(1, round(share))
            if num_val >= len(rest):
                raise _UnfitError(
                    f"{name}: splits.val {rule.val} leaves no training image of the {len(rest)} outside fold {fold}; "
                    "lower it"
                )
            wanted = {"train": len(rest) - num_val, "val": num_val}
            inner = _assign(rule, [records[p] for p in rest], wanted, f"{rule.random}/{fold}")
            chosen = [position for position, part in zip(rest, inner, strict=True) if part == "val"]
        for position in chosen:
            parts[position] = "val"
        divisions.append(parts)
    return divisions


def _assign(rule: SplitRule, records: Sequence[Record], targets: Mapping[str, int], seed: str) -> list[str]:
    """Return a key of `targets` for each record, `targets` being the number of records of each."""
    parts = list(targets)
    if rule.random is None:
        return [part for part in parts for _ in range(targets[part])]
    if rule.group is not None:
        return _assign_groups(rule, records, targets, seed)
    strata = _strata(rule, records)
    names = sorted(set(strata))
    sizes_S = np.array([strata.count(name) for name in names])
    counts_SP = _shares(sizes_S, np.array([targets[part] for part in parts]), seed)
    found = [""] * len(records)
    for stratum, counts_P in zip(names, counts_SP, strict=True):
        members = [position for position, other in enumerate(strata) if other == stratum]
        members.sort(key=lambda position: _draw(seed, records[position].name))
        dealt = [part for part, count in zip(parts, counts_P, strict=True) for _ in range(count)]
        for position, part in zip(members, dealt, strict=True):
            found[position] = part
    return found


def _strata(rule: SplitRule, records: Sequence[Record]) -> list[str]:
    return ["" if rule.stratify is None else record.columns[rule.stratify] for record in records]


def _draw(seed: str, name: str) -> str:
    """Return where a name stands in the random order of a seed."""
    return hashlib.sha256(f"{seed}\n{name}".encode()).hexdigest()


def _shares(sizes_S: IntArray, targets_P: IntArray, seed: str) -> IntArray:
    """Return whole numbers (S, P) within one of each stratum's share, with `sizes_S` and `targets_P` as sums.

    There always are such numbers (a table of shares can be rounded with its margins); which of them is random.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    shares_SP: FloatArray = np.outer(sizes_S, targets_P) / targets_P.sum()
    num_strata, num_parts = shares_SP.shape
    rows = np.kron(np.eye(num_strata), np.ones(num_parts))
    columns = np.kron(np.ones(num_strata), np.eye(num_parts))
    margins = np.concatenate([sizes_S, targets_P])
    costs = [int(_draw(seed, f"{s} {p}")[:8], 16) / 2**32 for s in range(num_strata) for p in range(num_parts)]
    tolerance = 1e-9
    solved = milp(
        np.array(costs),
        constraints=LinearConstraint(np.concatenate([rows, columns]), margins, margins),
        bounds=Bounds(np.floor(shares_SP + tolerance).ravel(), np.ceil(shares_SP - tolerance).ravel()),
        integrality=np.ones(shares_SP.size, np.int64),
    )
    assert solved.success, solved.message
    counts_SP: IntArray = np.rint(solved.x).astype(np.int64).reshape(shares_SP.shape)
    return counts_SP


def _assign_groups(rule: SplitRule, records: Sequence[Record], targets: Mapping[str, int], seed: str) -> list[str]:
    """Assign whole groups, large ones first, each to the part that lacks most of what the group has.

    The numbers come as near to `targets` as the groups' sizes allow.
    """
    assert rule.group is not None
    strata = _strata(rule, records)
    names = sorted(set(strata))
    members: dict[str, list[int]] = {}
    for position, record in enumerate(records):
        members.setdefault(record.columns[rule.group], []).append(position)
    sizes_S = np.array([strata.count(name) for name in names], dtype=np.float64)
    share_of = {part: target / len(records) for part, target in targets.items()}
    lacking = {part: sizes_S * share for part, share in share_of.items()}
    found = [""] * len(records)
    for group in sorted(members, key=lambda group: (-len(members[group]), _draw(seed, group))):
        has_S = np.array([sum(strata[p] == name for p in members[group]) for name in names], dtype=np.float64)

        def gain(part: str, has_S: FloatArray = has_S) -> float:  # by how much the squared lack falls
            return float((has_S * (2 * lacking[part] - has_S)).sum())

        chosen = max(targets, key=lambda part: (gain(part), lacking[part].sum()))
        lacking[chosen] = lacking[chosen] - has_S
        for position in members[group]:
            found[position] = chosen
    return found


def _require_all(rule: SplitRule, name: str, parts: Sequence[str], fold: int | None) -> None:
    empty = [split for split in SPLITS if split not in parts]
    if empty:
        where = "" if fold is None else f" of fold {fold}"
        raise _UnfitError(
            f"{name}: split {empty[0]}{where} must have at least one image; the groups of column {rule.group} are too "
            "few or too large; ask for fewer folds or other numbers, or remove group"
        )


def _division(
    rule: SplitRule, records: Sequence[Record], unlabelled: Sequence[Record], parts: Sequence[str]
) -> Division:
    splits: dict[SplitName, tuple[Record, ...]] = {
        split: tuple(record for record, part in zip(records, parts, strict=True) if part == split) for split in SPLITS
    }
    held_out = set()
    if rule.group is not None:
        held_out = {record.columns[rule.group] for split in ("val", "test") for record in splits[split]}
    pool = tuple(record for record in unlabelled if record.columns.get(rule.group or "") not in held_out)
    return Division(splits, pool)
