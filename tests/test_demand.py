"""How many stages are offered to Ray at a time."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate.running.ray_tune.demand import Nodes, Offered, holds, node_words, place_words, verdict
from ablate.schedule.fitting import Node, NodeType, Request, Shape

GPU = Shape(8, 1)
WHOLE, QUARTER = Request(1, 1), Request(1, 0.25)


def present(*shapes):
    return [Node(f"node{number}", "host", shape) for number, shape in enumerate(shapes)]


def nodes(count, most=0, shape=GPU):
    return Nodes.of(present(*[shape] * count), [NodeType("worker", shape, most)] if most else ())


def held(*shapes, **counts):
    """Whether nodes hold stages: pretrain, finetune, others by name."""
    asked = {"whole": WHOLE, "quarter": QUARTER, "cpu": Request(1), "two": Request(1, 2), "wide": Request(4, 0.25)}
    return holds(Nodes.of(present(*shapes), ()).present, frozenset((asked[name], n) for name, n in counts.items()))


def test_quarters_pack_and_whole_gpus_are_kept_apart():
    assert held(GPU, GPU, quarter=8)
    assert not held(GPU, GPU, quarter=9)
    assert held(GPU, GPU, whole=1, quarter=4)
    assert not held(GPU, GPU, whole=1, quarter=5)
    assert held(Shape(8, 2), two=1)
    assert not held(GPU, GPU, two=1)  # a stage runs on one node
    assert held(Shape(8, 4), two=1, whole=1, quarter=4)


def test_thirds_do_not_share_what_is_left_of_three_quarters():
    third = Request(1, 0.3)
    there = nodes(1).present
    assert holds(there, frozenset({(third, 3)}))
    assert not holds(there, frozenset({(third, 2), (Request(1, 0.5), 1)}))


def test_cpus_decide_where_they_are_scarce():
    assert held(GPU, wide=2)
    assert not held(GPU, wide=3)
    assert held(Shape(2), GPU, cpu=2, quarter=4)  # those without a GPU take the node that has none
    assert not held(Shape(2), GPU, cpu=11)


def test_accelerators_must_be_of_the_type_that_is_asked_for():
    h100, t4 = Shape(8, 1, frozenset({"H100"})), Shape(8, 1, frozenset({"T4"}))
    there = Nodes.of(present(h100, t4), ()).present
    wanted = Request(1, 1, "H100")
    assert holds(there, frozenset({(wanted, 1), (QUARTER, 4)}))
    assert not holds(there, frozenset({(wanted, 2)}))


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 30))
def test_on_nodes_of_one_gpu_packing_is_counting(count, whole, quarter):
    needed = whole + -(-quarter // 4)
    assert holds(nodes(count).present, frozenset({(WHOLE, whole), (QUARTER, quarter)})) == (needed <= count)


def test_what_is_there_counts_among_what_may_come():
    some = nodes(3, 16)
    assert (some.present, some.fullest, some.may_come) == (((GPU, 3),), ((GPU, 16),), True)
    assert not nodes(16, 16).may_come
    assert not nodes(2).may_come
    head = Shape(2)
    both = Nodes.of(present(head, GPU), [NodeType("head", head, 0), NodeType("worker", GPU, 2)])
    assert both.fullest == ((head, 1), (GPU, 2))
    named = Shape(8, 1, frozenset({"T4"}))  # Ray finds the accelerator on the node; the file did not say it
    assert Nodes.of(present(named), [NodeType("worker", GPU, 4)]).fullest == ((named, 4),)
    assert Nodes.of(present(GPU), None).fullest is None
    assert Nodes.of(present(GPU, GPU, GPU), [NodeType("worker", GPU, 2)]).fullest == ((GPU, 3),)  # some were added


def waiting(request, seconds=0.0, *, here=False):
    return Offered(request, placed=False, waited_s=seconds, here=here)


def at_work(request, ended_s=None):
    return Offered(request, placed=True, ended_s=ended_s)


def offers(request, there, offered=()):
    """Return how many stages with this request are offered at once beside others, and the first verdict."""
    offered, verdicts = list(offered), []
    while len(verdicts) < 1000 and (now := verdict(request, offered, there)) != "later":
        verdicts.append(now)
        offered.append(waiting(request, here=now == "here"))
    return verdicts


def test_from_nothing_all_that_the_cluster_may_ever_hold_is_asked_for_at_once_and_one_more():
    assert offers(QUARTER, nodes(0, 16)) == ["grow"] * 65
    assert offers(WHOLE, nodes(0, 16)) == ["grow"] * 17
    assert offers(QUARTER, nodes(0, 16, Shape(2, 1))) == ["grow"] * 33  # CPUs for two on each


def test_on_a_cluster_that_does_not_grow_one_waits_beyond_what_fits():
    assert offers(QUARTER, nodes(2)) == ["here"] * 8 + ["grow"]
    assert offers(QUARTER, nodes(2), [at_work(WHOLE), at_work(WHOLE)]) == ["grow"]
    assert offers(QUARTER, nodes(2), [at_work(WHOLE), at_work(WHOLE), waiting(WHOLE)]) == []


def test_nodes_that_are_there_are_filled_before_more_are_asked_for():
    first = offers(QUARTER, nodes(1, 4))
    assert first == ["here"] * 4
    assert offers(QUARTER, nodes(1, 4), [waiting(QUARTER, 5, here=True)] * 4) == []
    assert offers(QUARTER, nodes(1, 4), [at_work(QUARTER)] * 4) == ["grow"] * 13
    slow = [waiting(QUARTER, 11, here=True)] * 4  # somebody else is on that node
    assert offers(QUARTER, nodes(1, 4), slow) == ["grow"] * 13


def test_no_node_is_asked_for_while_a_stage_leaves_its_place():
    ending = [at_work(WHOLE, ended_s=1.0)]
    assert offers(QUARTER, nodes(1, 4), ending) == []
    assert offers(QUARTER, nodes(1, 4), [at_work(WHOLE, ended_s=11.0)]) == ["grow"] * 13
    assert offers(QUARTER, nodes(1), ending) == ["grow"]  # where no node may come, nothing is asked for
    assert offers(WHOLE, nodes(1, 4), [*ending, at_work(WHOLE)]) == ["grow"] * 3  # more than it leaves is needed


@pytest.mark.parametrize("there", [nodes(2), nodes(2, 2)])
def test_where_every_node_is_there_a_stage_that_waited_for_a_whole_gpu_is_not_overtaken_for_ever(there):
    shares = [at_work(QUARTER)] * 3  # one on one node, two on the other
    assert offers(QUARTER, there, [*shares, waiting(WHOLE, 5)])[0] == "here"
    assert offers(QUARTER, there, [*shares, waiting(WHOLE, 11)]) == []
    assert offers(WHOLE, there, [*shares, waiting(WHOLE, 11)]) == ["grow"]


def test_while_a_node_may_come_smaller_stages_go_first_but_not_for_ever():
    full = [at_work(QUARTER)] * 7
    assert offers(QUARTER, nodes(2, 4), [*full, waiting(WHOLE, 300)])[0] == "grow"
    assert offers(QUARTER, nodes(2, 4), [*full, waiting(WHOLE, 601)]) == []


def test_where_nobody_knows_what_may_come_the_demand_doubles_what_is_at_work():
    unknown = Nodes(nodes(0).present, None)
    assert offers(QUARTER, unknown) == ["grow"] * 16
    five = Nodes(nodes(5).present, None)
    assert offers(QUARTER, five, [at_work(QUARTER)] * 20) == ["grow"] * 20
    assert offers(QUARTER, Nodes(nodes(8).present, None))[:32] == ["here"] * 32  # what is there is filled at once


def test_the_first_stage_is_always_offered():
    for there in (nodes(0), nodes(0, 1), Nodes((), None)):
        assert verdict(Request(64, 8), [], there) == "grow"


def test_waits_in_words():
    assert place_words(QUARTER) == "a GPU"
    assert place_words(Request(2, 2)) == "2 GPUs"
    assert place_words(Request(4)) == "4 CPU cores"
    assert place_words(Request(1)) == "a CPU core"
    assert node_words(QUARTER, nodes(1, 4)) == "a node with a GPU (the cluster has 1 and may grow to 4)"
    assert node_words(QUARTER, nodes(4, 4)) is None
    assert node_words(QUARTER, nodes(4)) is None
    assert node_words(Request(1, 2), nodes(1, 4)) is None  # no such node: refused before the run
    unknown = Nodes(nodes(2).present, None)
    assert node_words(WHOLE, unknown) == "a node with a GPU (the cluster has 2; how many it may grow is not known)"
    assert node_words(WHOLE, nodes(2, sys.maxsize)) == "a node with a GPU (the cluster has 2 and may grow more)"
