"""The kernels of split_ssd_asked against float64, beside the reference in the same dtype."""

import importlib
from copy import deepcopy

import pytest
import torch

from basedbench.kernels import split_ssd_asked_triton
from basedbench.kernels.asked import Asked, Questions, ask, questions_at, slots_of, take_rows
from basedbench.kernels.packing import packing_of
from basedbench.mixers.mamba2 import Mamba2

from .conftest import interpreted

# The package may come to have a function of the module's name.
module = importlib.import_module("basedbench.kernels.split_ssd_asked")
reference = module.reference

# length, asked, heads, groups, head width, states, columns beyond: tiles full and not, one and several.
SHAPES = [
    (64, 4, 4, 1, 64, 16, 12), (37, 37, 2, 2, 16, 8, 0), (100, 16, 4, 2, 16, 24, 3), (1, 1, 1, 1, 16, 8, 1),
    (130, 1, 3, 1, 24, 12, 0),
]  # fmt: skip
ON_A_GPU = [
    (97, 50, 4, 1, 32, 40, 5),
    (256, 64, 2, 1, 16, 16, 14),
    (256, 16, 4, 1, 64, 16, 12),
    (256, 64, 4, 1, 64, 16, 12),
    (512, 64, 8, 2, 64, 24, 8),
]


def drawn(randn, device, dtype, length, asked, heads, groups, width, states, more, batch=2):
    """z, p, and the parameters; the asked tokens."""
    inner, conv = heads * width, heads * width + 2 * groups * states
    z, p = randn(batch, asked, inner).to(device, dtype), randn(batch, length, conv + heads + more).to(device, dtype)
    parameters = (randn(*shape).float().to(device) for shape in ((conv, 4), (conv,), *[(heads,)] * 3))
    weight, bias, A, D, dt_bias = parameters
    generator = torch.Generator().manual_seed(0)
    positions = torch.stack([torch.randperm(length, generator=generator)[:asked] for _ in range(batch)]).to(device)
    return [z, p, weight, bias, -A.abs() - 0.1, D, dt_bias], Asked(questions_at(positions, length), z)


def ours(tensors, asked, width, groups):
    z, p, *more = tensors
    return split_ssd_asked_triton.split_ssd_asked(z, p, asked, *more, width, groups)


def theirs(tensors, asked, width, groups):
    z, p, *more = tensors
    return reference(z, p, asked.positions_BK, *more, head_dim=width, groups=groups)


def compare(randn, relative_error, tensors, asked, width, groups) -> None:
    signs = randn(*tensors[0].shape).sign().to(tensors[0].device).unflatten(-1, (-1, width))
    found = []
    for function, parts in (
        (ours, tensors),
        (ours, tensors),
        (theirs, tensors),
        (theirs, [None if part is None else part.double() for part in tensors]),
    ):
        leaves = [None if part is None else part.detach().requires_grad_() for part in parts]
        y = function(leaves, asked, width, groups)
        found.append(
            [y.detach(), *torch.autograd.grad(y, [one for one in leaves if one is not None], signs.to(y.dtype))]
        )
    coarse = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[tensors[0].dtype]
    for one, again, other, exact in zip(*found, strict=True):
        assert torch.equal(one, again)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert relative_error(one, exact) <= 2 * relative_error(other, exact) + coarse


@pytest.mark.parametrize("shape", SHAPES if interpreted else [*SHAPES, *ON_A_GPU])
def test_outputs_and_gradients(randn, relative_error, device, dtypes, poisoned, shape):
    for dtype in dtypes[:1] if interpreted and shape[0] > 64 else dtypes:
        tensors, asked = drawn(randn, device, dtype, *shape)
        compare(randn, relative_error, tensors, asked, shape[4], shape[3])


@pytest.mark.parametrize(
    ("lengths", "shape"),
    [
        ([72, 40, 24, 8], (4, 2, 1, 64, 16, 4)),
        ([104, 64, 32], (30, 4, 2, 16, 24, 9)),
        ([16, 16, 8], (8, 2, 2, 24, 8, 0)),
        ([136, 72, 64], (33, 1, 1, 16, 8, 3)),
    ],
    ids=str,
)
def test_packed_examples_are_each_alone(randn, relative_error, device, dtypes, poisoned, lengths, shape):
    """Tiles that the longest has and others have not; sums for parameters are those of all."""
    (asked_tokens, heads, groups, width, states, more), packing = shape, packing_of(lengths, device)
    sizes = {"head_dim": width, "groups": groups}
    for dtype in dtypes:
        total = packing.tokens, asked_tokens, heads, groups, width, states, more
        (_, p, *parameters), _ = drawn(randn, device, dtype, *total, batch=1)
        z = randn(len(lengths), asked_tokens, heads * width).to(device, dtype)
        positions = torch.stack([torch.randperm(length)[:asked_tokens] for length in lengths]).to(device)
        slots = slots_of((positions + packing.starts_B[:-1, None]).view(1, -1), packing.tokens)
        asked = Asked(Questions(positions, slots, packing), z)

        def alone(z, p, *parameters, positions=positions):
            parts = zip(z.split(1), p.split(lengths, 1), positions.split(1), strict=True)
            return torch.cat([reference(*part, *parameters, **sizes) for part in parts])

        def by_kernels(z, p, *parameters, asked=asked):
            return split_ssd_asked_triton.split_ssd_asked(z, p, asked, *parameters, width, groups)

        def by_reference(z, p, *parameters, asked=asked):
            return reference(z, p, asked.positions_BK, *parameters, **sizes, packing=packing)

        def by_rows(z, p, *parameters, asked=asked):
            return module.by_whole_scan(z, p, asked, *parameters, **sizes)

        tensors = [z, p, *parameters]
        double = [part.double() for part in tensors]
        signs = randn(*z.shape).sign().to(device).unflatten(-1, (-1, width))
        found = []
        for function, parts in (
            (by_kernels, tensors),
            (by_kernels, tensors),
            (alone, tensors),
            (by_reference, double),
            (by_rows, double),
            (alone, double),
        ):
            leaves = [part.detach().requires_grad_() for part in parts]
            y = function(*leaves)
            found.append([y.detach(), *torch.autograd.grad(y, leaves, signs.to(y.dtype))])
        coarse = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
        for mine, again, theirs, spread, rows, exact in zip(*found, strict=True):
            assert torch.equal(mine, again)
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
            assert relative_error(mine, exact) <= 2 * relative_error(theirs, exact) + coarse
            assert relative_error(spread, exact) <= 1e-12
            assert relative_error(rows, exact) <= 1e-12


def test_in_tiles_as_long_as_of_bfloat16(randn, relative_error, device, poisoned, monkeypatch):
    monkeypatch.setattr(split_ssd_asked_triton, "NARROW_TILE", split_ssd_asked_triton.TILE)
    tensors, asked = drawn(randn, device, torch.float32, 150, 16, 2, 1, 16, 8, 6)
    compare(randn, relative_error, tensors, asked, 16, 1)


def test_strong_decays_neither_overflow_nor_spoil_gradients(randn, relative_error, device):
    tensors, asked = drawn(randn, device, torch.float32, 100, 16, 2, 1, 16, 8, 6)
    tensors[4] = 20 * tensors[4] - 1
    compare(randn, relative_error, tensors, asked, 16, 1)


def test_a_bias_that_is_not_there(randn, relative_error, device):
    tensors, asked = drawn(randn, device, torch.float32, 50, 8, 2, 1, 16, 8, 6)
    tensors[3] = None
    compare(randn, relative_error, tensors, asked, 16, 1)


@pytest.mark.parametrize("asked_tokens", [20, 65, 100])
def test_without_gradients_any_number_is_asked_for(randn, relative_error, device, asked_tokens):
    tensors, asked = drawn(randn, device, torch.float32, 140, asked_tokens, 2, 1, 16, 8, 6)
    exact = theirs([part.double() for part in tensors], asked, 16, 1)
    assert relative_error(ours(tensors, asked, 16, 1), exact) < 2e-6


def test_what_the_kernels_leave_to_a_whole_scan(randn, device):
    (z, p, weight, bias, *rates), _ = drawn(randn, device, torch.float32, 70, 65, 4, 2, 16, 8, 6)

    def refuse(z, p, weight=weight, bias=bias, rates=rates):
        return split_ssd_asked_triton.unsupported(z, p, weight, bias, *rates, 16, 2)

    assert refuse(z, p) is None
    assert "64 asked" in refuse(z, p, bias=bias.clone().requires_grad_())
    assert refuse(z[:, :64].requires_grad_(), p) is None
    assert "64 asked" in refuse(z.detach().requires_grad_(), p)
    assert "dtype" in refuse(z.half(), p)
    assert "somebody" in refuse(z[:, :0], p)
    assert "float16" in refuse(z.double(), p.double())
    assert "states" in refuse(z, torch.cat([p] * 9, -1), torch.cat([weight] * 5))


def test_operator_keeps_torchs_rules(randn, device):
    (z, p, *parameters), asked = drawn(randn, device, torch.float32, 40, 8, 2, 1, 16, 8, 3)
    shapes = (2, 40, 48), (2, 2, 2, 40), (2, 8, 2, 16), (2, 2, 2, 8), (2, 8, 2, 16)
    convolved, steps, ungated, kept, dy = (randn(*shape).float().to(device) for shape in shapes)
    given = dy, z, p, convolved, steps, ungated, kept, asked.positions_BK, asked.slots_BL, *parameters, 1
    torch.library.opcheck(split_ssd_asked_triton.backward, (*given, None, 0))


@pytest.mark.parametrize("options", [{"head_dim": 16, "d_state": 8}, {"head_dim": 8, "d_state": 24, "groups": 2}])
def test_mixer_at_asked_tokens(relative_error, device, monkeypatch, options):
    torch.manual_seed(0)
    mixer = Mamba2(16, **options)
    x_BLD, weights = torch.randn(2, 70, 16), torch.randn(2, 6, 16)
    positions_BK = torch.stack([torch.randperm(70)[:6] for _ in range(2)])

    def by_kernels(z, p, asked, *more, head_dim, groups):
        return split_ssd_asked_triton.split_ssd_asked(z, p, asked, *more, head_dim, groups)

    found = []
    for dtype, at in ((torch.float64, torch.device("cpu")), (torch.float32, device)):
        leaf = x_BLD.to(at, dtype, copy=True).requires_grad_()
        copy = deepcopy(mixer).to(at, dtype)
        given = ask(leaf, questions_at(positions_BK.to(at), 70))
        if dtype == torch.float32:
            monkeypatch.setattr("basedbench.mixers.mamba2.split_ssd_asked", by_kernels)
            y = copy.forward_asked(leaf, given)
        else:
            y = take_rows(copy(leaf), given.positions_BK, given.slots_BL)
        gradients = torch.autograd.grad((y * weights.to(at, dtype)).sum(), [leaf, *copy.parameters()])
        found.append([part.cpu() for part in (y.detach(), *gradients)])
    for exact, one in zip(*found, strict=True):
        assert relative_error(one, exact) < 2e-5
