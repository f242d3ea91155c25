"""The number of stages that are offered to Ray at a time: what the cluster holds at its largest, and one more.

What is offered and has no place yet is what an autoscaler sees as demand, so it is what nodes are started and paid
for. The policy offers only stages that could start at once; here it is decided how many of them. Two wishes pull in
opposite directions. The more is offered, the more nodes come at once: 64 fine-tunings of a quarter GPU bring 16 nodes
in one round, while eight at a time bring two in every round. But the order of what is offered is frozen: a stage that
becomes ready later and should go first, such as a pre-training that a lost node interrupted, comes behind all that
waits already. Offering what the cluster holds at its largest loses nothing of either: every stage offered has a
place, or gets one as soon as the nodes are there, so none of them is overtaken. The one beyond it is for the worker
that becomes free next. It takes the place of whichever stage the policy would choose by then, which may be another.

Three things would ask for nodes that nobody needs, or keep stages waiting, and are looked for:

- A pre-training that has published its last snapshot gives its GPU back within moments, and what fits there is not
  offered before: the autoscaler would bring a node for it.
- What fits a node that is there gets its place within moments; what needs another node is not offered meanwhile.
- A stage that needs a whole GPU finds none while every share that becomes free is taken by a smaller stage. When it
  has waited long enough, no smaller one is offered.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ablate.schedule.fitting import SMALLEST_SHARE, Growable, Node, Request, Shape

MOMENTS_S = 10.0
"""Within this time a free place is taken, and one that a stage leaves is free; Ray's autoscaler looks every 5 s."""

NODE_S = 600.0
"""A node that was asked for and has not come by then is not waited for: smaller stages no longer go first."""

UNKNOWN_WAITING = 16
"""Where it is not known what may come, as many stages wait at a time as are at work, and at least this many."""

MANY = 1_000_000
"""A limit of more nodes than this counts as none."""

Verdict: TypeAlias = Literal["later", "here", "grow"]
"""Whether a stage is offered: not yet; it fits the nodes that are there; it takes a node, or a worker's end."""

Counts: TypeAlias = tuple[tuple[Shape, int], ...]
"""How many nodes there are of each shape, the smallest first."""


@dataclass(frozen=True)
class Nodes:
    """The nodes of a cluster as they are, and as they are at most."""

    present: Counts
    fullest: Counts | None  # None if that cannot be known

    @classmethod
    def of(cls, present: Iterable[Node], growable: Growable) -> Nodes:
        """Return the nodes of a cluster that may grow some types of them.

        A node that is there counts among those that its type may have. It does not say its type: CPUs and GPUs do.
        """
        there = Counter(node.shape for node in present)
        if growable is None:
            return cls(_counts(there), None)
        most: Counter[tuple[float, float]] = Counter()
        for kind in growable:
            most[kind.shape.cpus, kind.shape.gpus] += kind.max_count
        fullest = Counter(there)
        for kind in growable:
            fullest[kind.shape] += 0  # named even where none is there
        for size, at_most in most.items():
            shapes = [shape for shape in fullest if (shape.cpus, shape.gpus) == size]
            shapes.sort(key=lambda shape: (there[shape], len(shape.accelerator_types)))
            missing = at_most - sum(there[shape] for shape in shapes)
            fullest[shapes[-1]] += max(0, missing)  # more are like those that are there
        return cls(_counts(there), _counts(fullest))

    @property
    def may_come(self) -> bool:
        """Whether nodes are missing that the cluster may grow."""
        return self.fullest != self.present


@dataclass(frozen=True)
class Offered:
    """A stage that was offered to Ray and has not left its worker yet."""

    request: Request
    placed: bool  # it has a worker
    waited_s: float = 0.0  # until now or until it was placed
    here: bool = False  # it fitted the nodes that were there when it was offered
    ended_s: float | None = None  # seconds since its work was done; None while it is not


def verdict(request: Request, offered: Sequence[Offered], nodes: Nodes) -> Verdict:
    """Return whether a stage with this request is offered beside those that are; the first always is.

    Args:
        request: of the stage, which could start now.
        offered: the stages that were offered and still wait, or hold their place.
        nodes: of the cluster.
    """
    beside = _counted(stage.request for stage in offered)
    here = holds(nodes.present, _counted([request], beside))
    if not offered:
        return "here" if here else "grow"
    waiting = [stage for stage in offered if not stage.placed]
    if nodes.fullest is None:
        if not here and len(waiting) >= max(UNKNOWN_WAITING, len(offered) - len(waiting)):
            return "later"
    elif not holds(nodes.fullest, beside):
        return "later"
    if _goes_before_larger(request, waiting, missing=not holds(nodes.present, beside)):
        return "later"
    if here:
        return "here"
    return "later" if nodes.may_come and _place_within_moments(request, offered, nodes.present) else "grow"


def _goes_before_larger(request: Request, waiting: Sequence[Offered], *, missing: bool) -> bool:
    """Whether a stage would take what a larger one has waited for long enough."""
    patience_s = NODE_S if missing else MOMENTS_S
    return any(stage.request.gpus > request.gpus and stage.waited_s > patience_s for stage in waiting)


def _place_within_moments(request: Request, offered: Sequence[Offered], present: Counts) -> bool:
    """Whether places that are there are just being left or taken."""
    if any(stage.here and not stage.placed and stage.waited_s < MOMENTS_S for stage in offered):
        return True
    staying = [stage.request for stage in offered if stage.ended_s is None or stage.ended_s > MOMENTS_S]
    return len(staying) < len(offered) and holds(present, _counted([request, *staying]))


# --- what fits -------------------------------------------------------------------------------------

_GPU = round(1 / SMALLEST_SHARE)
"""A GPU, in the smallest shares."""

_Amounts: TypeAlias = frozenset[tuple[Request, int]]


@dataclass
class _Open:
    """A node that is being filled."""

    cpus: float
    gpus: list[int]  # what is free of each, in the smallest shares

    def take(self, request: Request) -> bool:
        """Take what a stage asks for; False if there is not enough."""
        units = round(request.gpus / SMALLEST_SHARE)
        whole, share = divmod(units, _GPU) if units >= _GPU else (0, units)
        empty = [gpu for gpu, free in enumerate(self.gpus) if free == _GPU][:whole]
        fullest = min(
            (gpu for gpu, free in enumerate(self.gpus) if free >= share), key=self.gpus.__getitem__, default=-1
        )
        if self.cpus < request.cpus or len(empty) < whole or (share and fullest < 0):
            return False
        self.cpus -= request.cpus
        for gpu in empty:
            self.gpus[gpu] = 0
        if share:
            self.gpus[fullest] -= share
        return True


@functools.lru_cache(maxsize=1024)
def holds(nodes: Counts, requests: _Amounts) -> bool:
    """Return whether nodes hold so many stages at the same time, the largest placed first, on the smallest that fits.

    Args:
        nodes: by shape.
        requests: what stages ask for, each with the number of such stages.
    """
    open_nodes: dict[Shape, list[_Open]] = {shape: [] for shape, _ in nodes}
    for request, count in sorted(requests, key=lambda item: (item[0].gpus, item[0].cpus), reverse=True):
        left = count
        for shape, number in nodes:
            if not shape.fits(request):
                continue
            opened = open_nodes[shape]
            at = 0  # a node that has no room for one of these stages has none for the next
            while left and (at < len(opened) or len(opened) < number):
                if at == len(opened):
                    opened.append(_Open(shape.cpus, [_GPU] * int(shape.gpus)))
                if opened[at].take(request):
                    left -= 1
                else:
                    at += 1
        if left:
            return False
    return True


def _counted(requests: Iterable[Request], more: _Amounts = frozenset()) -> _Amounts:
    counts = Counter(requests)
    for request, count in more:
        counts[request] += count
    return frozenset(counts.items())


def _counts(nodes: Mapping[Shape, int]) -> Counts:
    rank = sorted(nodes.items(), key=lambda item: (item[0].gpus, item[0].cpus, sorted(item[0].accelerator_types)))
    return tuple((shape, count) for shape, count in rank if count > 0)


# --- what is said of it ----------------------------------------------------------------------------


def place_words(request: Request) -> str:
    """Return what a stage waits for when every node is there: `a GPU`, `2 GPUs`, `a CPU core`."""
    if request.gpus:
        return "a GPU" if request.gpus <= 1 else f"{request.gpus:g} GPUs"
    return "a CPU core" if request.cpus <= 1 else f"{request.cpus:g} CPU cores"


def node_words(request: Request, nodes: Nodes) -> str | None:
    """Return which node a stage waits for, how many the cluster has and how many it may grow; None if all are there."""
    there = _number(nodes.present, request)
    node = f"a node with {place_words(request)}"
    if nodes.fullest is None:
        return f"{node} (the cluster has {there}; how many it may grow is not known)"
    most = _number(nodes.fullest, request)
    if most <= there:
        return None
    limit = "more" if most > MANY else f"to {most}"
    return f"{node} (the cluster has {there} and may grow {limit})"


def _number(nodes: Counts, request: Request) -> int:
    return sum(count for shape, count in nodes if shape.fits(request))
