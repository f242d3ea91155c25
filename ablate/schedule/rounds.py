"""The rounds of tunings as stages of a policy: what is missing runs, and what has come in brings the next round.

The run and the simulator drive the same object: the one asks Optuna and the store, the other takes stand-ins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ablate.schedule.policy import Policy
from ablate.schedule.stages import Costs, Stage, TuneStage
from ablate.space import Plan, Settings, Study, plan_of
from ablate.tuning import Ask, Configuration, Course, Over, Result, Run, Segment, final_trials
from ablate.tuning.course import ResultKey
from ablate.tuning.sampling import stand_in


class Rounds:
    """Takes tunings to their end.

    Args:
        policy: gets the stages.
        costs: seconds of stages, for their order.
        courses: the tunings, as far as they are.
        ask: is told that a round is to be asked for; `answer` takes it up.
        over: is told that a tuning is over.
        results: what tuning trials have come to, as far as it is known.
    """

    def __init__(
        self,
        policy: Policy,
        costs: Costs,
        courses: Sequence[Course],
        *,
        ask: Callable[[Course, Ask], None],
        over: Callable[[Course, Over], None],
        results: Mapping[ResultKey, Result] | None = None,
    ) -> None:
        self._policy, self._costs, self.courses = policy, costs, courses
        self._ask, self._over = ask, over
        self.results: dict[ResultKey, Result] = dict(results or {})
        self._wanted: dict[str, dict[float, Segment]] = {}  # trial -> its segments that are to come, by their end
        self._at_work: dict[str, float] = {}  # trial -> the end of the segment that the policy has
        self._waiting: dict[ResultKey, list[Course]] = {}
        self._open: list[Course] = []  # that are not over

    def begin(self) -> None:
        """Go on with every tuning."""
        self._open = list(self.courses)
        for course in self.courses:
            self.go_on(course)

    @property
    def num_open(self) -> int:
        """Tunings that are not over."""
        return len(self._open)

    def is_open(self, course: Course) -> bool:
        """Whether a tuning is not over."""
        return any(other is course for other in self._open)

    def go_on(self, course: Course) -> None:
        """Hand out what a tuning lacks."""
        step = course.next(self.results)
        if isinstance(step, Ask):
            self._ask(course, step)
        elif isinstance(step, Over):
            self._open = [other for other in self._open if other is not course]
            self._over(course, step)
        else:
            self._run(course, step)

    def answer(self, course: Course, settings: Sequence[Settings], known: Mapping[ResultKey, Result]) -> None:
        """Take up the configurations of a round that was asked for, and results that were there already."""
        course.add(settings)
        self.results |= known
        self.go_on(course)

    def _run(self, course: Course, step: Run) -> None:
        for segment in step.segments:
            waiting = self._waiting.setdefault(segment.key, [])
            if not any(other is course for other in waiting):
                waiting.append(course)
            self._wanted.setdefault(segment.trial.trial_id, {})[segment.until] = segment
            self._offer(segment.trial.trial_id, course)

    def _offer(self, trial_id: str, course: Course) -> None:
        """Offer the next segment of a trial, unless it is at work."""
        wanted = self._wanted.get(trial_id)
        if trial_id in self._at_work or not wanted:
            return
        segment = wanted[min(wanted)]
        self._at_work[trial_id] = segment.until
        whole = self._costs.finetune(segment.trial)
        rest = whole * (1 - segment.until)
        rounds = course.remaining() // course.study.spec.round
        behind = rest + (rounds + 1) * self._costs.finetune(course.study.default)
        seconds = whole * (segment.until - segment.since)
        self._policy.add_tuning(TuneStage(segment.trial, segment.until, seconds, behind))

    def segment(self, trial_id: str) -> Segment:
        """Return the segment of a tuning trial that is at work."""
        return self._wanted[trial_id][self._at_work[trial_id]]

    def told(self, trial_id: str, result: Result) -> None:
        """Note what the segment at work has come to."""
        until = self._at_work.pop(trial_id)
        self._wanted[trial_id].pop(until)
        self.results[trial_id, until] = result
        waiting = self._waiting.pop((trial_id, until), [])
        if self._wanted[trial_id]:
            others = [course for key, courses in self._waiting.items() if key[0] == trial_id for course in courses]
            self._offer(trial_id, others[0])
        for course in waiting:
            self.go_on(course)


def rehearse(
    policy: Policy,
    costs: Costs,
    courses: Iterable[Course],
    *,
    results: Mapping[ResultKey, Result] | None = None,
    done: Callable[[str], bool] = lambda trial_id: False,
) -> Callable[[Stage], None]:
    """Let tunings go on in a simulation: configurations and results are stand-ins, so that only the times are right.

    Args:
        policy: of the simulation; gets the stages.
        costs: seconds of stages.
        courses: the tunings as far as they are; copies are taken.
        results: what tuning trials have come to.
        done: trials of the run that need nothing more.

    Returns:
        A function to be called with each stage that is over.
    """

    def ask(course: Course, step: Ask) -> None:
        settings = stand_in(course.study, course.configurations, step.size + (not course.configurations))
        rounds.answer(course, settings[not course.configurations :], {})

    def over(course: Course, step: Over) -> None:
        chosen = step.chosen or course.used[-1]
        finals = (*course.study.trials, *final_trials(course.study, chosen.settings))
        policy.add(trial for trial in finals if not done(trial.trial_id))

    def ended(stage: Stage) -> None:
        if stage.kind == "tune":
            rounds.told(stage.name, Result(float(int(stage.name, 16)), 0, 0.0))

    copies = [Course(course.study, [_copy(found) for found in course.configurations]) for course in courses]
    rounds = Rounds(policy, costs, copies, ask=ask, over=over, results=results)
    rounds.begin()
    return ended


def _copy(found: Configuration) -> Configuration:
    copied = Configuration(found.number, found.round, found.settings, found.trials)
    if found.state is not None:
        copied.state, copied.value, copied.values = found.state, found.value, found.values
        copied.epochs, copied.hours, copied.halted_at = found.epochs, found.hours, found.halted_at
    return copied


def rehearsal(plan: Plan, costs: Costs, *, share: bool = True) -> tuple[Policy, Callable[[Stage], None]]:
    """Return the policy of a new run of a plan, and what is to be called with each stage that is over."""
    if not plan.studies:
        return Policy(plan, costs, share=share), lambda stage: None
    policy = Policy(plan_of(()), costs)
    return policy, rehearse(policy, costs, [Course(study, []) for study in plan.studies])


def num_tuning_trials(studies: Iterable[Study]) -> tuple[int, int]:
    """Return how many configurations a search space tries, and how many trials judge them, at most."""
    each = [(study.spec.budget, study.spec.budget * len(study.spec.seeds)) for study in studies]
    return sum(count for count, _ in each), sum(trials for _, trials in each)
