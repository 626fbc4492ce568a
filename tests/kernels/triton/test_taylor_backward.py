"""Gradients of taylor_attention in Gluon: without a GPU the kernels' source runs as Python."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from basedbench.kernels import taylor_attention_triton, taylor_backward_gluon, taylor_gluon
from basedbench.kernels.taylor_attention import reference
from basedbench.kernels.taylor_features import taylor_feature_map
from tests.kernels.gluon_as_python import POISON, Launcher, kernel_arguments, kernels_as_python

FLOOR = 2e-6


def tensors(randn, length, value_dim, heads=2) -> list[Tensor]:
    return [randn(1, length, heads, width).bfloat16() for width in (16, 16, value_dim, value_dim)]


def gradients(q, k, v, dy, state, dtype) -> list[Tensor]:
    leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    state = state if state is None or dtype != torch.float64 else state.double()
    return list(torch.autograd.grad(reference(*leaves, initial_state=state), leaves, dy.to(dtype)))


def normaliser(q, k, state) -> Tensor:
    s = torch.einsum("blhk,bmhk->bhlm", q.double(), k.double()) / 4
    z = (1 + s + s * s / 2).tril().sum(-1)
    if state is not None:
        z += torch.einsum("blhf,bhf->bhl", taylor_feature_map(q.double()), state[..., -1].double())
    return z


def compare(ours, q, k, v, dy, state=None) -> None:
    exact, same = (gradients(q, k, v, dy, state, dtype) for dtype in (torch.float64, torch.bfloat16))
    for name, a, b, c in zip(("dq", "dk", "dv"), ours, same, exact, strict=True):
        error, reference_error = (((x.double() - c).norm() / c.norm()).item() for x in (a, b))
        assert error <= 2 * reference_error + FLOOR, name


# Whole sequences, segments, a last tile that is not full.
@pytest.mark.skipif(torch.cuda.is_available(), reason="there the kernels themselves are tested")
@pytest.mark.parametrize(
    ("length", "value_dim", "segment", "with_state"),
    [(128, 64, 128, False), (200, 48, 128, False), (300, 64, 128, True), (100, 64, 128, True)],
)
def test_sweeps_as_python(randn, monkeypatch, length, value_dim, segment, with_state):
    kernels = kernels_as_python()

    def wrap(name):
        def launch(*arguments, **options):
            return getattr(kernels, name)(*kernel_arguments(arguments, (dq, dk)), **options)

        return Launcher(kernels, launch)

    names = [name for name in vars(kernels) if name.endswith("_kernel")]
    fakes = SimpleNamespace(**{name: wrap(name) for name in names})
    q, k, v, dy = tensors(randn, length, value_dim)
    state = None
    if with_state:
        state = reference(*tensors(randn, 5, value_dim)[:3], return_state=True)[1].float().contiguous()
    exact_state = None if state is None else state.double()
    y = reference(q.double(), k.double(), v.double(), initial_state=exact_state).bfloat16()
    inverse = (1 / normaliser(q, k, state)).float()
    delta, dq, dk, dv = (torch.full_like(x, POISON) for x in (inverse, q, k, v))
    cut = taylor_gluon.plan(1, length, 2, value_dim)._replace(segment=segment, segments=-(-length // segment))
    slots = torch.full(taylor_gluon.slots_shape(cut), POISON)
    monkeypatch.setattr(taylor_gluon, "plan", lambda *_: cut)
    monkeypatch.setattr(taylor_gluon, "_map", lambda x, rows, columns: x)
    for module in (taylor_gluon, taylor_backward_gluon):
        monkeypatch.setattr(module, "_kernels", lambda: fakes)
        monkeypatch.setattr(module, "ModuleType", SimpleNamespace)
    taylor_gluon.forward(q, k, v, state, torch.empty_like(y), torch.empty_like(inverse), None, slots)
    kept = slots.clone()
    taylor_backward_gluon.backward(q, k, v, state, y, inverse, dy, delta, dq, dk, dv, slots)
    assert torch.equal(slots.view(torch.int32), kept.view(torch.int32))
    compare((dq, dk, dv), q, k, v, dy, state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Gluon needs a GPU")
@pytest.mark.parametrize("segments", [1, 4])
@pytest.mark.parametrize(
    ("length", "value_dim", "with_state"),
    [
        (577, 64, False), (1000, 48, False), (4097, 64, False), (1024, 64, False),
        (65, 64, True), (129, 24, True), (640, 8, True), (1000, 64, True),
    ],
)  # fmt: skip
def test_on_a_gpu(randn, device, monkeypatch, length, value_dim, with_state, segments):
    q, k, v, dy = (x.to(device) for x in tensors(randn, length, value_dim))
    state = None
    if with_state:
        state = reference(*tensors(randn, 5, value_dim)[:3], return_state=True)[1].float().to(device)
    monkeypatch.setattr(taylor_gluon, "PROGRAMS", 2 * segments)
    monkeypatch.setattr(taylor_gluon, "SHORTEST_SEGMENT", 64)
    poison = torch.full((1 << 24,), POISON, device=device)
    del poison
    operator = taylor_attention_triton
    y, inverse, _, slots = operator.attention(q, k, v, state, False, "bf16")
    if taylor_backward_gluon.unsupported(q, k, v, y, dy) is not None:
        pytest.skip("not a GPU for these kernels")
    ours, again = (operator._rooms(q, k, v, state) for _ in range(2))
    for found in (ours, again):
        operator.attention_backward(q, k, v, state, y, inverse, slots, dy, "bf16", *found)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    compare(ours, q, k, v, dy, state)


def test_what_is_left_to_other_kernels(randn):
    q, k, v, dy = tensors(randn, 3, 64)
    assert "GPU" in taylor_backward_gluon.unsupported(q, k, v, v, dy)
    wide = torch.cat([v, v], -1)
    assert "64" in taylor_backward_gluon.unsupported(q, k, wide, wide, wide)
