"""Decode steps of language models whose kernels are dependents: the same numbers, and the rules are kept.

Interpreted, launches do not overlap: that they may is shown by what each program does before it waits. On a GPU graphs
of such steps give the same bits again and again.
"""

import importlib
from contextlib import nullcontext

import pytest
import torch
import triton
import triton.language as tl

from basedbench.kernels import dependents, row_linear_launch
from basedbench.kernels.dependents_triton import follow
from basedbench.models.language import LanguageConfig, LanguageModel
from tests.kernels import interpreted_gluon
from tests.kernels.triton.conftest import interpreted
from tests.kernels.watched_dependents import watched

products = importlib.import_module("basedbench.kernels.row_linear")
WIDTHS = {"vocab_size": 80, "d_model": 128}
ATTENTION = {"heads": 4, "mlp_inner": 64}
CONFIGS = {
    "based": LanguageConfig(**WIDTHS, **ATTENTION, layers=("conv", "linear", "window"), window=16, feature_dim=8),
    "attention": LanguageConfig(**WIDTHS, **ATTENTION, layers=("attention",), rotary_fraction=0.5),
    "mamba": LanguageConfig(**WIDTHS, layers=("mamba", "mamba")),
    "mamba2": LanguageConfig(**WIDTHS, layers=("mamba2",), d_state=16, ssm_head_dim=32),
}
BATCH, STEPS = 3, 3


@pytest.fixture
def on_hopper(monkeypatch):
    """Tensors on the CPU take the kernels, in blocks of dependents."""
    if not interpreted:
        return
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(dependents, "capable", lambda device: True)
    monkeypatch.setattr(products, "_processors", lambda device: 132)
    monkeypatch.setattr(products, "unsupported", lambda *given: None)
    monkeypatch.setattr(row_linear_launch, "tensor_map", lambda x, *more: interpreted_gluon.Map(x, *more))


def model_of(name, device):
    dtype = torch.float16 if interpreted else torch.bfloat16
    model = LanguageModel(CONFIGS[name], seed=1, dtype=dtype, attention="ours")
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):  # at the init's scales logits would be all but zero
            module.weight.data *= 2
    return model.to(device)


@torch.inference_mode()
def run(model, device, chained, largest, monkeypatch, watch):
    """Logits of some steps and the state behind them; what was launched in each step."""
    monkeypatch.setattr(dependents, "ENABLED", chained)
    monkeypatch.setattr(products, "LARGEST_CHOSEN", largest)
    state = model.init_state(BATCH, 24, model.dtype, device)
    logits, launches = [], []
    for step in range(STEPS):
        tokens = torch.arange(BATCH, device=device) * 7 + step
        with watched([*model.parameters(), *state.values()]) if watch else nullcontext() as watcher:
            found, _ = model.step(tokens, state)
        logits.append(found.clone())
        launches.append(watcher)
    return torch.stack(logits), state, launches


@pytest.mark.parametrize("name", CONFIGS)
def test_steps(name, device, on_hopper, monkeypatch, relative_error):
    model = model_of(name, device)
    plain, state, seen = run(model, device, False, 0, monkeypatch, interpreted)
    chained, state_chained, seen_chained = run(model, device, True, 0, monkeypatch, interpreted)
    whole, _, seen_whole = run(model, device, True, 64, monkeypatch, interpreted)
    assert plain.norm() > 0.1
    assert torch.equal(plain, chained)
    assert all(torch.equal(state[key], state_chained[key]) for key in state)
    assert relative_error(whole, plain.double()) < 5e-2
    if interpreted:
        for before, after, products_too in zip(seen, seen_chained, seen_whole, strict=True):
            assert not any(before.launches)
            assert after.launches == [False] + [True] * (len(before.launches) - 1)
            assert products_too.launches == [False] * 2 + [True] * (len(products_too.launches) - 2)  # counters between
            assert len(products_too.launches) > len(after.launches) > 3
            assert after.ahead > 0


@pytest.mark.skipif(not interpreted, reason="programs are watched by the interpreter")
@pytest.mark.parametrize(
    ("fault", "message"),
    [("none", None), ("late", "not every program waits"), ("writes", "before the wait"), ("reads", "neither weight")],
)
def test_faults_show(fault, message, device):
    x, y, weight = (torch.ones(4, device=device) for _ in range(3))

    def launch():
        with watched([weight]):
            faulty_kernel[(2,)](x, y, weight, FAULT=fault, EARLY=True, launch_pdl=True)

    if message is None:
        launch()
        assert y.tolist() == [2, 2, 1, 1]
    else:
        with pytest.raises(Exception, match=message):
            launch()


@triton.jit
def faulty_kernel(x, y, weight, FAULT: tl.constexpr, EARLY: tl.constexpr):
    i = tl.program_id(0)
    w = tl.load(weight + i)
    if FAULT == "writes":
        tl.store(y + i, w)
    if FAULT == "reads":
        w += tl.load(x + i)
    if FAULT != "late" or i == 0:
        follow(EARLY)
        tl.store(y + i, w + tl.load(x + i))


def test_blocks():
    """Nothing outside of a block, nothing for its first launch; a block in a block is a part of it."""
    assert dependents.dependent() == {}
    cpu = torch.device("cpu")
    assert not dependents.in_block()
    assert dependents.take_counters(1) is None
    block = dependents._block.set(dependents._Block())
    try:
        assert dependents.in_block()
        assert dependents.dependent() == {}
        with dependents.dependents(cpu):
            assert dependents.dependent() == {"EARLY": True, "launch_pdl": True}
        assert dependents.take_counters(1) is None
        assert dependents.counters_left(cpu) == dependents.ROOM
        assert dependents.dependent() == {}  # behind the memset
        first, second = dependents.take_counters(3), dependents.take_counters(5)
        assert (first.tolist(), len(second)) == ([0] * 3, 5)
        assert second.data_ptr() == first.data_ptr() + 4 * len(first)
        assert dependents.counters_left(cpu) == dependents.ROOM - 8
        assert dependents.dependent() == {"EARLY": True, "launch_pdl": True}
        assert dependents.take_counters(dependents.ROOM - 7) is None
    finally:
        dependents._block.reset(block)
    assert dependents.counters_left(cpu) == 0


@pytest.mark.skipif(interpreted, reason="graphs")
@pytest.mark.parametrize("name", CONFIGS)
def test_graphs_repeat(name, device, monkeypatch):
    model, graph = model_of(name, device), torch.cuda.CUDAGraph()
    monkeypatch.setattr(dependents, "ENABLED", True)
    tokens = torch.arange(BATCH, device=device)
    with torch.inference_mode():
        state = model.init_state(BATCH, 24, model.dtype, device)
        model.step(tokens, state)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            logits, _ = model.step(tokens, state)
        found = []
        for _ in range(2):
            for tensor in state.values():
                tensor.zero_()
            rounds = []
            for _ in range(8):
                graph.replay()
                rounds.append(logits.clone())
            found.append(torch.stack(rounds))
    assert torch.equal(*found)
