"""The section `tune` of a search space: arms, places and replicates, and what is refused."""

import pytest
from tuned import SEARCH, load_space, tune_section, tuned_space, write_space

from ablate.errors import InputError
from ablate.space import Source, load_grid, value_at
from ablate.tuning import roles_of


@pytest.fixture
def grid(tmp_path):
    return load_space(tmp_path / "space.yaml")


def test_every_arm_has_a_study_at_every_place(grid):
    assert [(study.arm, study.place) for study in grid.studies] == [
        ("pretrain_method=ddpm", "dataset=synthetic,shots=3"),
        ("pretrain_method=scratch", "dataset=synthetic,shots=3"),
        ("pretrain_method=ddpm", "dataset=synthetic,shots=4"),
        ("pretrain_method=scratch", "dataset=synthetic,shots=4"),
    ]
    assert [trial.seed for trial in grid.studies[0].trials] == [0, 1]


def test_arms_search_the_fields_that_they_have_and_begin_with_their_default(grid):
    ddpm, scratch = grid.studies[:2]
    assert dict(ddpm.defaults) == {"finetune.lr": 1e-3, "finetune.epochs": 2, "pretrain.steps": 6}
    assert dict(scratch.defaults) == {"finetune.lr": 1e-3, "finetune.epochs": 2}


def test_a_tuning_trial_has_a_tuning_seed_and_the_shots_of_the_grid_s_first_draw(grid):
    study = grid.studies[0]
    trial = study.tuning_trial({"finetune.lr": 0.02, "pretrain.steps": 4}, 100)
    assert (trial.seed, trial.draw, trial.finetune.lr, trial.pretrain.steps) == (100, 0, 0.02, 4)
    assert trial.selection == study.default.selection
    assert trial.pretrain_key == study.default.pretrain_key


def test_with_draws_as_places_each_place_has_its_own_shots(tmp_path):
    tune = tune_section(per=["dataset", "shots", "draw"])
    grid = load_space(tmp_path / "space.yaml", grid={"draw": [7, 8]}, tune=tune)
    assert {study.tuning_trial({}, 100).draw for study in grid.studies} == {7, 8}


def test_without_draws_as_places_tuning_takes_the_first(tmp_path):
    grid = load_space(tmp_path / "space.yaml", grid={"draw": [7, 8]})
    assert {study.tuning_trial({}, 100).draw for study in grid.studies} == {7}
    assert len(grid.studies[0].trials) == 4


def test_the_key_of_a_study_does_not_depend_on_the_budget(tmp_path, grid):
    larger = load_space(tmp_path / "larger.yaml", tune=tune_section(budget=8))
    other = load_space(tmp_path / "other.yaml", tune=tune_section(halve=[0.25]))
    assert [study.key for study in larger.studies] == [study.key for study in grid.studies]
    assert not {study.key for study in other.studies} & {study.key for study in grid.studies}


def test_identities_of_the_grid_s_trials_do_not_depend_on_the_tuning(tmp_path, grid):
    space = {name: value for name, value in tuned_space().items() if name != "tune"}
    assert [t.trial_id for t in load_grid(Source("plain", space, None)).trials] == [t.trial_id for t in grid.trials]


def test_repeats_are_studies_of_their_own(tmp_path):
    grid = load_space(tmp_path / "space.yaml", tune=tune_section(repeats=3))
    assert [study.repeat for study in grid.studies[:3]] == [0, 1, 2]
    assert len({study.key for study in grid.studies}) == 12


def test_a_run_has_the_defaults_and_the_chosen_settings_with_their_roles(grid):
    ddpm, scratch = grid.studies[:2]
    found = roles_of([(ddpm, {**ddpm.defaults, "finetune.lr": 0.02}), (scratch, scratch.defaults)])
    roles = {(t.trial.method, value_at(t.trial, "finetune.lr"), t.trial.seed): t.role for t in found.values()}
    assert roles == {
        ("ddpm", 1e-3, 0): "default",
        ("ddpm", 1e-3, 1): "default",
        ("ddpm", 0.02, 0): "tuned",
        ("ddpm", 0.02, 1): "tuned",
        ("scratch", 1e-3, 0): "both",
        ("scratch", 1e-3, 1): "both",
    }


REFUSED = {
    "unknown field": (
        {"tune": tune_section(search={"finetune.lrr": [1e-3]})},
        "tune.search.finetune.lrr: search must name fields of a trial; got 'finetune.lrr' (did you mean "
        "'finetune.lr'?)",
    ),
    "shots": ({"tune": tune_section(search={"shots": [3]})}, "shots must not be searched: it says what is compared"),
    "seed": ({"tune": tune_section(search={"seed": [0, 1]})}, "seed must not be searched: it says what is compared"),
    "no only": (
        {"tune": tune_section(search={"pretrain.steps": [4, 6]})},
        "pretrain.steps must be a field of every arm; scratch has none; name the arms that have it, such as "
        "only: [ddpm",
    ),
    "no only beside others": (
        {"tune": tune_section(search={"finetune.lr": [1e-3, 1e-2], "pretrain.timesteps": [50, 500]})},
        "pretrain.timesteps must be a field of every arm; scratch has none; name the arms that have it, such as "
        "only: [ddpm",
    ),
    "only of fine-tuning": (
        {"tune": tune_section(search={"finetune.lr": {"choices": [1e-3], "only": ["ddpm"]}})},
        "only must be left out for finetune.lr: every arm searches the same fields of fine-tuning",
    ),
    "unknown method": (
        {"tune": tune_section(search={"pretrain.steps": {"choices": [6], "only": ["dpm"]}})},
        "only must name initialisations; got 'dpm' (did you mean 'ddpm'?)",
    ),
    "default outside": (
        {"tune": tune_section(search={"finetune.lr": {"log": [1e-2, 1e-1]}})},
        "finetune.lr must include the default of every arm, with which tuning begins; pretrain_method=ddpm at "
        "dataset=synthetic,shots=3 has 0.001, and 0.01 to 0.1 (log) does not include it",
    ),
    "budget": (
        {"tune": tune_section(budget=5)},
        "budget must be a multiple of round, 2; got 5; the nearest is 4",
    ),
    "grid seeds": (
        {"tune": tune_section(seeds=[1, 100])},
        "seeds must be none of the grid's, so that no trial is judged by the seed that it was chosen with; got 1",
    ),
    "log of zero": (
        {"tune": tune_section(search={"finetune.lr": {"log": [0, 1e-1]}})},
        "log must have bounds above 0; got 0; take uniform where 0 is a value",
    ),
    "bounds": (
        {"tune": tune_section(search={"finetune.lr": {"uniform": [1e-1, 1e-3]}})},
        "uniform must have a lower bound below its upper bound; got 0.1 and 0.001",
    ),
    "two kinds": (
        {"tune": tune_section(search={"finetune.lr": {"uniform": [1e-3, 1e-1], "log": [1e-3, 1e-1]}})},
        "must have one of choices, uniform, log, int; got uniform and log",
    ),
    "kind": (
        {"tune": tune_section(search={"finetune.lr": {"lin": [1e-3, 1e-1]}})},
        "unknown key 'lin'; known: choices, int, log, only, uniform",
    ),
    "halve": (
        {"tune": tune_section(halve=[0.5, 1.0])},
        "halve must be ascending shares between 0 and 1, exclusive; got [0.5, 1.0]",
    ),
    "axis": (
        {"tune": tune_section(), "grid": {"exclude_duplicates": [False, True]}},
        "every axis of the grid must stand in arm or per, or be one of seed, draw, fold, pretrain.seed; "
        "exclude_duplicates does not, and is both False and True; add it to arm or per",
    ),
    "searched axis": (
        {"tune": tune_section(), "grid": {"finetune": {"lr": [1e-3, 1e-2]}}},
        "finetune.lr does not, and is both 0.001 and 0.01; it is searched, so leave it out of the grid",
    ),
    "value": (
        {"tune": tune_section(search={"finetune.epochs": [2, -1]})},
        "epochs must be at least 1; got -1 (pretrain_method=ddpm)",
    ),
    "key": ({"tune": tune_section(budgt=4)}, "unknown key 'budgt'"),
    "missing": ({"tune": tune_section(budget=None)}, "budget is required"),
    "arm": ({"tune": tune_section(arm=["pretrain.metod"])}, "(did you mean 'pretrain.method'?)"),
    "seed in per": ({"tune": tune_section(per=["seed"])}, "per must not name seed, which tells replicates apart"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_section_is_refused_in_one_line_with_its_place(case, tmp_path, ablate):
    changes, words = REFUSED[case]
    path = write_space(tmp_path / "space.yaml", **changes)
    code, out, err = ablate("run", "--grid", path, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert f"{path}:" in err
    assert "tune" in err
    assert words in err
    assert not (tmp_path / "run").exists()


def test_what_is_searched_is_named_by_the_plan(tmp_path, ablate):
    code, out, _ = ablate("plan", "--grid", write_space(tmp_path / "space.yaml"), "--slots", 2)
    assert code == 0
    assert "  trials         8 of the defaults, and at most 8 of chosen settings" in out
    assert (
        "  tuning         32 trials at most: 4 configurations (tpe, in 2 rounds of 2) for each of 4, by 2 seeds; the "
        "worse half of a round stops after 50%"
    ) in out
    assert "    finetune.lr              0.0001 to 0.1 (log)" in out
    assert "    pretrain.steps           4, 6 (ddpm)" in out
    shared = next(line.split() for line in out.splitlines() if line.startswith("    shared"))
    assert [shared[4], shared[6]] == ["-", "-"]  # of the bounds only the work is known
    assert "    -: not known before the run, as tuning decides which stages there are" in out


def test_no_share_is_refused_where_something_is_tuned(tmp_path, ablate):
    path = write_space(tmp_path / "space.yaml")
    code, _, err = ablate("run", "--grid", path, "--out", tmp_path / "run", "--no-share")
    assert (code, err) == (2, "ablate: --no-share must be left out for a search space with tune: tuning shares "
                              "pre-trainings\n")  # fmt: skip


def test_a_range_is_read_from_its_first_to_its_last_value():
    search = load_grid(Source("x", tuned_space(), None)).studies[0].search
    assert set(search) == set(SEARCH)
    assert search["finetune.epochs"].nth(0.0) == 2
    assert search["finetune.epochs"].nth(0.999) == 4
    assert search["finetune.lr"].nth(0.5) == pytest.approx(10**-2.5)


def test_a_dashed_default_is_an_input_error():
    with pytest.raises(InputError, match=r"search must name at least one field"):
        load_grid(Source("x", tuned_space(tune=tune_section(search={})), None))
