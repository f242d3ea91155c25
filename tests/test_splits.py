"""Splits and folds: by name or at random, stratified by a column, grouped by another."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate.datasets.layout import FileRecord
from ablate.datasets.splitting import Division, SplitRule, divide
from ablate.datasets.types import SPLITS, UNLABELLED, Problems
from ablate.errors import InputError

CURE = "add images"


def records_of(columns, part=None):
    """Return a record for each mapping of columns, named by its number."""
    nowhere = np.zeros((1, 2))
    return [
        FileRecord(f"{number:04}.png", (10, 10), nowhere, (1.0, 1.0), part, f"/{number:04}.png", columns=row)
        for number, row in enumerate(columns)
    ]


def divided(rule, records, unlabelled=()):
    return divide(rule, "mine", records, unlabelled, Problems(stop=True), CURE)


def names(division: Division):
    return {split: [record.name for record in division.splits[split]] for split in SPLITS}


VALUES = st.lists(st.sampled_from(["a", "b", "c"]), min_size=12, max_size=80)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.floats(0.2, 0.6), st.floats(0.1, 0.3), st.integers(0, 5))
def test_stratified_splits_keep_every_share_within_one_image(values, train, val, seed):
    if len(set(values)) * 2 > len(values):
        return
    records = records_of([{"disease": value} for value in values])
    (division,) = divided(SplitRule(train, val, random=seed, stratify="disease"), records)
    sizes = {split: len(division.splits[split]) for split in SPLITS}
    assert sizes["train"] == max(1, round(train * len(values)))
    assert sizes["val"] == max(1, round(val * len(values)))
    assert sum(sizes.values()) == len(values)
    for split in SPLITS:
        counts = Counter(record.columns["disease"] for record in division.splits[split])
        for value, number in Counter(values).items():
            assert abs(counts[value] - number * sizes[split] / len(values)) < 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 25), max_size=60), st.integers(0, 5), st.integers(2, 5))
def test_grouped_splits_and_folds_never_share_a_group(patients, seed, folds):
    patients = [*patients, *range(100, 120)]
    records = records_of([{"patient": str(patient)} for patient in patients])
    spare = records_of([{"patient": str(patient)} for patient in range(0, 40, 3)], UNLABELLED)
    for rule in (
        SplitRule(0.6, 0.2, random=seed, group="patient"),
        SplitRule(val=0.2, random=seed, group="patient", folds=folds),
    ):
        divisions = divided(rule, records, spare)
        for division in divisions:
            groups = [{record.columns["patient"] for record in division.splits[split]} for split in SPLITS]
            assert not groups[0] & groups[1]
            assert not groups[0] & groups[2]
            assert not groups[1] & groups[2]
            pooled = {record.columns["patient"] for record in division.unlabelled}
            assert not pooled & (groups[1] | groups[2])
            left_out = [record for record in spare if record not in division.unlabelled]
            assert {record.columns["patient"] for record in left_out} <= groups[1] | groups[2]


@settings(max_examples=60, deadline=None)
@given(
    VALUES,
    st.integers(3, 6),
    st.integers(0, 5),
    st.sampled_from([None, 0.1, 2]),
    st.sampled_from([None, "disease"]),
)
def test_folds_partition_the_images(values, folds, seed, val, stratify):
    if stratify and len(set(values)) * 2 > len(values):
        return
    records = records_of([{"disease": value} for value in values])
    divisions = divided(SplitRule(val=val, random=seed, stratify=stratify, folds=folds), records)
    assert len(divisions) == folds
    tested = [name for division in divisions for name in names(division)["test"]]
    assert sorted(tested) == [record.name for record in records]
    for division in divisions:
        parts = names(division)
        assert sorted(itertools.chain(*parts.values())) == [record.name for record in records]
        assert all(part == sorted(part) for part in parts.values())
        assert abs(len(parts["test"]) - len(values) / folds) < 1
        if val is not None:
            assert len(parts["val"]) == (2 if val == 2 else max(1, round(0.1 * len(values))))
        if stratify:
            counts = Counter(record.columns["disease"] for record in division.splits["test"])
            for value, number in Counter(values).items():
                assert abs(counts[value] - number * len(parts["test"]) / len(values)) < 1


def test_grouped_and_stratified_splits_come_near_to_both():
    rng = np.random.default_rng(1)
    disease = {patient: "covid" if patient % 3 == 0 else "normal" for patient in range(100)}
    columns = [{"patient": str(p), "disease": disease[p]} for p in rng.integers(0, 100, 300).tolist()]
    (division,) = divided(SplitRule(200, 40, 60, random=0, group="patient", stratify="disease"), records_of(columns))
    share = Counter(row["disease"] for row in columns)["covid"] / 300
    for split, wanted in (("train", 200), ("val", 40), ("test", 60)):
        found = division.splits[split]
        assert abs(len(found) - wanted) <= 3
        assert abs(Counter(r.columns["disease"] for r in found)["covid"] - share * wanted) <= 3


def test_by_name_and_at_random():
    records = records_of([{}] * 10)
    (by_name,) = divided(SplitRule(6, 2), records)
    assert names(by_name)["train"] == [f"{number:04}.png" for number in range(6)]
    assert names(by_name)["test"] == ["0008.png", "0009.png"]
    (shares,) = divided(SplitRule(0.6, 0.2), records)
    assert names(shares) == names(by_name)
    (first,) = divided(SplitRule(6, 2, random=0), records)
    (again,) = divided(SplitRule(0.6, 0.2, 0.2, random=0), records)
    (other,) = divided(SplitRule(6, 2, random=1), records)
    assert names(first) == names(again) != names(other)
    assert names(first) != names(by_name)
    assert math.prod(len(part) for part in names(other).values()) == 6 * 2 * 2


@pytest.mark.parametrize(
    ("rule", "columns", "message"),
    [
        (SplitRule(3, 1, random=0, group="patient"), [{"patient": "1"}] * 3 + [{}] * 3,
         "splits.group: every annotated image needs a value in column patient; 3 images without one, for example "
         "0003.png; fill it in, or remove group"),
        (SplitRule(3, 1, random=0, group="patient"), [{"patient": "1"}] * 6,
         "mine: split val must have at least one image; the groups of column patient are too few or too large; ask for "
         "fewer folds or other numbers, or remove group"),
        (SplitRule(3, 1, random=0, stratify="age"), [{"age": str(age)} for age in range(6)],
         "splits.stratify: column age must have few values, so that each is in every split; got 6 values in 6 images; "
         "choose another column, or sort its values into classes"),
        (SplitRule(0.9, 0.09, random=0), [{}] * 3,
         "mine: splits train 0.9, val 0.09 leave no test image of 3; add images"),
        (SplitRule(random=0, folds=5), [{}] * 4,
         "mine: 5 folds need at least 5 annotated images; found 4; add images"),
        (SplitRule(val=5, random=0, folds=3), [{}] * 6,
         "mine: splits.val 5 leaves no training image of the 4 outside fold 0; lower it"),
    ],
)  # fmt: skip
def test_a_rule_that_does_not_fit_the_images_is_refused(rule, columns, message):
    with pytest.raises(InputError) as caught:
        divided(rule, records_of(columns))
    assert str(caught.value) == message
