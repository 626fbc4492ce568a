"""selective_ssm's joint backward against the reference in float64: outputs and every gradient."""

import functools
import importlib
from itertools import product

import pytest
import torch

from basedbench.kernels import selective_ssm_triton as kernels
from basedbench.kernels.asked import Asked, Questions, slots_of
from basedbench.kernels.asked import reference as rows_of
from basedbench.kernels.packing import packing_of
from tests.kernels.triton.conftest import interpreted

FLOOR = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
module = importlib.import_module("basedbench.kernels.selective_ssm")
reference = module.reference


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


def rows_of_the_whole(positions, x, z, *parameters):
    """The reference with z at the asked tokens and zeros elsewhere, and of what it gives their rows."""
    rest = positions[..., None].expand(-1, -1, z.shape[-1])
    given = torch.cat([x, z.new_zeros(x.shape).scatter(1, rest, z)], -1)
    return rows_of(reference(given, *parameters), positions)


def as_exact_as_rows_of_the_whole(relative_error, function, inputs, dy, positions):
    """Outputs and gradients of a function, which are; beside the reference in the same dtype, against float64."""
    whole, dtype = functools.partial(rows_of_the_whole, positions), inputs[0].dtype
    with torch.autocast(dy.device.type, dtype, enabled=dtype != torch.float32):
        mine, theirs = results(function, inputs, dy), results(whole, inputs, dy)
    exact = results(whole, [x.double() for x in inputs], dy)
    for one, other, truth in zip(mine, theirs, exact, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert relative_error(one, truth) <= 2 * relative_error(other, truth) + FLOOR[dtype]
    return mine


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

        as_exact_as_rows_of_the_whole(relative_error, ours, inputs, dy, positions)


SHAPES = [(8, 8, 2), (40, 16, 8), (4, 24, 4)]


@pytest.mark.parametrize(
    ("shape", "packed"),
    list(zip(SHAPES, (False, True, True), strict=True) if interpreted else product(SHAPES, (False, True))),
    ids=str,
)
def test_tiles_without_questions(randn, relative_error, device, dtypes, shape, packed):
    """Of five tiles of eight tokens two have some, or all, or the first, or the last; against float64."""
    channels, states, rank = shape
    asked = [[15, 9, 33, 8, 39], [0, 39, 20, 24, 15], [7, 0, 1, 6, 3], [32, 39, 34, 33, 36]]
    positions = torch.tensor(asked, device=device)
    batch, length = len(asked), 40
    packing = packing_of([length] * batch, device) if packed else None
    at = positions if packing is None else (positions + packing.starts_B[:-1, None]).view(1, -1)
    slots = slots_of(at, length if packing is None else packing.tokens)
    dy = randn(*positions.shape, channels).to(device)

    def ours(x, z, *parameters):
        x = x if packing is None else x.reshape(1, -1, channels)
        return kernels.selective_ssm_asked(x, z, slots, *parameters, packing=packing)

    for dtype in dtypes:
        xz, *parameters = make_inputs(randn, device, dtype, batch, length, channels, states, rank, True)
        inputs = [xz[..., :channels].contiguous(), rows_of(xz[..., channels:], positions), *parameters]
        mine = as_exact_as_rows_of_the_whole(relative_error, ours, inputs, dy, positions)
        assert not mine[1][2, 8:].any()  # what comes after the last question has no gradient


@pytest.mark.parametrize(("channels", "states", "rank"), [(5, 8, 2), (40, 16, 8), (4, 24, 4)])
@pytest.mark.parametrize("asked", [0, 3])
def test_packed_examples_are_each_alone(randn, relative_error, device, dtypes, channels, states, rank, asked):
    """Whole, or with rows of asked tokens; every example by itself in float64. What the CPU does too."""
    lengths = [40, 24, 24, 8]
    packing = packing_of(lengths, device)
    positions = torch.stack([torch.randperm(length, device=device)[:asked] for length in lengths])
    at = (positions + packing.starts_B[:-1, None]).view(1, -1)
    slots = slots_of(at, packing.tokens)
    dy = randn(*((len(lengths), asked) if asked else (1, packing.tokens)), channels).to(device)

    def ours(*inputs, packing=packing):
        if asked:
            return kernels.selective_ssm_asked(*inputs[:2], slots, *inputs[2:], packing=packing)
        return kernels.selective_ssm(*inputs, packing=packing)

    def spread(*inputs):
        if asked:
            return module.selective_ssm_asked(
                *inputs[:2], Asked(Questions(positions, slots, packing), inputs[1]), *inputs[2:]
            )
        return module.selective_ssm(*inputs, packing=packing)

    def alone(first, *rest):
        pieces = first.split(lengths, 1)
        if not asked:
            return torch.cat([reference(xz, *rest) for xz in pieces], 1)
        z, *parameters = rest
        found = []
        for x, gate, where in zip(pieces, z, positions, strict=True):
            wide = torch.zeros_like(x).index_put((torch.zeros_like(where), where), gate)
            found.append(rows_of(reference(torch.cat([x, wide], -1), *parameters), where[None]))
        return torch.cat(found)

    for dtype in dtypes:
        inputs = make_inputs(randn, device, dtype, 1, packing.tokens, channels, states, rank, True)
        if asked:
            inputs[:1] = inputs[0][..., :channels].contiguous(), randn(len(lengths), asked, channels).to(device, dtype)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            mine, theirs = results(ours, inputs, dy), results(alone, inputs, dy)
        exact = results(alone, [x.double() for x in inputs], dy)
        for one, other, truth in zip(mine, theirs, exact, strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert relative_error(one, truth) <= 2 * relative_error(other, truth) + FLOOR[dtype]
        for one, truth in zip(results(spread, [x.double() for x in inputs], dy), exact, strict=True):
            assert relative_error(one, truth) <= 1e-12


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


def test_a_frozen_product_for_the_steps(randn, device, dtypes):
    """It has no gradient, and all else the one that it has otherwise."""
    for dtype in dtypes:
        inputs = [x.requires_grad_() for x in make_inputs(randn, device, dtype, 1, 9, 16, 8, 8, True)]
        found = []
        for frozen in (False, True):
            inputs[4].requires_grad_(not frozen)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                y = kernels.selective_ssm(*inputs)
            rest = [x for place, x in enumerate(inputs) if place != 4]
            found.append(torch.autograd.grad(y.float().sum(), rest))
        for one, other in zip(*found, strict=True):
            assert (one - other).norm() <= 1e-3 * one.norm()
