"""What fits a node, what is refused before a run with which words, and when CPUs keep stages from sharing GPUs."""

import math
import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ablate.errors import InputError
from ablate.schedule.fitting import (
    Node,
    NodeType,
    Request,
    Shape,
    decide_gpus,
    doubt_lines,
    refuse_unfit,
    shapes_of,
    sharing_lines,
    stock,
)

SMALL, WORKER, BIG = Shape(4), Shape(8, 1, frozenset({"L4"})), Shape(96, 8, frozenset({"H100"}))


def nodes(*shapes):
    return [Node(f"node{number}", f"10.0.0.{number}", shape) for number, shape in enumerate(shapes)]


def decide(present=(), growable=(), **asked):
    asked = {"gpus_per_pretrain": None, "gpus_per_finetune": None, "cpus_per_stage": 1, **asked}
    return decide_gpus(present=nodes(*present), growable=growable, where="the cluster at x:1", **asked)


def refusal(*arguments, **asked):
    with pytest.raises(InputError) as caught:
        decide(*arguments, **asked)
    return str(caught.value)


# --- defaults


@pytest.mark.parametrize(
    ("present", "growable", "expected"),
    [
        ([SMALL], (), (0, 0)),
        ([SMALL, WORKER], (), (1, 0.25)),
        ([SMALL], [NodeType("gpu", WORKER, 8)], (1, 0.25)),  # none is there yet, but may come
        ([SMALL], [NodeType("gpu", WORKER, 0)], (0, 0)),
        ([SMALL], None, (0, 0)),
    ],
)
def test_stages_ask_for_gpus_where_any_node_has_or_may_have_one(present, growable, expected):
    assert decide(present, growable) == expected


def test_what_is_asked_for_counts_before_the_defaults():
    assert decide([WORKER], gpus_per_pretrain=0.5, gpus_per_finetune=0) == (0.5, 0)
    assert decide([BIG], gpus_per_pretrain=8, cpus_per_stage=96) == (8, 0.25)


def test_a_shape_is_read_from_what_ray_names():
    resources = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H100": 1.0, "memory": 1e9, "node:10.0.0.1": 1.0}
    assert Shape.of(resources) == Shape(8, 1, frozenset({"H100"}))
    assert str(Shape.of(resources)) == "(8 CPU, 1 GPU H100)"
    assert str(Shape.of({})) == "(0 CPU)"


# --- refusals


def test_the_totals_of_several_nodes_do_not_count_for_a_request_must_fit_one():
    plain = Shape(8, 1)
    assert refusal([plain, plain], [NodeType("gpu-worker", plain, 8)], gpus_per_pretrain=2) == (
        "--gpus-per-pretrain must be at most 1: a stage runs on one node, and no node of the cluster at x:1 has 2 GPUs "
        "and 1 CPU: present 2 x (8 CPU, 1 GPU), may grow gpu-worker (8 CPU, 1 GPU) up to 8; got 2; lower it, or leave "
        "it out"
    )


def test_cpus_beside_gpus_are_refused_by_the_node_that_has_both():
    message = refusal([Shape(64), WORKER], cpus_per_stage=16)
    assert message.startswith(
        "--cpus-per-stage must be at most 8 beside --gpus-per-pretrain 1: a stage runs on one node, and no node of "
        "the cluster at x:1 has 1 GPU and 16 CPUs: present (64 CPU) and (8 CPU, 1 GPU L4); got 16; "
    )


def test_without_gpus_only_the_cpus_decide():
    message = refusal([SMALL], cpus_per_stage=5)
    assert message.startswith("--cpus-per-stage must be at most 4: ")
    assert decide([SMALL], cpus_per_stage=4) == (0, 0)


def test_a_gpu_where_there_is_none_is_refused_with_the_way_out():
    assert "--gpus-per-finetune must be at most 0" in refusal([SMALL], gpus_per_finetune=0.5)
    assert "leave it out to compute on the CPU where there is no GPU" in refusal([SMALL], gpus_per_finetune=0.5)


@pytest.mark.parametrize("gpus", [-1, 1.5, math.nan, math.inf, 1e-5])
def test_what_is_no_share_of_a_gpu_is_refused(gpus):
    assert "must be a share of a GPU between 0 and 1 or a whole number" in refusal([BIG], gpus_per_finetune=gpus)


def test_a_node_that_may_come_is_as_good_as_one_that_is_there():
    assert decide([SMALL], [NodeType("big", BIG, 1)], gpus_per_pretrain=8, cpus_per_stage=12) == (8, 0.25)
    assert "got 8" in refusal([SMALL], [NodeType("big", BIG, 0)], gpus_per_pretrain=8)


# --- accelerator types


def test_an_accelerator_type_must_exist_and_the_nearest_is_named():
    message = refusal([WORKER, BIG], accelerator_type="H10")
    assert message.startswith("--accelerator-type must be one of H100, L4, the accelerators of the cluster at x:1; ")
    assert "got 'H10' (did you mean 'H100'?)" in message
    assert "(did you mean 'H100'?)" in refusal([BIG], accelerator_type="h100")
    assert "there are no accelerators" in refusal([SMALL], accelerator_type="H100")


def test_a_request_counts_the_nodes_with_the_accelerator_alone():
    assert decide([WORKER, BIG], accelerator_type="H100", cpus_per_stage=96) == (1, 0.25)
    message = refusal([WORKER, BIG], accelerator_type="L4", cpus_per_stage=16)
    assert "no node of the cluster at x:1 has 1 GPU of type L4 and 16 CPUs" in message
    assert message.startswith("--cpus-per-stage must be at most 8 beside")


def test_stages_without_a_gpu_need_no_accelerator():
    assert decide([BIG, SMALL], accelerator_type="H100", gpus_per_finetune=0) == (1, 0)
    assert "--accelerator-type must be left out where no stage asks for a GPU" in refusal(
        [BIG], accelerator_type="H100", gpus_per_pretrain=0, gpus_per_finetune=0
    )


# --- what cannot be known


def test_where_it_is_unknown_what_may_come_nothing_is_refused_and_the_doubt_is_said():
    assert decide([SMALL], None, gpus_per_pretrain=4, gpus_per_finetune=0.5, accelerator_type="H100") == (4, 0.5)
    assert decide([SMALL], None, accelerator_type="H100") == (1, 0.25)
    requests = [("pre-training", Request(1, 4, "H100")), ("fine-tuning", Request(1))]
    (line,) = doubt_lines(requests, present=nodes(SMALL), growable=None)
    assert line.startswith("no node that is there has 4 GPUs of type H100 and 1 CPU for a pre-training, and which ")
    assert doubt_lines(requests, present=nodes(SMALL), growable=()) == []


def test_the_stock_is_counted_and_names_what_may_come():
    assert stock(nodes(SMALL, WORKER, WORKER), [NodeType("gpu", BIG, 3), NodeType("head", SMALL, 0)]) == (
        "present (4 CPU) and 2 x (8 CPU, 1 GPU L4), may grow gpu (96 CPU, 8 GPU H100) up to 3"
    )
    assert stock([], None) == "present none, what it may grow cannot be known from here"


# --- for any cluster

SHAPES = st.builds(
    Shape,
    st.integers(0, 64),
    st.integers(0, 8),
    st.frozensets(st.sampled_from(["A100", "H100", "L4"]), max_size=2),
)
TYPES = st.lists(st.builds(NodeType, st.sampled_from(["a", "b"]), SHAPES, st.integers(0, 4)), max_size=3)
GPUS = st.none() | st.sampled_from([0, 0.1, 0.25, 0.5, 1, 2, 4, 8])


@given(st.lists(SHAPES, max_size=4), TYPES, GPUS, GPUS, st.integers(1, 64), st.sampled_from([None, "A100", "H100"]))
def test_what_is_accepted_fits_a_node_and_what_is_refused_fits_none(present, growable, pretrain, finetune, cpus, kind):
    asked = {"gpus_per_pretrain": pretrain, "gpus_per_finetune": finetune, "cpus_per_stage": cpus}
    shapes = shapes_of(nodes(*present), growable)
    try:
        decided = decide(present, growable, accelerator_type=kind, **asked)
    except InputError:
        requests = [Request(cpus, gpus, kind) for gpus in (pretrain, finetune) if gpus is not None]
        might_run = [any(shape.fits(request) for shape in shapes) for request in requests]
        assume(len(requests) == 2 and any(request.gpus for request in requests))
        assert not all(might_run)
        return
    for gpus, wanted in zip(decided, (pretrain, finetune), strict=True):
        assert wanted in (None, gpus)
        request = Request(cpus, gpus, kind)
        shape = next(shape for shape in shapes if shape.fits(request))
        assert shape.cpus >= cpus
        assert shape.gpus >= gpus
        assert not gpus or kind is None or kind in shape.accelerator_types


@given(st.lists(SHAPES, min_size=1, max_size=4), st.sampled_from([0, 0.5, 1, 2]), st.integers(1, 64))
def test_the_limit_that_a_refusal_names_is_accepted(present, gpus, cpus):
    request = Request(cpus, gpus)
    assume(not any(shape.fits(request) for shape in present))
    with pytest.raises(InputError) as caught:
        refuse_unfit(request, flag="--gpus-per-pretrain", present=nodes(*present), growable=(), where="here")
    words = str(caught.value).partition(":")[0].split()
    limit = float(words[words.index("most") + 1])
    mended = Request(limit, gpus) if words[0] == "--cpus-per-stage" else Request(cpus, limit)
    if mended.cpus >= 1 and any(shape.cpus >= cpus for shape in present):
        refuse_unfit(mended, flag="--gpus-per-pretrain", present=nodes(*present), growable=(), where="here")


# --- sharing GPUs


def lines(shape, *, cpus, finetune=0.25, pretrain=1.0):
    return sharing_lines([shape], gpus_pretrain=pretrain, gpus_finetune=finetune, cpus_per_stage=cpus)


def test_cpus_decide_how_many_finetunings_share_a_gpu():
    node = Shape(8, 1)
    assert lines(node, cpus=1) == lines(node, cpus=2) == []  # 8 / 2 = 4 stages, as many as quarters of a GPU
    (line,) = lines(node, cpus=4)
    assert line == (
        "on a node of 8 CPUs and 1 GPU the CPUs decide: its GPUs hold 4 fine-tunings of 0.25 GPU, its CPUs only 2 with "
        "--cpus-per-stage 4, so 2 run at a time; --cpus-per-stage 2 lets all 4 run"
    )


def test_pretrainings_that_leave_gpus_idle_are_named_too():
    both = lines(Shape(12, 8), cpus=3)
    assert [words in line for words, line in zip(("32 fine-tunings", "8 pre-trainings"), both, strict=True)] == [
        True
    ] * 2
    assert "give fewer and larger shares by --gpus-per-finetune, or use nodes with more CPUs" in both[0]
    assert "--cpus-per-stage 1 lets all 8 run" in both[1]


def test_nodes_without_gpus_and_stages_without_gpus_need_no_line():
    assert lines(Shape(2), cpus=2) == lines(Shape(1, 1), cpus=1, finetune=0) == []


@given(st.integers(1, 64), st.integers(1, 8), st.sampled_from([0.1, 0.25, 0.3, 0.5, 1.0]), st.integers(1, 16))
def test_the_cure_lets_all_share_and_one_more_cpu_would_not(cpus, gpus, share, per_stage):
    node = Shape(cpus, gpus)
    for line in lines(node, cpus=per_stage, finetune=share, pretrain=0):
        cure = line.rpartition("--cpus-per-stage ")[2]
        if "lets all" in cure:
            best = int(cure.split()[0])
            assert best < per_stage
            assert lines(node, cpus=best, finetune=share, pretrain=0) == []
            assert lines(node, cpus=best + 1, finetune=share, pretrain=0)
        else:
            assert lines(node, cpus=1, finetune=share, pretrain=0) or per_stage == 1


def test_deciding_needs_no_torch_and_no_ray():
    code = "import sys, ablate.schedule.fitting; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
