"""selective_ssm's joint backward against the reference in float64: outputs and every gradient."""

import importlib

import pytest
import torch

from basedbench.kernels import selective_ssm_triton as kernels
from basedbench.kernels.asked import reference as rows_of
from basedbench.kernels.asked import slots_of

FLOOR = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
reference = importlib.import_module("basedbench.kernels.selective_ssm").reference


def make_inputs(randn, device, dtype, batch, length, channels, states, rank, bias):
    shapes = [(channels, 4), (channels,), (rank + 2 * states, channels), (channels, rank), (channels,)]
    shapes += [(channels, states), (channels,)]
    xz, *parameters = [randn(batch, length, 2 * channels).to(dtype), *(randn(*shape) for shape in shapes)]
    parameters[2:4] = parameters[2] * channels**-0.5, parameters[3] * rank**-0.5
    parameters[4] -= 1  # small steps
    inputs = [x.to(device, x.dtype if x is xz else torch.float32) for x in (xz, *parameters)]
    return inputs if bias else [*inputs[:2], None, *inputs[3:]]


def results(function, inputs, dy):
    leaves = [x if x is None else x.detach().clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, [x for x in leaves if x is not None], dy.to(y.dtype))]


@pytest.mark.parametrize(
    ("size", "bias"), [((2, 11, 8, 3, 2), True), ((1, 9, 4, 16, 4), False), ((1, 9, 4, 3, 8), True)]
)
def test_outputs_and_gradients(randn, relative_error, device, size, bias):
    inputs = make_inputs(randn, device, torch.float32, *size, bias)
    dy = randn(*size[:3]).to(device)
    exact = results(reference, [x if x is None else x.double() for x in inputs], dy)
    theirs, ours = results(reference, inputs, dy), results(kernels.selective_ssm, inputs, dy)
    for one, other, truth in zip(ours, theirs, exact, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert relative_error(one, truth) <= 2 * relative_error(other, truth) + 1e-6


@pytest.mark.parametrize(
    ("size", "asked"),
    [((2, 11, 8, 3, 2), 4), ((1, 9, 4, 16, 4), 1), ((2, 20, 40, 8, 8), 20), ((1, 40, 16, 24, 4), 5)],
    ids=str,
)
def test_rows_of_asked_tokens(randn, relative_error, device, dtypes, size, asked):
    """z in, y out, and the gradients of both, as rows of tokens in any order; against rows of the whole in float64."""
    batch, length, channels = size[:3]
    positions = torch.stack([torch.randperm(length, device=device)[:asked] for _ in range(batch)])
    slots, dy = slots_of(positions, length), randn(batch, asked, channels).to(device)
    for dtype in dtypes:
        xz, *parameters = make_inputs(randn, device, dtype, *size, True)
        inputs = [xz[..., :channels].contiguous(), rows_of(xz[..., channels:], positions), *parameters]

        def ours(x, z, *parameters, slots=slots):
            return kernels.selective_ssm_asked(x, z, slots, *parameters)

        def whole(x, z, *parameters, positions=positions, length=length):
            rest = positions[..., None].expand(-1, -1, z.shape[-1])
            given = torch.cat([x, z.new_zeros(x.shape).scatter(1, rest, z)], -1)
            return rows_of(reference(given, *parameters), positions)

        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            mine, theirs = results(ours, inputs, dy), results(whole, inputs, dy)
        exact = results(whole, [x.double() for x in inputs], dy)
        for one, other, truth in zip(mine, theirs, exact, strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert relative_error(one, truth) <= 2 * relative_error(other, truth) + FLOOR[dtype]


def test_half_precision_under_autocast(randn, relative_error, device):
    """Products in half precision, the parameters' gradients in their own."""
    inputs = make_inputs(randn, device, torch.float16, 2, 11, 8, 3, 2, True)
    dy = randn(2, 11, 8).to(device)
    exact = results(reference, [x.double() for x in inputs], dy)
    with torch.autocast(device.type, torch.float16):
        theirs, ours = results(reference, inputs, dy), results(kernels.selective_ssm, inputs, dy)
    for one, other, truth in zip(ours, theirs, exact, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert relative_error(one, truth) <= 2 * relative_error(other, truth) + 1e-3


def test_what_the_kernels_take(randn, device):
    inputs = make_inputs(randn, device, torch.float32, 1, 5, 4, 3, 2, True)
    x, z = inputs[0][..., :4].contiguous(), inputs[0][:, :2, 4:]
    assert kernels.supported(inputs[0], None, inputs[6])
    assert kernels.supported(x, z, inputs[6])
    assert not kernels.supported(inputs[0], z, inputs[6])
    assert not kernels.supported(inputs[0][..., :4], z, inputs[6])
    assert not kernels.supported(x, z.double(), inputs[6])
    assert not kernels.supported(inputs[0][..., :7], None, inputs[6])
    assert not kernels.supported(inputs[0].double(), None, inputs[6])


def test_nothing_is_kept_without_gradients(randn, device, monkeypatch):
    inputs = [x.requires_grad_() for x in make_inputs(randn, device, torch.float32, 1, 5, 4, 3, 2, True)]
    kept, room = [], kernels.scan.room

    def watched(*given, keep, **options):
        kept.append(keep)
        return room(*given, keep=keep, **options)

    monkeypatch.setattr(kernels.scan, "room", watched)
    with torch.no_grad():
        y = kernels.selective_ssm(*inputs)
    assert torch.equal(kernels.selective_ssm(*inputs), y)
    assert kept == [False, True]
