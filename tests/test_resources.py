"""What each kind of stage asks one node for."""

import pytest

from ablate.errors import InputError
from ablate.running.resources import Resources
from ablate.schedule.fitting import Node, Request, Shape

GPU_NODE = Node("a", "10.0.0.1", Shape(8, 1, frozenset({"L4"})))
CPU_NODE = Node("b", "10.0.0.2", Shape(4))


def decide(*present, growable=(), address=None, **asked):
    asked = {
        "gpus_per_pretrain": None,
        "gpus_per_finetune": None,
        "cpus_per_stage": 1,
        "accelerator_type": None,
        **asked,
    }
    return Resources.decide(present=present, growable=growable, address=address, **asked)


def test_stages_ask_for_a_gpu_and_a_quarter_where_there_is_one():
    found = decide(GPU_NODE, CPU_NODE, cpus_per_stage=2)
    assert found.request("pretrain") == found.request("trial") == Request(2, 1.0)
    assert found.request("finetune") == Request(2, 0.25)
    assert decide(CPU_NODE).request("pretrain") == Request(1)


def test_a_bundle_names_what_ray_knows_and_the_accelerator_only_beside_a_gpu():
    found = decide(GPU_NODE, gpus_per_finetune=0, accelerator_type="L4")
    assert found.bundle("pretrain") == {"CPU": 1, "GPU": 1.0, "accelerator_type:L4": 0.001}
    assert found.bundle("finetune") == {"CPU": 1}


@pytest.mark.parametrize(("address", "where"), [(None, "this machine"), ("head:6379", "the cluster at head:6379")])
def test_what_no_node_has_is_refused_with_the_place(address, where):
    with pytest.raises(InputError, match=f"no node of {where} has 2 GPUs"):
        decide(GPU_NODE, address=address, gpus_per_pretrain=2)


def test_idle_gpus_and_unknown_nodes_are_noted():
    narrow = Node("a", "10.0.0.1", Shape(2, 1))
    (line,) = decide(narrow).notes(present=[narrow], growable=())
    assert "its GPUs hold 4 fine-tunings of 0.25 GPU, its CPUs only 2" in line
    found = decide(CPU_NODE, growable=None, gpus_per_pretrain=1, gpus_per_finetune=0)
    (line,) = found.notes(present=[CPU_NODE], growable=None)
    assert line.startswith("no node that is there has 1 GPU and 1 CPU for a pre-training")
    assert decide(CPU_NODE).notes(present=[CPU_NODE], growable=()) == []
