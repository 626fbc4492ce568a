"""The kernels of `plane_conv` against float64, beside the reference in the same dtypes."""

from importlib import import_module

import pytest
import torch

# The package re-exports a function under the name of this module.
module = import_module("basedbench.kernels.plane_conv")
triton = import_module("basedbench.kernels.plane_conv_triton")
packing_of = import_module("basedbench.kernels.packing").packing_of
FLOOR = {torch.float32: 3e-7, torch.float16: 2e-4, torch.bfloat16: 2e-3}


def outputs_and_gradients(function, tensors, signs, *options):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    y = function(*leaves, *options)
    return [y.detach(), *torch.autograd.grad((y.double() * signs.double()).sum(), leaves)]


@pytest.mark.parametrize(
    ("batch", "length", "width", "taps"),
    [(3, 1, 5, 3), (2, 17, 6, 4), (4, 64, 3, 3), (5, 40, 2, 1), (1, 2, 8, 2), (2, 45, 3, 4)],
)
def test_outputs_and_gradients(randn, relative_error, device, dtypes, monkeypatch, batch, length, width, taps):
    """Sequences that begin and end within tiles, and programs with several tiles."""
    for tokens in ("TOKENS", "BACKWARD_TOKENS"):
        monkeypatch.setattr(triton, tokens, 32)
    monkeypatch.setattr(triton, "PROGRAMS", 3)
    parameters = [randn(*shape).float().to(device) for shape in [(width,), (width, taps), (width,)]]
    signs = randn(batch, length, width).sign().to(device)
    for dtype in dtypes:
        tensors = [randn(batch, length, width).to(device, dtype), *parameters]
        exact = outputs_and_gradients(module.reference, [x.double() for x in tensors], signs)
        expected = outputs_and_gradients(module.reference, tensors, signs)
        ours = outputs_and_gradients(triton.plane_conv, tensors, signs)
        for mine, theirs, true in zip(ours, expected, exact, strict=True):
            assert mine.dtype == theirs.dtype
            assert relative_error(mine, true) <= 2 * relative_error(theirs, true) + FLOOR[mine.dtype]


def test_packed_examples_are_each_alone(randn, device, monkeypatch):
    """In tiles of several of them, and over several tiles."""
    for tokens in ("TOKENS", "BACKWARD_TOKENS"):
        monkeypatch.setattr(triton, tokens, 64)
    monkeypatch.setattr(triton, "LONGEST", 16)
    monkeypatch.setattr(triton, "PROGRAMS", 3)
    packing = packing_of([40, 24, 24, 16, 8, 8], device)
    x, signs = (randn(1, packing.tokens, 5).float().to(device) for _ in range(2))
    parameters = [randn(*shape).float().to(device) for shape in [(5,), (5, 4), (5,)]]
    ours = outputs_and_gradients(triton.plane_conv, [x, *parameters], signs, packing)
    spread, signs = packing.spread(x), packing.spread(signs)
    expected = outputs_and_gradients(module.reference, [spread, *parameters], signs)
    expected[:2] = [packing.gather(tensor) for tensor in expected[:2]]
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-5)


def test_nothing_is_read_beyond_the_planes_and_everything_is_written(randn, device, poisoned, monkeypatch):
    """Planes of NaN around the input, NaN in every new buffer."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    padded = torch.full((12, 2, 19), torch.nan, device=device)
    padded[2:10] = randn(8, 2, 19)
    leaves = [padded[2:10].permute(1, 2, 0), *(randn(*s).float().to(device) for s in [(8,), (8, 3), (8,)])]
    leaves = [x.requires_grad_() for x in leaves]
    y = triton.plane_conv(*leaves)
    for x in (y, *torch.autograd.grad(y.sum(), leaves)):
        assert torch.isfinite(x).all()


def test_registration(randn, device):
    tensors = [randn(*s).float().to(device).requires_grad_() for s in [(6, 2, 5), (6,), (6, 3), (6,)]]
    torch.library.opcheck(triton._conv, (*tensors, None, 0))
