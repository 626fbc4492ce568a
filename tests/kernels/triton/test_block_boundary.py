"""The kernels of `block_boundary` against float64, beside the reference in the same dtypes."""

from importlib import import_module

import pytest
import torch

from basedbench.kernels import block_boundary as public
from basedbench.kernels.asked import questions_at, slots_of
from basedbench.kernels.block_boundary_triton import _boundary, block_boundary, last_boundary
from basedbench.kernels.row_walks import Walk

module = import_module("basedbench.kernels.block_boundary")
reference, last_reference = module.reference, module.last_reference
FLOOR = {torch.float32: 2e-7, torch.float16: 2e-4, torch.bfloat16: 2e-3}


def inputs(randn, shape, dtype, device, *, first=True, bias=True, stream=None):
    """h, residual, and the weights and biases of the norm and, if asked for, of the first one."""
    stream = stream or dtype
    h, residual = randn(*shape) + 0.5, randn(*shape)
    parameters = [randn(shape[-1]) + 1 for _ in range(4 if first else 2)]
    tensors = [h.to(device, dtype), *(x.to(device, stream) for x in (residual, *parameters))]
    return tensors if bias else [*tensors[:3], *tensors[4:]]


def run(functions, tensors, bias, positions=None, **options):
    """Outputs of the first function, or with positions of the second."""
    h, residual, weight, *rest = tensors
    norm = (weight, rest.pop(0) if bias else None)
    options["first"] = tuple(rest) or None
    if positions is None:
        return functions[0](h, residual, norm, **options)
    y, asked, s = functions[1](h, residual, norm, questions_at(positions, h.shape[1]), **options)
    return y, s, asked.x_BKD


KERNELS, REFERENCES = (block_boundary, last_boundary), (reference, last_reference)


def outputs_and_gradients(functions, tensors, draw, bias, **options):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    outputs = run(functions, leaves, bias, **options)
    total = sum((x.double() * draw(index, x)).sum() for index, x in enumerate(outputs))
    return [*(x.detach() for x in outputs), *torch.autograd.grad(total, leaves)]


def compare(randn, relative_error, tensors, *, bias=True, **options):
    signs = {}

    def draw(index, x):
        if index not in signs:
            signs[index] = randn(*x.shape).sign().to(x.device).double()
        return signs[index]

    exact = outputs_and_gradients(
        REFERENCES, [x.double() for x in tensors], draw, bias, **{**options, "dtype": None}
    )  # fmt: skip
    expected = outputs_and_gradients(REFERENCES, tensors, draw, bias, **options)
    ours = outputs_and_gradients(KERNELS, tensors, draw, bias, **options)
    for mine, theirs, true in zip(ours, expected, exact, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.is_contiguous()
        assert relative_error(mine, true) <= 2 * relative_error(theirs, true) + FLOOR[mine.dtype]


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (17, 48), (1000, 32), (130, 112), (9, 256)], ids=str)
def test_outputs_and_gradients(randn, relative_error, device, dtypes, rows, width):
    for dtype in dtypes:
        compare(randn, relative_error, inputs(randn, (rows, width), dtype, device))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("asked", [0, 5])
def test_every_combination(randn, relative_error, device, dtypes, first, center, asked):
    """Positions out of order."""
    positions = torch.stack([torch.randperm(11, device=device)[:asked] for _ in range(3)]) if asked else None
    for dtype in dtypes:
        tensors = inputs(randn, (3, 11, 48), dtype, device, first=first, bias=center)
        compare(randn, relative_error, tensors, bias=center, center=center, positions=positions)


@pytest.mark.parametrize("length", [71, 64, 128])
def test_many_positions_of_many_tokens(randn, relative_error, device, dtypes, length):
    """More than are compared at once; tiles of two examples, and of one alone."""
    positions = torch.stack([torch.randperm(length, device=device)[:40] for _ in range(2)])
    for dtype in dtypes:
        tensors = inputs(randn, (2, length, 48), dtype, device, stream=torch.float32)
        compare(randn, relative_error, tensors, positions=positions)


def test_half_precision_mixers_on_a_float32_stream(randn, relative_error, device, dtypes):
    """What autocast brings: the stream is float32, y and the gradient of h have the products' dtype."""
    for dtype in dtypes[1:]:
        tensors = inputs(randn, (33, 64), dtype, device, stream=torch.float32)
        compare(randn, relative_error, tensors, dtype=dtype)
        compare(randn, relative_error, tensors)


@pytest.mark.parametrize("ahead", [1, 3])
def test_more_tiles_than_programs(randn, relative_error, device, monkeypatch, ahead):
    walk = Walk(3, {"BLOCK_D": 64, "ROWS": 16, "AHEAD": ahead, "num_warps": 2})
    monkeypatch.setattr("basedbench.kernels.block_boundary_triton.walk_of_boundary", lambda *shape: walk)
    compare(randn, relative_error, inputs(randn, (300, 64), torch.float32, device))


@pytest.mark.parametrize("index", [0, 1])
def test_only_one_output_used(randn, device, index):
    tensors = inputs(randn, (5, 48), torch.float32, device)
    grads = []
    for functions in (KERNELS, REFERENCES):
        leaves = [x.clone().requires_grad_() for x in tensors]
        used = run(functions, leaves, True)[index]
        grads.append(torch.autograd.grad(used.square().sum(), leaves, allow_unused=True))
    for mine, theirs in zip(*grads, strict=True):
        expected = torch.zeros_like(mine) if theirs is None else theirs
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_everything_is_written(randn, device, monkeypatch):
    """NaN in every new buffer."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    tensors = [x.requires_grad_() for x in inputs(randn, (2, 17, 48), torch.float32, device)]
    positions = torch.tensor([[16, 0], [3, 2]], device=device)
    for chosen in (None, positions):
        y, s, *rest = run(KERNELS, tensors, True, positions=chosen)
        for x in (y, s, *rest, *torch.autograd.grad(y.sum() + s.square().sum(), tensors)):
            assert torch.isfinite(x).all()


def test_registration(randn, device):
    h, residual, weight, bias, *first = (
        x.requires_grad_() for x in inputs(randn, (2, 5, 16), torch.float32, device)
    )  # fmt: skip
    positions = torch.tensor([[4, 0], [1, 2]], device=device)
    for chosen, pair in [(None, first), (positions, first), (positions, (None, None))]:
        rest = *pair, weight, bias, 1.0, True, 1e-5, torch.float32
        slots = None if chosen is None else slots_of(chosen, 5)
        torch.library.opcheck(_boundary, (h, residual, None, None, None, slots, 4, *rest))


def test_the_public_function_takes_the_kernels_on_cuda(randn, device):
    tensors = [x.requires_grad_() for x in inputs(randn, (5, 16), torch.float32, device)]
    name = type(run((public, None), tensors, True)[0].grad_fn).__name__
    assert ("boundary" in name) == (device.type == "cuda")
