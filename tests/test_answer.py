"""The answer that a report opens with: what is best, by how much, and what that does not cover."""

from pathlib import Path

import pytest
from fake_run import Shape, specs, write_fake_run

from ablate.report.analysis import analyse
from ablate.report.answer import Answer, answers
from ablate.report.run_data import read_run


def answers_of(folder: Path, **fields: object) -> list[Answer]:
    given = {"methods": ["ddpm", "mocov3", "scratch"], "shots": [5, 10], "seeds": [0, 1, 2], **fields}
    trials = specs(**given)  # type: ignore[arg-type]
    store = write_fake_run(folder, trials, shapes={"cephalo": Shape(num_images=8, num_landmarks=3)})
    return list(answers(analyse(read_run(store), num_resamples=200)))


def test_the_best_stands_first_with_its_distance_to_the_next(tmp_path: Path) -> None:
    (answer,) = answers_of(tmp_path)
    assert answer.title.startswith("cephalo")
    assert [text.split(":")[0] for text in answer.findings] == ["5 shots", "10 shots"]
    analysis = analyse(read_run(_store(tmp_path)), num_resamples=200)
    panel = analysis.panels[0]
    column = panel.group.columns[0]
    best, other, *_ = sorted(panel.column_arms(column), key=lambda arm: arm.mre.value or 0.0)
    pair = next(p for p in panel.compared.comparisons[column] if {p.a, p.b} == {best.label, other.label})
    assert pair.difference.value is not None
    distance = abs(pair.difference.value)
    start = f"5 shots: {best.label}, {best.mre.value:.2f} mm, {distance:.2f} mm (95 % interval "
    assert answer.findings[0].startswith(start)
    assert f"below {other.label}, {other.mre.value:.2f} mm; " in answer.findings[0]


def _store(folder: Path):  # type: ignore[no-untyped-def]
    from ablate.store import Store

    return Store.open(folder)


def test_what_is_not_covered_is_said(tmp_path: Path) -> None:
    (answer,) = answers_of(tmp_path)
    assert "Other trainings: each number rests on 3 independent trainings." in answer.limits
    assert "Other data sets: all test images are of cephalo (8 images)." in answer.limits
    assert any(text.startswith("Other networks: ") for text in answer.limits)


def test_one_seed_says_nothing_of_other_trainings(tmp_path: Path) -> None:
    (answer,) = answers_of(tmp_path, seeds=[0])
    assert all("one seed, so that nothing is said of other trainings" in text for text in answer.findings)
    assert not any("interval" in text or "p =" in text for text in answer.findings)


def test_one_initialisation_has_nothing_to_compare_with(tmp_path: Path) -> None:
    (answer,) = answers_of(tmp_path, methods=["scratch"])
    assert answer.findings[0].endswith("nothing to compare with.")


@pytest.mark.parametrize("shots", [[5], [5, "all"]])
def test_there_is_a_finding_for_each_number_of_shots(tmp_path: Path, shots: list[object]) -> None:
    (answer,) = answers_of(tmp_path, shots=shots)
    assert len(answer.findings) == len(shots)
