"""Tables of a metric along two axes: what is averaged, what is kept apart, and what is written."""

import csv
import io
import statistics
from pathlib import Path

import pandas as pd
import pytest
from fake_run import specs, write_fake_run

from ablate import tables
from ablate.errors import InputError
from ablate.report.grouping import MISSING
from ablate.report.pivot import pivot, render
from ablate.report.render import Cell, Table, latex_text, render_table, slug
from ablate.space import TrialSpec


def frame(trials: list[TrialSpec], values: list[float | None], **columns: object) -> pd.DataFrame:
    rows = []
    for spec, value in zip(trials, values, strict=True):
        row = tables.blank("trials") | tables.spec_columns(spec) | {"status": "finished", "unit": "mm", "mre": value}
        rows.append(row | ({"status": "failed"} if value is None else {}) | columns)
    return tables.frame_of("trials", rows)


def records(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_mean_and_sample_standard_deviation_are_over_seeds() -> None:
    trials = specs(methods=["ddpm", "scratch"], shots=[5], seeds=[0, 1, 2])
    table = pivot(frame(trials, [1.0, 2.0, 6.0, 4.0, 4.0, 4.0])).tables[0]
    ddpm = next(cell for (row, _), cell in table.cells.items() if row.value == "ddpm")
    assert (ddpm.mean, ddpm.sd, ddpm.num) == (3.0, statistics.stdev([1, 2, 6]), 3)


def test_shots_are_ordered_as_numbers_with_all_last_and_methods_as_in_the_paper() -> None:
    trials = specs(methods=["scratch", "mocov3", "ddpm"], shots=["all", 10, 5, 100], seeds=[0])
    text = render(pivot(frame(trials, [float(i) for i in range(12)])), "github")
    header = next(line for line in text.splitlines() if line.startswith("| init"))
    assert [cell.strip() for cell in header.strip("|").split("|")][1:] == ["5", "10", "100", "all"]
    firsts = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][1:]
    assert firsts == ["DDPM ¶", "MoCo v3 ¶", "scratch"]


def test_failed_and_missing_trials_are_counted_in_their_cell_and_not_averaged() -> None:
    data = frame(specs(methods=["ddpm", "scratch"], shots=[5], seeds=[0, 1, 2]), [1.0, None, 3.0, 4.0, 4.0, 4.0])
    data.loc[2, "status"] = MISSING
    data.loc[2, "mre"] = None
    made = pivot(data)
    cell = next(cell for (row, _), cell in made.tables[0].cells.items() if row.value == "ddpm")
    assert (cell.mean, cell.sd, cell.num, cell.num_failed, cell.num_missing) == (1.0, None, 1, 1, 1)
    assert "1.00 (n=1, 1 failed, 1 missing)" in render(made, "github")
    row = next(row for row in records(render(made, "csv")) if row["pretrain_method"] == "ddpm")
    assert (row["n"], row["failed"], row["missing"], row["sd"]) == ("1", "1", "1", "")


def test_a_cell_without_any_result_shows_a_dash_and_why() -> None:
    text = render(pivot(frame(specs(methods=["ddpm"], shots=[5], seeds=[0]), [None])), "github")
    assert "– (n=0, 1 failed)" in text


def test_data_sets_and_units_are_never_mixed() -> None:
    trials = specs(datasets=["chest", "cephalo"], methods=["scratch"], shots=[5], seeds=[0, 1])
    data = frame(trials, [10.0, 20.0, 1.0, 2.0])
    data.loc[:1, "unit"] = "px"
    made = pivot(data)
    assert [table.group.title for table in made.tables] == ["data set cephalo", "data set chest"]
    assert [[cell.mean for cell in table.cells.values()] for table in made.tables] == [[1.5], [15.0]]
    text = render(made, "github")
    assert "MRE (mm)" in text
    assert "MRE (px)" in text


def test_a_third_axis_of_a_method_names_the_initialisation_instead_of_being_averaged() -> None:
    few = specs(methods=["ddpm"], shots=[5], seeds=[0], pretrain={"steps": 100})
    many = specs(methods=["ddpm"], shots=[5], seeds=[0], pretrain={"steps": 200})
    scratch = specs(methods=["scratch"], shots=[5], seeds=[0])
    text = render(pivot(frame([*few, *many, *scratch], [1.0, 3.0, 5.0])), "github")
    assert "DDPM (steps 100)" in text
    assert "DDPM (steps 200)" in text
    assert "| scratch " in text
    assert "2.00" not in text


def test_a_third_axis_that_is_not_the_methods_splits_into_tables() -> None:
    one = specs(methods=["scratch"], shots=[5], seeds=[0])[0]
    other = one.model_copy(update={"few_shot": "random"})
    made = pivot(frame([one, other], [1.0, 3.0]))
    assert [table.group.title for table in made.tables] == ["few shot first", "few shot random"]


def test_one_network_per_table_where_a_method_was_run_on_two() -> None:
    unet = [TrialSpec.model_validate({"dataset": "chest", "pretrain": {"method": m}}) for m in ("ddpm", "scratch")]
    encoder = [
        TrialSpec.model_validate({"dataset": "chest", "pretrain": {"method": m}, "network": {"kind": "encoder"}})
        for m in ("imagenet", "scratch")
    ]
    made = pivot(frame([*unet, *encoder], [1.0, 2.0, 3.0, 4.0]))
    assert [table.group.title for table in made.tables] == ["network encoder", "network unet"]


def test_a_network_that_goes_with_the_method_is_said_under_the_table() -> None:
    trials = [TrialSpec.model_validate({"dataset": "chest", "pretrain": {"method": m}}) for m in ("ddpm", "imagenet")]
    text = render(pivot(frame(trials, [1.0, 2.0])), "github")
    assert "network goes with the initialisation: encoder for ImageNet; unet for DDPM" in text


def test_any_two_axes_can_be_laid_out() -> None:
    trials = [s for t in (100, 250) for s in specs(methods=["ddpm"], shots=[5], seeds=[0], pretrain={"timesteps": t})]
    made = pivot(frame(trials, [1.0, 2.0]), rows="pretrain.timesteps", columns="pretrain_steps")
    assert [row.value for row in made.tables[0].group.rows] == [100, 250]
    assert [column.value for column in made.tables[0].group.columns] == [8000]


def test_rates_are_percentages_for_readers_and_fractions_in_csv() -> None:
    data = frame(specs(methods=["scratch"], shots=[5], seeds=[0]), [1.0], sdr=[{"threshold": 2.5, "rate": 0.875}])
    made = pivot(data, metric="sdr@2.5")
    assert "SDR within 2.5 mm (%)" in render(made, "github")
    assert "87.5" in render(made, "github")
    assert records(render(made, "csv"))[0]["mean"] == "0.875"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"metric": "mer"}, "did you mean 'mre'"),
        ({"metric": "sdr@7"}, "sdr@2.5"),
        ({"metric": "sdr"}, "sdr@2.5"),
        ({"metric": "device"}, "--metric must be one of"),
        ({"rows": "pretrain_methd"}, "did you mean 'pretrain_method'"),
        ({"columns": "shotz"}, "did you mean 'shots'"),
        ({"rows": "shots"}, "two fields"),
        ({"filters": ["dataset"]}, "FIELD=VALUE"),
        ({"filters": ["datset=cephalo"]}, "did you mean 'dataset'"),
        ({"filters": ["dataset=cehpalo"]}, "did you mean 'cephalo'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(arguments: dict[str, object], told: str) -> None:
    data = frame(specs(methods=["scratch"], shots=[5], seeds=[0]), [1.0], sdr=[{"threshold": 2.5, "rate": 0.9}])
    with pytest.raises(InputError, match="--") as caught:
        pivot(data, **arguments)  # type: ignore[arg-type]
    assert told in str(caught.value)


def test_an_unknown_format_is_refused() -> None:
    made = pivot(frame(specs(methods=["scratch"], shots=[5], seeds=[0]), [1.0]))
    with pytest.raises(InputError, match="did you mean 'latex'"):
        render(made, "latx")


def test_filters_take_labels_names_numbers_and_alternatives() -> None:
    data = frame(specs(methods=["ddpm", "mocov3", "scratch"], shots=[5, "all"], seeds=[0]), [1.0] * 6)
    for text, num in [
        ("pretrain.method=DDPM", 2), ("pretrain_method=ddpm,scratch", 4), ("shots=all", 3), ("shots=5", 3),
        ("finetune.lr=1e-4", 2), ("pretrain_steps=none", 2),
    ]:  # fmt: skip
        assert sum(cell.num for t in pivot(data, filters=[text]).tables for cell in t.cells.values()) == num, text


def test_a_run_without_trials_says_so() -> None:
    assert render(pivot(frame([], []))) == "no trials\n"


def test_written_run_gives_the_same_text_whatever_the_order_of_its_rows(tmp_path: Path) -> None:
    store = write_fake_run(tmp_path, specs(), pictures=False, curves=False)
    trials = tables.read_frame(store, "trials")
    shuffled = trials.sample(frac=1, random_state=1).reset_index(drop=True)
    for form in ("github", "latex", "csv", "plain"):
        one, other = render(pivot(trials), form), render(pivot(shuffled), form)
        if form == "csv":  # sums of floats may differ in the last bit
            keep = ("pretrain_method", "shots", "n")
            assert [[r[k] for k in keep] for r in records(one)] == [[r[k] for k in keep] for r in records(other)]
        else:
            assert one == other


HOSTILE = "<script>alert(1)</script>|a/../../b\n\\input{/etc/passwd}$x_1$ %&#^~ 中 **b** `c`"


def test_hostile_names_are_text_in_every_format() -> None:
    table = Table(slug(HOSTILE), HOSTILE, (HOSTILE, "n"), ((Cell(HOSTILE), Cell("1", 1)),), ({HOSTILE: "=cmd()"},))
    assert table.name == slug(table.name)
    markdown = render_table(table, "github")
    assert "<" not in markdown.replace("\\<", "")  # a backslash makes it text
    assert len([line for line in markdown.splitlines() if line.startswith("|")]) == 3
    latex = render_table(table, "latex")
    assert r"\input" not in latex
    assert r"\textbackslash{}input\{/etc/passwd\}\$x\_1\$ \%\&\#\textasciicircum{}\textasciitilde{}" in latex
    assert latex.isascii()
    assert "'=cmd()" in render_table(table, "csv")


def test_latex_keeps_letters_that_its_fonts_have_and_names_the_others() -> None:
    assert latex_text("données ± 中") == r"données $\pm$ {[}U+4E2D{]}"


def test_file_names_hold_nothing_but_letters_digits_and_hyphens() -> None:
    assert slug("mre", "a/../../b", "<script>") == "mre-a-b-script"
    assert slug("/", "..") == "table"


def test_best_is_bold_and_ties_are_marked() -> None:
    row = (Cell("x"), Cell("1.00", 1.0, best=True), Cell("1.10", 1.1, tied=True))
    table = Table("t", "c", ("a", "b", "c"), (row,))
    assert "**1.00**" in render_table(table, "github")
    assert "1.10 †" in render_table(table, "github")
    assert r"\textbf{1.00} & 1.10$^{\dagger}$" in render_table(table, "latex")
