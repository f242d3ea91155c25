"""What a report tests, marks and says of it: one seed, pairs, networks, single pre-trainings, blocks, pixels."""

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_run import Shape, specs, write_fake_run

from ablate import stats
from ablate.report import write_report
from ablate.report.analysis import Analysis, analyse
from ablate.report.chart_kinds import RankChart
from ablate.report.charts import rank_charts, shot_charts
from ablate.report.comparison_tables import efficiency_tables, interval_tables, leakage_tables, pair_tables
from ablate.report.conditions import ONE_NETWORK, SINGLE, SINGLE_NOTE
from ablate.report.figures import draw
from ablate.report.interactive import chart_json
from ablate.report.pivot import pivot, render
from ablate.report.rankings import rank_tables
from ablate.report.render import Table, render_table, to_csv
from ablate.report.run_data import read_run, read_trials
from ablate.report.run_tables import metric_tables
from ablate.space import TrialSpec
from ablate.store import Store

SMALL = {"cephalo": Shape(num_images=20, num_landmarks=3)}


def records(table: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(table))))


def analysis_of(folder: Path, trials: Sequence[TrialSpec], *, across_networks: bool = False) -> Analysis:
    store = write_fake_run(folder, trials, shapes=SMALL, pictures=False, curves=False)
    return analyse(read_run(store), num_resamples=200, across_networks=across_networks)


def with_tests(analysis: Analysis) -> Iterator[Table]:
    yield from metric_tables(analysis)
    yield from pair_tables(analysis)
    yield from rank_tables(analysis)


def drawn(
    trials: Sequence[TrialSpec], draws: Sequence[int] = (), pretrain_seeds: Sequence[int] = ()
) -> list[TrialSpec]:
    """Return the trials with drawn shots, once for each draw and seed of the pre-training, as a file would expand."""
    found = []
    for spec in trials:
        for draw_ in draws or (None,):
            for pretrain_seed in pretrain_seeds if spec.method != "scratch" and pretrain_seeds else (None,):
                fields = spec.model_dump(mode="json") | {"few_shot": "random", "draw": draw_}
                if pretrain_seed is not None:
                    fields["pretrain"] |= {"seed": pretrain_seed}
                found.append(TrialSpec.model_validate(fields))
    return found


# --- one seed ----------------------------------------------------------------------------------------


def test_with_one_seed_there_is_no_mark_and_no_p_value_anywhere(tmp_path: Path) -> None:
    analysis = analysis_of(tmp_path, specs(shots=[5, 10, "all"], seeds=[0]))
    tables = list(with_tests(analysis))
    assert {table.name for table in tables} >= {"mre", "sdr-2", "pairs-cephalo", "ranks-cephalo"}
    for table in tables:
        assert not [cell for row in table.rows for cell in row if cell.tied], table.name
        text = render_table(table, "plain")
        assert "†" not in text, table.name
        assert "significant" not in text, table.name
        assert "p =" not in text, table.name
        assert "p <" not in text, table.name
        assert not re.search(r"[\d\]] \*", re.sub(r"\d \*$", "", text)) or table.name != "pairs-cephalo"
    (pairs,) = pair_tables(analysis)
    for row, record in zip(pairs.rows, records(pairs), strict=True):
        assert (row[4].text, row[4].value) == ("–", None)
        assert re.fullmatch(r"[+-]\d+\.\d\d", row[3].text)  # no interval over images that looks like a test
        assert (record["p"], record["p_holm"], record["p_wilcoxon"]) == ("", "", "")
    (ranks,) = rank_tables(analysis)
    assert all(record["p"] == "" and record["critical_difference"] == "" for record in records(ranks))
    (efficiency,) = efficiency_tables(analysis)
    assert "(" not in "".join(cell.text for row in efficiency.rows for cell in row)


def test_one_seed_of_one_initialisation_leaves_the_others_their_tests(tmp_path: Path) -> None:
    trials = [*specs(methods=["ddpm", "mocov3"], shots=[5]), *specs(methods=["scratch"], shots=[5], seeds=[0])]
    analysis = analysis_of(tmp_path, trials)
    (pairs,) = pair_tables(analysis)
    assert [record["p"] != "" for record in records(pairs)] == [True, False, False]
    assert {record["family_size"] for record in records(pairs)} == {"1"}
    mre = next(iter(metric_tables(analysis)))
    assert any(note.startswith("Without a test") and "scratch at 5" in note for note in mre.notes)


# --- Holm, over what is shown ------------------------------------------------------------------------


def test_marks_are_corrected_over_all_that_the_table_shows_and_captions_say_over_what(tmp_path: Path) -> None:
    analysis = analysis_of(tmp_path, specs(shots=[5, 10], seeds=[0, 1, 2]))
    (pairs,) = pair_tables(analysis)
    found = records(pairs)
    assert len(found) == 6  # three pairs at two numbers of shots
    expected = stats.holm([float(record["p"]) for record in found])
    assert [float(record["p_holm"]) for record in found] == pytest.approx(list(expected))
    for row, p_holm in zip(pairs.rows, expected, strict=True):
        assert row[3].text.endswith(" *") == (p_holm < 0.05)
    assert any("Holm's correction over the 6 tests of this table" in note for note in pairs.notes)
    for table in metric_tables(analysis):
        if table.name == "mre" or table.name.startswith("sdr"):
            assert any("Holm's correction over the 6 tests of this table" in note for note in table.notes), table.name
        else:
            assert any("no test was made" in note for note in table.notes), table.name
    mre = next(iter(metric_tables(analysis)))
    differs = {(record["shots"], record["a"], record["b"]): float(record["p_holm"]) < 0.05 for record in found}
    for number, shots in enumerate(("5", "10"), 1):
        best = next(str(row[0].value) for row in mre.rows if row[number].best)
        for row in mre.rows:
            name = str(row[0].value)
            if name != best and "mean shape" not in name:
                pair = differs.get((shots, name, best), differs.get((shots, best, name)))
                assert row[number].tied == (not pair)


def test_wilcoxon_is_in_the_csv_alone(tmp_path: Path) -> None:
    (pairs,) = pair_tables(analysis_of(tmp_path, specs(shots=[5], seeds=[0, 1])))
    assert pairs.header == ("shots", "A", "B", "difference", "p (Holm)", "units", "images")
    assert {"p_wilcoxon", "rank_biserial"} <= set(records(pairs)[0])


# --- pairs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draws", "pretrain_seeds", "units", "kinds"),
    [
        ((), (), {"3"}, {"paired"}),  # the seed draws
        ((4, 5), (), {"2"}, {"paired"}),  # the draw, with three seeds each
        ((), (7, 8), {"2"}, {"independent"}),  # pre-trainings, each with all draws; scratch has none
    ],
)
def test_units_are_pre_trainings_else_draws_else_seeds(
    tmp_path: Path, draws: Sequence[int], pretrain_seeds: Sequence[int], units: set[str], kinds: set[str]
) -> None:
    trials = drawn(specs(methods=["ddpm", "scratch"], shots=[5], seeds=[0, 1, 2]), draws, pretrain_seeds)
    analysis = analysis_of(tmp_path, trials)
    (pairs,) = pair_tables(analysis)
    assert {record["difference_seeds"] for record in records(pairs)} == units
    assert {record["units"] for record in records(pairs)} == kinds
    kind = "paired differences" if kinds == {"paired"} else "differences without pairs"
    assert any(f"95 % intervals of {kind} with {min(units)} seeds held the truth in" in note for note in pairs.notes)


def test_two_pre_trained_arms_with_every_draw_are_paired_by_their_pre_trainings(tmp_path: Path) -> None:
    trials = drawn(specs(methods=["ddpm", "mocov3"], shots=[5], seeds=[0]), (4, 5, 6), (7, 8))
    (pairs,) = pair_tables(analysis_of(tmp_path, trials))
    assert [(record["units"], record["difference_seeds"]) for record in records(pairs)] == [("paired", "2")]


def test_a_pre_training_for_each_seed_is_paired_with_scratch_by_the_draw(tmp_path: Path) -> None:
    found = []
    for spec in drawn(specs(methods=["ddpm", "scratch"], shots=[5], seeds=[0, 1, 2])):
        fields = spec.model_dump(mode="json")
        if spec.method != "scratch":
            fields["pretrain"] |= {"seed": spec.seed}
        found.append(TrialSpec.model_validate(fields))
    analysis = analysis_of(tmp_path, found)
    (pairs,) = pair_tables(analysis)
    assert [(record["units"], record["difference_seeds"]) for record in records(pairs)] == [("paired", "3")]
    assert SINGLE not in render_table(pairs, "plain")


@pytest.mark.parametrize("shots", [5, "all"])
def test_where_the_seed_draws_no_shots_nothing_is_paired(tmp_path: Path, shots: int | str) -> None:
    trials = specs(methods=["ddpm", "scratch"], shots=[shots], seeds=[0, 1, 2])
    (pairs,) = pair_tables(analysis_of(tmp_path, trials if shots == 5 else drawn(trials)))
    assert [record["units"] for record in records(pairs)] == ["independent"]


# --- networks ----------------------------------------------------------------------------------------


def test_there_is_no_test_and_no_rank_across_networks_unless_asked(tmp_path: Path) -> None:
    trials = specs(methods=["ddpm", "imagenet", "scratch"], shots=[5, 10], seeds=[0, 1, 2])
    analysis = analysis_of(tmp_path, trials)
    (pairs,) = pair_tables(analysis)
    assert {(record["a"], record["b"]) for record in records(pairs)} == {("DDPM", "scratch")}
    (ranks,) = rank_tables(analysis)
    assert {record["initialisation"] for record in records(ranks)} == {"DDPM", "scratch"}
    assert "network unet" in ranks.caption
    mre = next(iter(metric_tables(analysis)))
    imagenet = next(row for row in mre.rows if row[0].value == "ImageNet")
    assert not any(cell.best or cell.tied for cell in imagenet)
    assert any(note.startswith("Without a test") and "ImageNet at 5" in note for note in mre.notes)
    for table in (pairs, ranks, mre):
        assert ONE_NETWORK in table.notes
    asked = analysis_of(tmp_path, trials, across_networks=True)
    (pairs,) = pair_tables(asked)
    assert len({(record["a"], record["b"]) for record in records(pairs)}) == 3
    (ranks,) = rank_tables(asked)
    assert len(records(ranks)) == 3
    for table in (pairs, ranks, next(iter(metric_tables(asked)))):
        assert ONE_NETWORK not in table.notes


@pytest.mark.parametrize("across_networks", [False, True])
def test_the_network_goes_with_the_initialisation_is_said_in_pairs_ranks_and_intervals_too(
    tmp_path: Path, across_networks: bool
) -> None:
    trials = specs(methods=["ddpm", "imagenet", "scratch"], shots=[5, 10], seeds=[0, 1, 2])
    analysis = analysis_of(tmp_path, trials, across_networks=across_networks)
    wanted = "network goes with the initialisation: encoder for ImageNet; unet for DDPM, scratch"
    for build in (metric_tables, pair_tables, rank_tables, interval_tables, efficiency_tables, leakage_tables):
        for table in build(analysis):
            assert wanted in table.notes, table.name
    (chart,) = rank_charts(analysis)
    assert "etwork goes with the initialisation" in chart.note


def test_two_networks_of_several_initialisations_each_have_ranks_and_a_best_of_their_own(tmp_path: Path) -> None:
    trials = [
        *specs(methods=["ddpm", "scratch"], shots=[5, 10], seeds=[0, 1]),
        *(
            TrialSpec.model_validate(spec.model_dump(mode="json") | {"network": {"kind": "encoder"}})
            for spec in specs(methods=["mocov3", "simclrv2"], shots=[5, 10], seeds=[0, 1])
        ),
    ]
    analysis = analysis_of(tmp_path, trials)
    ranks = list(rank_tables(analysis))
    assert [{record["initialisation"] for record in records(table)} for table in ranks] == [
        {"DDPM", "scratch"}, {"MoCo v3", "SimCLR v2"}
    ]  # fmt: skip
    mre = next(iter(metric_tables(analysis)))
    assert [sum(row[column].best for row in mre.rows) for column in (1, 2)] == [2, 2]


def test_a_report_says_that_it_refuses_and_the_command_line_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablate.report.write.FIGURES", {})
    trials = specs(methods=["imagenet", "scratch"], shots=[5], seeds=[0, 1])
    store = write_fake_run(tmp_path, trials, shapes=SMALL, pictures=False, curves=False)
    refused = write_report(store)
    assert "no tests and ranks across different networks (cephalo); --across-networks asks for them" in refused.remarks
    assert not store.exists("report/tables/pairs-cephalo.csv")
    asked = write_report(store, across_networks=True)
    assert not any("different networks" in remark for remark in asked.remarks)
    assert store.exists("report/tables/pairs-cephalo.csv")


# --- a single pre-training ---------------------------------------------------------------------------


def test_initialisations_that_rest_on_a_single_pre_training_are_marked(tmp_path: Path) -> None:
    trials = [
        *specs(methods=["ddpm", "scratch"], shots=[5, 10], seeds=[0, 1]),
        *(s for n in (0, 1) for s in specs(methods=["mocov3"], shots=[5, 10], seeds=[0, 1], pretrain={"seed": n})),
    ]
    analysis = analysis_of(tmp_path, trials)
    for build in (metric_tables, interval_tables, rank_tables):
        table = next(iter(build(analysis)))
        names = {str(row[0].value): row[0].text for row in table.rows}
        assert (names["DDPM"], names["MoCo v3"], names["scratch"]) == (f"DDPM {SINGLE}", "MoCo v3", "scratch")
        assert SINGLE_NOTE in table.notes
    (pairs,) = pair_tables(analysis)
    assert {(str(row[1].value), row[1].text) for row in pairs.rows} >= {("DDPM", f"DDPM {SINGLE}")}
    assert {record["one_pretraining"] for record in records(pairs) if record["a"] == "DDPM"} == {"a"}
    printed = render(pivot(read_trials(Store.open(tmp_path))), "plain")
    assert f"DDPM {SINGLE}" in printed
    (chart,) = shot_charts(analysis)
    assert "rest on one and the same pre-training" in chart.note


# --- ranks, label efficiency, pixels -----------------------------------------------------------------


def test_ranks_over_one_block_have_no_test(tmp_path: Path) -> None:
    analysis = analysis_of(tmp_path, specs(shots=[5], seeds=[0, 1, 2]))
    (table,) = rank_tables(analysis)
    assert "No test: one block says nothing of others." in table.notes
    assert "Friedman" not in render_table(table, "plain")
    assert not any(row[1].tied for row in table.rows)
    (chart,) = rank_charts(analysis)
    assert isinstance(chart, RankChart)
    assert chart.critical_difference is None
    draw(chart)
    assert not any("critical" in note["text"] for note in chart_json(chart)["layout"]["annotations"])


def test_label_efficiency_says_its_own_coverage(tmp_path: Path) -> None:
    (table,) = efficiency_tables(analysis_of(tmp_path, specs(shots=[5, 10], seeds=[0, 1, 2])))
    assert stats.coverage_note(3, "efficiency") in table.notes
    assert stats.coverage_note(3) not in table.notes


@pytest.mark.parametrize(("size", "said"), [(64, "the distance of 2 mm"), (256, "the 0.5 mm between two distances")])
def test_paper_rates_say_where_a_pixel_is_larger_than_the_distance(tmp_path: Path, size: int, said: str) -> None:
    trials = [s.model_copy(update={"image_size": size}) for s in specs(methods=["scratch"], shots=[5], seeds=[0, 1])]
    analysis = analysis_of(tmp_path, trials)
    tables = {table.name: "\n".join(table.notes) for table in metric_tables(analysis)}
    pixel = " x ".join(f"{length / size:.2f}" for length in (240.0, 193.5))
    assert f"{pixel} mm each: more than {said}" in tables["paper-sdr-2"]
    assert "whole pixels" not in tables["sdr-2"]
    assert "whole pixels" not in tables["paper-mre"]


def test_paper_rates_of_small_pixels_and_of_other_data_say_nothing(tmp_path: Path) -> None:
    trials = [s.model_copy(update={"image_size": 1024}) for s in specs(methods=["scratch"], shots=[5], seeds=[0])]
    trials += specs(datasets=["skulls"], methods=["scratch"], shots=[5], seeds=[0])
    analysis = analysis_of(tmp_path, trials)
    assert not [table for table in metric_tables(analysis) if "whole pixels" in "\n".join(table.notes)]


def test_equal_generated_initialisations_are_not_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve tables of equal arms, through the whole path from Parquet to marks."""
    monkeypatch.setattr("fake_run.QUALITY", {})
    marked = 0
    for number in range(12):
        trials = specs(shots=[5], seeds=[10 * number, 10 * number + 1])
        analysis = analysis_of(tmp_path / str(number), trials)
        (pairs,) = pair_tables(analysis)
        marked += any(row[3].text.endswith("*") for row in pairs.rows)
        values = np.array([float(record["p_holm"]) for record in records(pairs)])
        assert all(math.isfinite(value) for value in values)
    assert marked <= 3  # of 12 at 5 %: more in 0.2 % of such series
