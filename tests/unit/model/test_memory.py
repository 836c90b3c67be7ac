"""`verse.model.memory`: what fits a GPU, and what happens where it does not."""

import ctypes
import resource
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from tiny_models import build

from tools.bench.full_size import SHAPES
from verse.errors import UserError
from verse.model import loading, memory
from verse.model.layers import linear_layers
from verse.model.memory import GIB

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def breeze(tmp_path_factory):
    """A model of 7 billion parameters in shape alone, as the skeleton is."""
    return skeleton("breeze")


def tokens(together):
    """That go through a pass of the homework's poems, and that it predicts."""
    return 133 + together * 64, together * 33


def skeleton(name):
    make, config = SHAPES[name]
    with torch.device("meta"):
        return make(config)


def best(model, free, dtype=torch.bfloat16, poems=16):
    sizes = memory.sizes(model, dtype, "nf4")
    plans = memory.plans_for_training(sizes, poems, tokens, rank=8)
    ways = memory.fitting(plans, free * GIB)
    assert all(way.estimated_bytes > 0 for way in ways)
    return ways


def test_memory_that_a_model_of_7_billion_needs(breeze):
    def chosen(*arguments, **options):
        way = best(breeze, *arguments, **options)[0]
        return way.dequantized, way.activation_budget, way.micro_batch_size

    assert chosen(139) == (True, 1, 16)
    assert chosen(139, poems=64) == (True, 1, 64)
    assert chosen(40, poems=64)[:2] == (True, 1)
    assert chosen(16)[:2] == (False, 1)
    assert chosen(14.5, dtype=torch.float16)[0] is False
    assert chosen(12) == (False, 0.75, 16)
    assert chosen(10.5) == (False, 0.5, 16)
    assert chosen(8) == (False, 0, 16)
    assert chosen(5.3) == (False, 0, 8)
    assert best(breeze, 4.55)[0].output_apart and best(breeze, 4.55)[0].micro_batch_size == 8
    assert not best(breeze, 5)[0].output_apart
    with pytest.raises(UserError, match=r"GiB of memory are needed, and 4\.0 may be used"):
        best(breeze, 4)


def test_each_way_needs_less_than_one_before_it_of_its_kind(breeze):
    ways = best(breeze, 1000, poems=64)
    kinds = [(way.dequantized, way.activation_budget) for way in ways]
    assert list(dict.fromkeys(kinds)) == [
        (True, 1),
        (False, 1),
        (False, 0.75),
        (False, 0.5),
        (False, 0),
    ]
    for kind in kinds:
        needs = [
            way.estimated_bytes for way in ways if (way.dequantized, way.activation_budget) == kind
        ]
        assert needs == sorted(needs, reverse=True)
    assert ways[-1].micro_batch_size == 1


def test_a_mixture_of_experts_is_held_in_4_bits(monkeypatch):
    sizes = memory.sizes(skeleton("qwen3-30b-a3b"), torch.bfloat16, "nf4")
    assert sizes.plain > 56 * GIB and sizes.four_bit < 16 * GIB
    monkeypatch.setattr(memory.distributed, "size", lambda: 2)

    def kinds(rank):
        plans = memory.plans_for_training(sizes, 16, tokens, rank)
        return [(p.dequantized, p.activation_budget, p.sharded) for p in plans], plans

    # A layer's experts are copied to be adapted: all copies stay, or none.
    found, _ = kinds(8)
    order = [(True, 1, False), (True, 0, False), (False, 0, False), (True, 0, True)]
    assert list(dict.fromkeys(found)) == order
    least = [min(plan.estimated_bytes for plan in kinds(rank)[1]) for rank in (8, 2)]
    assert 7 * GIB > least[0] - least[1] > 5 * GIB


def test_a_model_that_is_not_quantized_has_no_4_bit_ways(breeze):
    sizes = memory.sizes(breeze, torch.bfloat16, "none")
    ways = memory.plans_for_training(sizes, 16, tokens, rank=8)
    assert {way.dequantized for way in ways} == {True}
    assert {way.activation_budget for way in ways} == {1, 0.75, 0.5, 0}
    assert {way.dequantized for way in memory.plans_for_generation(sizes, 16, 200)} == {True}


def test_embeddings_stay_in_main_memory_unless_the_output_layer_needs_them(breeze):
    def beside(model):
        sizes = memory.sizes(model, torch.bfloat16, "nf4")
        rounded = sum(layer.weight.numel() for layer in linear_layers(model).values())
        return sizes.four_bit - rounded * memory.NF4_BYTES

    embeddings = 61872 * 4096 * 2
    assert beside(breeze) == pytest.approx(embeddings, rel=0.01)  # the output layer's
    make, config = SHAPES["breeze"]
    with torch.device("meta"):
        tied = make(type(config)(**config.to_dict() | {"tie_word_embeddings": True}))
    assert beside(tied) == pytest.approx(embeddings, rel=0.01)  # the one of both


def test_passes_are_as_large_as_memory_allows(breeze):
    sizes = memory.sizes(breeze, torch.bfloat16, "nf4")
    at_once = [plan.micro_batch_size for plan in memory.plans_for_generation(sizes, 300, 94)]
    last = at_once[at_once.index(300, 1) :]
    assert last[:6] == [300, 150, 100, 75, 60, 43] and last[-1] == 1
    assert all(more <= 2 * fewer for more, fewer in pairwise(last))


def test_the_skeleton_has_the_sizes_of_the_model(tmp_path):
    settings = build("llama, tied, grouped queries", tmp_path)
    skeleton = loading.load_skeleton(settings)
    model = loading.load_model(settings, CPU, torch.float32)
    assert all(weight.is_meta for weight in skeleton.parameters())
    for quantization in ("nf4", "none"):
        assert memory.sizes(skeleton, torch.float32, quantization) == memory.sizes(
            model, torch.float32, quantization
        )


def test_a_promise_of_memory_is_kept(monkeypatch):
    held = []
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (20 * GIB, 80 * GIB))
    monkeypatch.setattr(
        "torch.cuda.set_per_process_memory_fraction", lambda share, _: held.append(share)
    )
    gpu = torch.device("cuda")
    assert memory.available_bytes(gpu, "auto") == 19.75 * GIB and held == []
    assert memory.available_bytes(gpu, 16) == pytest.approx(15.15 * GIB)
    assert held == [pytest.approx(15.15 / 80)]
    assert memory.available_bytes(gpu, 100) == 19.75 * GIB


def test_apples_gpu_has_what_the_system_recommends(monkeypatch):
    held = []
    monkeypatch.setattr("torch.mps.recommended_max_memory", lambda: 12 * GIB)
    monkeypatch.setattr("torch.mps.driver_allocated_memory", lambda: 2 * GIB)
    monkeypatch.setattr("torch.mps.set_per_process_memory_fraction", held.append)
    gpu = torch.device("mps")
    assert memory.available_bytes(gpu, "auto") == 10 * GIB and held == []
    assert memory.available_bytes(gpu, 6) == 6 * GIB and held == [0.5]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GiB, max allowed: 9 GiB)"),
    ],
)
def test_the_next_way_is_tried_where_memory_runs_out(capsys, error):
    ways = [memory.MemoryPlan(micro_batch_size=poems) for poems in (4, 2, 1)]
    tried = []

    def work(way):
        tried.append(way.micro_batch_size)
        if way.micro_batch_size > 1:
            raise error
        return "done"

    assert memory.run_with_oom_fallback(ways, work, "buy more") == "done"
    assert tried == [4, 2, 1]
    assert len(capsys.readouterr().out.splitlines()) == 2
    with pytest.raises(UserError, match="out of GPU memory: buy more"):
        memory.run_with_oom_fallback(ways[:2], work, "buy more")
    with pytest.raises(RuntimeError, match="a bug"):
        memory.run_with_oom_fallback(ways, raises(RuntimeError("a bug")), "buy more")


def raises(error):
    def work(_):
        raise error

    return work


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not on glibc")
def test_main_memory_that_is_freed_is_kept_for_the_next_tensor():
    program = """
import resource, torch
from verse.model.memory import keep_freed
def faults():
    for _ in range(20):
        torch.zeros(64 << 20, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(64 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults())
keep_freed()
print(faults())
"""
    found = subprocess.check_output([sys.executable, "-c", program], text=True)
    given_back, kept = map(int, found.split())
    pages = (64 << 20) // resource.getpagesize()
    # Given back, all ten tensors meet new pages. Kept, the first one to six tensors of all do, and
    # later a stray page of Python's own.
    assert kept < 0.1 * pages and given_back > 9.9 * pages
