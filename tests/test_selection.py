"""Settings chosen on the validation set: what is kept, what says so, and what is refused."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_run import Shape, specs, write_fake_run

from ablate import tables
from ablate.errors import InputError
from ablate.report.analysis import analyse
from ablate.report.comparison_tables import interval_tables, selection_tables
from ablate.report.figures import draw
from ablate.report.pivot import pivot, render
from ablate.report.run_data import read_run, read_trials
from ablate.report.selection import select
from ablate.report.write import write_report
from ablate.space import TrialSpec
from ablate.store import Store

SHAPES = {"cephalo": Shape(num_images=6, num_landmarks=3)}
LRS = (1e-5, 1e-4, 1e-3)


def lr_grid(methods: Sequence[str] = ("ddpm", "scratch"), shots: Sequence[int] = (5, 10)) -> list[TrialSpec]:
    return [
        spec.model_copy(update={"finetune": spec.finetune.model_copy(update={"lr": lr})})
        for lr in LRS
        for spec in specs(methods=methods, shots=shots, seeds=[0, 1])
    ]


def grid_run(folder: Path, *, missing: Sequence[int] = ()) -> Store:
    """A run in which 1e-4 (for scratch at 10 shots 1e-5) is best on the validation set, and 1e-3 on the test set."""
    trials = lr_grid()
    store = write_fake_run(folder, trials, shapes=SHAPES, pictures=False, missing=missing)
    for position, spec in enumerate(trials):
        if position in missing:
            continue
        (row,) = tables.read_part(store, "trials", spec.trial_id)
        lr = spec.finetune.lr
        best = 1e-5 if (spec.method, spec.shots) == ("scratch", 10) else 1e-4
        row["val_mre"] = 1.0 + 0.1 * spec.seed if lr == best else 2.0
        row["mre"] = {1e-5: 5.0, 1e-4: 4.0, 1e-3: 3.0}[lr]
        tables.write_rows(store, "trials", spec.trial_id, [row])
    return store


def test_each_cell_keeps_the_setting_that_is_best_on_validation_with_all_its_seeds(tmp_path: Path) -> None:
    trials = read_trials(grid_run(tmp_path))
    selected = select(trials, by="val_mre")
    assert len(trials) == 24
    assert len(selected.trials) == 8
    kept = {
        (row["pretrain_method"], row["shots"]): row["finetune_lr"] for row in selected.trials.to_dict(orient="records")
    }
    assert kept == {("ddpm", 5): 1e-4, ("ddpm", 10): 1e-4, ("scratch", 5): 1e-4, ("scratch", 10): 1e-5}
    assert {choice.candidates for choice in selected.choices} == {3}
    assert [choice.value for choice in selected.choices] == pytest.approx([1.05] * 4)
    assert {choice.num_seeds for choice in selected.choices} == {2}


def test_a_table_of_selected_settings_is_one_table_and_says_so(tmp_path: Path) -> None:
    trials = read_trials(grid_run(tmp_path))
    assert len(pivot(trials).tables) == 3  # one for each learning rate
    made = render(pivot(trials, best_by="val_mre"), "plain")
    assert made.count("Mean ±") == 1
    assert [re.findall(r"\d\.\d\d ±", line) for line in made.splitlines() if line.startswith(("DDPM", "scratch"))] == [
        ["4.00 ±", "4.00 ±"],
        ["4.00 ±", "5.00 ±"],
    ]
    assert (
        "Selected on validation: each cell is the setting (finetune lr) with the lowest MRE on the validation images"
        in made
    )
    assert "out of 3, the test images unseen" in made


def test_an_axis_is_never_chosen(tmp_path: Path) -> None:
    trials = read_trials(grid_run(tmp_path))
    made = pivot(trials, columns="finetune.lr", filters=["shots=5"], best_by="val_mre")
    (table,) = made.tables
    assert [column.value for column in table.group.columns] == list(LRS)
    assert made.grouping.notes == ("No cell has several settings to choose from by MRE on the validation images.",)


def test_a_candidate_that_lacks_seeds_is_counted_and_compared_on_common_ones(tmp_path: Path) -> None:
    selected = select(read_trials(grid_run(tmp_path, missing=[0])), by="val_mre")  # ddpm, 5 shots, seed 0, 1e-5
    choice = next(
        c for c in selected.choices if dict(c.where)["pretrain_method"] == "ddpm" and dict(c.where)["shots"] == 5
    )
    assert (choice.num_seeds, choice.without_value, choice.value) == (1, 1, pytest.approx(1.1))
    assert "In 1 cell some candidates have no such value yet." in selected.note


def test_a_cell_that_nothing_can_decide_is_left_out_and_counted(tmp_path: Path) -> None:
    trials = lr_grid(["scratch"], [5, 10])
    five = [position for position, spec in enumerate(trials) if spec.shots == 5]
    selected = select(read_trials(write_fake_run(tmp_path, trials, shapes=SHAPES, missing=five)), by="val_mre")
    assert set(selected.trials["shots"]) == {10}
    assert selected.undecided == 1
    assert "1 cell without any such value left out" in selected.note


def test_every_table_and_figure_of_a_selected_report_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = grid_run(tmp_path)
    analysis = analyse(read_run(store), num_resamples=50, best_by="val_mre")
    (panel,) = analysis.panels
    assert len(panel.arms) == 4
    (table,) = selection_tables(analysis)
    assert [(r["pretrain_method"], r["shots"], r["chosen"], r["candidates"]) for r in table.records] == [
        ("ddpm", 5, "finetune lr 0.0001", 3), ("ddpm", 10, "finetune lr 0.0001", 3),
        ("scratch", 5, "finetune lr 0.0001", 3), ("scratch", 10, "finetune lr 1e-05", 3),
    ]  # fmt: skip
    intervals = {
        (r["initialisation"], r["shots"]): (r["lower"], r["upper"]) for r in next(interval_tables(analysis)).records
    }
    assert [(r["test_mre_lower"], r["test_mre_upper"]) for r in table.records] == list(intervals.values())
    drawn = []
    monkeypatch.setattr("ablate.report.write.draw", lambda chart, style: drawn.append(chart) or draw(chart, style))
    write_report(store, best_by="val_mre")
    for path in (tmp_path / "report" / "tables").glob("*.md"):
        if path.name != "without-result.md":
            assert "Selected on validation" in path.read_text(), path.name
    assert drawn
    for chart in drawn:
        whole_run = chart.name.startswith("pretraining-")
        assert chart.marks == (() if whole_run else ("selected on validation (val_mre), out of up to 3 settings",))
        assert ("Selected on validation" in chart.note) != whole_run
    figure = draw(next(chart for chart in drawn if chart.name.startswith("mre-shots")))
    assert "selected on validation" in figure.legends[0].get_title().get_text()


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("mre", "got 'mre': a choice by what was measured on the test images would make their error look better"),
        ("sdr@2.5", "got 'sdr@2.5': a choice by what was measured on the test images"),
        ("epochs", "got 'epochs', which was not measured on the validation images"),
        ("val_mrr", "must be val_mre or val_loss; got 'val_mrr' (did you mean 'val_mre'?)"),
    ],
)
def test_what_was_not_measured_on_the_validation_images_is_refused(tmp_path: Path, by: str, message: str) -> None:
    store = write_fake_run(tmp_path, specs(methods=["scratch"], shots=[5], seeds=[0]), shapes=SHAPES, pictures=False)
    with pytest.raises(InputError, match=re.escape(message)):
        pivot(read_trials(store), best_by=by)
    with pytest.raises(InputError, match=re.escape(message)):
        write_report(store, best_by=by)
    assert not store.exists("report/index.html")


def test_losses_that_are_different_quantities_are_not_compared(tmp_path: Path) -> None:
    trials = [
        spec.model_copy(update={"finetune": spec.finetune.model_copy(update={"loss": loss})})
        for loss in ("ce", "mse")
        for spec in specs(methods=["scratch"], shots=[5], seeds=[0])
    ]
    trials_table = read_trials(write_fake_run(tmp_path, trials, shapes=SHAPES, pictures=False))
    with pytest.raises(InputError, match="differ in finetune_loss, so that their losses are different quantities"):
        select(trials_table, by="val_loss")
    assert len(select(trials_table, by="val_mre").trials) == 1
