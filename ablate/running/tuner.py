"""The tunings of a run: rounds are asked of Optuna and written before they start, results bring the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ablate.running.events import Watcher
from ablate.running.naming import Names
from ablate.schedule.policy import Policy
from ablate.schedule.rounds import Rounds
from ablate.schedule.stages import Costs, Stage
from ablate.space import Settings, Study, TrialSpec
from ablate.space.words import arm_words
from ablate.stage.settings import StageResult
from ablate.store import Store, StoreTrouble
from ablate.store.layout import state_folder, tuning_folder
from ablate.tuning import (
    Ask,
    Configuration,
    Course,
    FinalTrial,
    Over,
    Result,
    final_trials,
    load_courses,
    read_result,
    result_of,
    roles_of,
    write_configurations,
    write_result,
)
from ablate.tuning.course import ResultKey
from ablate.tuning.sampling import ask
from ablate.words import counted


class Choices:
    """What the tunings of a run have chosen so far; of one that goes on, what it had chosen before.

    Args:
        courses: the tunings as far as they are in the store.
    """

    def __init__(self, courses: Sequence[Course]) -> None:
        self._known: dict[str, tuple[Study, Settings | None]] = {
            course.study.key: (course.study, next((c.settings for c in course.configurations if c.chosen), None))
            for course in courses
        }
        self._trials = roles_of(self._known.values())

    def take(self, study: Study, chosen: Configuration | None) -> None:
        """Take over what a tuning has chosen."""
        self._known[study.key] = (study, None if chosen is None else chosen.settings)
        self._trials = roles_of(self._known.values())

    @property
    def trials(self) -> Mapping[str, FinalTrial]:
        """The trials of the run by id: of the defaults, and of what was chosen."""
        return self._trials


@dataclass
class Tuning:
    """The tunings of a run as far as they are in its store."""

    courses: list[Course]
    results: dict[ResultKey, Result]  # of open rounds
    choices: Choices
    is_over: bool  # when it was loaded: every budget used, and the choice written

    @classmethod
    def load(cls, store: Store, studies: Sequence[Study]) -> Tuning:
        """Read the tunings of a run."""
        courses = load_courses(store, studies)
        results: dict[ResultKey, Result] = {}
        for course in courses:
            results |= _known_results(store, course.study, [c for c in course.configurations if c.state is None])
        choices = Choices(courses)
        return cls(courses, results, choices, all(course.is_settled for course in courses))

    @property
    def num_unknown(self) -> int:
        """Trials of chosen settings that are not known, because a tuning is not over."""
        return sum(len(course.study.trials) for course in self.courses if not course.is_settled)


def probes(studies: Sequence[Study]) -> list[TrialSpec]:
    """Return tuning trials that have every end of what is searched, to be checked before any compute."""
    found = {}
    for study in studies:
        for name, search in study.search.items():
            for value in search.ends:
                trial = study.tuning_trial({name: value}, study.spec.seeds[0])
                found[trial.trial_id] = trial
    return list(found.values())


def _known_results(store: Store, study: Study, configurations: Sequence[Configuration]) -> dict[ResultKey, Result]:
    found = {}
    for trial in (trial for configuration in configurations for trial in configuration.trials):
        for until in (*study.spec.halve, 1.0):
            result = read_result(store, trial.trial_id, until)
            if result is not None:
                found[trial.trial_id, until] = result
    return found


class Tuner(Watcher):
    """Takes the tunings of a run to their end, and hands their trials to the policy.

    All that reads or writes the store happens in a thread of its own, in order; what came of it is taken up in the
    driver's loop, by `tick`. Use it as a context manager: its end waits for that thread.

    Args:
        store: of the run.
        policy: gets the stages.
        costs: seconds of stages, for their order.
        tuning: the tunings as far as they are; its choices are kept up to date.
        changed: is called, in the thread that writes, when the choices have changed.
        done: trials of the run that need nothing more.
        stop: stops the run because of trouble with the store.
        failed: is told the trials of an arm without any value, and why they fail.
    """

    def __init__(
        self,
        store: Store,
        policy: Policy,
        costs: Costs,
        tuning: Tuning,
        *,
        changed: Callable[[], None],
        done: Collection[str],
        stop: Callable[[StoreTrouble], None],
        failed: Callable[[str, str], None],
    ) -> None:
        self._store, self._policy, self._choices = store, policy, tuning.choices
        self._changed, self._done, self._stop, self._failed = changed, done, stop, failed
        self._rounds = Rounds(policy, costs, tuning.courses, ask=self._ask, over=self._over, results=tuning.results)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tune")
        self._pending: list[tuple[Future[Any], Callable[[Any], None]]] = []
        self._troubled = False
        policy.expects_more = lambda: bool(self._pending) and not self._troubled

    def begin(self) -> None:
        """Go on with every tuning; waits for what the store and Optuna have to do first."""
        self._rounds.begin()
        while self._pending and not self._troubled:
            self._take(*self._pending.pop(0))

    # --- what it is told ----------------------------------------------------------------------------

    def tick(self) -> None:
        """Take up what the thread has done."""
        while self._pending and self._pending[0][0].done():
            self._take(*self._pending.pop(0))

    def ended(self, stage: Stage, result: StageResult) -> None:
        """Note what a segment of a tuning trial has come to."""
        if stage.kind != "tune":
            return
        if result.outcome == "finished":
            assert result.metrics is not None
            self._rounds.told(stage.name, result_of(result.metrics))
        elif result.outcome == "failed":
            self._fail(stage.name, result.error or "failed")

    def released(self, trial_id: str, reason: str) -> None:
        """Note a tuning trial that fails with its pre-training."""
        if self._policy.is_tuning(trial_id):
            self._fail(trial_id, reason)

    def _fail(self, trial_id: str, error: str) -> None:
        failed, until = Result(math.nan, 0, 0.0, error), self._rounds.segment(trial_id).until
        self._later(lambda: write_result(self._store, trial_id, until, failed), lambda none: None)
        self._rounds.told(trial_id, failed)

    # --- what comes next ----------------------------------------------------------------------------

    def _later(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self._pending.append((self._pool.submit(work), then))

    def _take(self, work: Future[Any], then: Callable[[Any], None]) -> None:
        try:
            found = work.result()
        except StoreTrouble as trouble:
            self._troubled = True
            self._stop(trouble)
        else:
            then(found)

    def _ask(self, course: Course, step: Ask) -> None:
        """Ask for a round, write it, and look what is known of it, in the thread."""
        before = list(course.configurations)

        def work() -> tuple[list[Settings], dict[ResultKey, Result]]:
            self._clear(before)
            settings = ask(course.study, before, step.size)
            asked = Course(course.study, list(before))
            added = asked.add(settings)
            write_configurations(self._store, course.study, asked.configurations)
            return settings, _known_results(self._store, course.study, added)

        self._later(work, lambda found: self._rounds.answer(course, *found))

    def _over(self, course: Course, step: Over) -> None:
        """Write a tuning that is over, list its trials in `run.yaml`, then run them."""
        study, rows = course.study, list(course.configurations)
        self._choices.take(study, step.chosen)
        tuned = final_trials(study, None if step.chosen is None else step.chosen.settings)

        def work() -> None:
            self._clear(rows)
            write_configurations(self._store, study, rows)
            self._changed()

        def then(none: None) -> None:
            if step.chosen is not None:
                judge = study.tuning_trial({}, study.spec.seeds[0])
                self._policy.add((trial for trial in tuned if trial.trial_id not in self._done), tuned_by=judge)
                self._policy.add(trial for trial in study.trials if trial.trial_id not in self._done)
                return
            for trial in study.trials:
                where = f" at {study.place}" if study.place else ""
                self._failed(trial.trial_id, f"no configuration of {study.arm}{where} has a value: every one failed")

        self._later(work, then)

    def _clear(self, configurations: Sequence[Configuration]) -> None:
        """Delete the training states of a round that is over."""
        last = configurations[-1].round if configurations else None
        for trial in (trial for found in configurations if found.round == last for trial in found.trials):
            self._store.delete(state_folder(tuning_folder(trial.trial_id)))

    # --- what there is to see -----------------------------------------------------------------------

    def words(self, trial: TrialSpec) -> str | None:
        """Return a tuning trial in a few words, `DDPM, 5 shots, number 3: lr 0.003, seed 100`; None if it is none."""
        if not self._policy.is_tuning(trial.trial_id):
            return None
        for course in self._rounds.courses:
            for found in course.configurations:
                if any(other.trial_id == trial.trial_id for other in found.trials):
                    return f"{configuration_words(course.study, found)}, seed {trial.seed}"
        return None

    def role(self, trial: TrialSpec) -> str:
        """Return `tuned` for a trial of settings that were chosen and are not the default, else an empty text."""
        found = self._choices.trials.get(trial.trial_id)
        return "tuned" if found is not None and found.role == "tuned" else ""

    @property
    def num_to_come(self) -> int:
        """Trials of the run that are not known yet, at most."""
        return sum(2 * len(c.study.trials) for c in self._rounds.courses if self._rounds.is_open(c))

    @property
    def num_ended(self) -> int:
        """Configurations that have ended."""
        return sum(found.state is not None for course in self.courses for found in course.used)

    @property
    def num_configurations(self) -> int:
        """Configurations of all budgets."""
        return sum(course.study.spec.budget for course in self.courses)

    @property
    def courses(self) -> Sequence[Course]:
        """The tunings."""
        return self._rounds.courses

    @property
    def results(self) -> Mapping[ResultKey, Result]:
        """What is known of tuning trials."""
        return self._rounds.results

    def line(self) -> str:
        """Return how far the tunings are, in a few words; empty where there are none."""
        courses = self._rounds.courses
        if not courses:
            return ""
        over = len(courses) - self._rounds.num_open
        rounds = "" if over == len(courses) else f", {_round_words(courses)}"
        tried = f"tuning {self.num_ended}/{self.num_configurations} configurations"
        return f"{tried}, {over}/{counted(len(courses), 'tuning')} done{rounds}"

    def __enter__(self) -> Tuner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        for work, _ in self._pending:
            failure = work.exception()
            if failure is None:
                continue
            if isinstance(failure, StoreTrouble):
                self._stop(failure)
            elif error is None:
                raise failure


def _round_words(courses: Sequence[Course]) -> str:
    rounds = sorted({c.configurations[-1].round + 1 for c in courses if c.configurations and c.remaining()})
    last = courses[0].study.spec.num_rounds
    if not rounds:
        return f"round 1 of {last}"
    return f"round {rounds[0]} of {last}" if len(rounds) == 1 else f"rounds {rounds[0]} to {rounds[-1]} of {last}"


def configuration_words(study: Study, found: Configuration) -> str:
    """Return a configuration in a few words: `DDPM, 5 shots, number 3: lr 0.003`."""
    arm = arm_words(study.default, study.spec.arm)
    shots = f", {study.default.shots} shots" if "shots" in study.spec.per else ""
    values = ", ".join(f"{name.split('.')[-1]} {_text(value)}" for name, value in found.settings.items())
    return f"{arm}{shots}, number {found.number}: {values}"


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class TunedNames(Names):
    """Names also tuning trials, and tells trials of chosen settings from those of the default."""

    def __init__(self, trials: Sequence[TrialSpec], tuner: Tuner) -> None:
        super().__init__(trials)
        self._tuner = tuner

    def trial(self, trial: TrialSpec | Mapping[str, Any]) -> str:
        """Return a trial in a few words."""
        assert isinstance(trial, TrialSpec)
        words = self._tuner.words(trial)
        return words or ", ".join(filter(None, [super().trial(trial), self._tuner.role(trial)]))
