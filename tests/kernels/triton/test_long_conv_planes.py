"""`gated_long_conv` on matrix units against float64, beside the reference in the same dtypes."""

import copy
from importlib import import_module

import pytest
import torch

from basedbench import kernels
from basedbench.kernels.asked import Questions, ask, slots_of
from basedbench.mixers import get_mixer
from tests.kernels.triton.conftest import interpreted
from tests.kernels.triton.test_trainer import chooses_kernels

# The package re-exports a function under the name of this module.
module = import_module("basedbench.kernels.long_conv")
planes = import_module("basedbench.kernels.long_conv_planes_triton")
packing_of = import_module("basedbench.kernels.packing").packing_of

# Beyond twice the reference's own error; and where no tensor is rounded between. Matrix units cut off what they add to
# a long sum.
FLOOR = {torch.float32: 3e-7, torch.float16: 3e-4, torch.bfloat16: 2e-3}
SUMS = {torch.float32: 3e-7, torch.float16: 2e-6, torch.bfloat16: 2e-5}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles in few tokens and sequences, where no compiler minds."""
    if interpreted:
        monkeypatch.setattr(planes, "TILES", {1: (32, 16, 16, 4, 2), 2: (16, 32, 32, 4, 2)})
        monkeypatch.setattr(planes, "BACKWARD_TILES", {1: (32, 32, 16, 4, 1), 2: (16, 32, 32, 4, 2)})
        monkeypatch.setattr(planes, "SHIFT_BACKWARD_TILES", (32, 16, 16, 4, 2))
        monkeypatch.setattr(planes, "LAGS", 16)
        monkeypatch.setattr(planes, "LAG_SEQUENCES", {1: 16, 4: 16})
        monkeypatch.setattr(planes, "SHIFT_TILES", (16, 32, 16, 4, 2))
        monkeypatch.setattr(planes, "PRODUCTS", 64)


def rounded(x, dtype):
    return x.to(dtype).to(x.dtype)


def convolution_of(dtype):
    """The reference's, of operands that are rounded to the dtype, as their gradients' are: in y's dtype otherwise."""

    class Convolution(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, taps, skip):
            ctx.skips = skip is not None
            whole = taps.clone()
            if ctx.skips:
                whole[0] += skip
            operands = rounded(x, dtype), rounded(whole, dtype)
            ctx.save_for_backward(*operands)
            return module.reference(*operands)

        @staticmethod
        def backward(ctx, dy):
            operands = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            with torch.enable_grad():
                y = module.reference(*operands)
            dx, d_taps = torch.autograd.grad(y, operands, rounded(dy, dtype))
            return dx, d_taps, d_taps[0] if ctx.skips else None

    return Convolution.apply


def outputs_and_gradients(function, tensors, signs, **options):
    x, bias, *filters = (None if x is None else x.detach().clone().requires_grad_() for x in tensors)
    y = function(x, *filters, bias_E=bias, **options)
    given = [x for x in (x, bias, *filters) if x is not None]
    return [y.detach(), *torch.autograd.grad((y.double() * signs.double()).sum(), given)]


@pytest.mark.parametrize(
    ("batch", "length", "heads", "channels", "shift", "bias", "order"),
    [
        (3, 17, 6, 1, 0, False, "kqv"),
        pytest.param(35, 50, 3, 1, 0, True, "kqv", marks=pytest.mark.slow),
        (3, 33, 5, 2, 7, True, "qkv"),
        (20, 50, 2, 2, 33, True, "qkv"),
        (2, 1, 18, 1, 3, True, "vqk"),
    ],
)
def test_outputs_and_gradients(
    randn, relative_error, device, dtypes, batch, length, heads, channels, shift, bias, order
):
    """Against float64 with operands of products rounded as they are here.

    Ragged and whole tiles; filters of the heads twice as long as the sequence, of the shift shorter and longer.
    """
    width = heads * channels
    shapes = [(2 * length, heads), (heads,), *([(shift, width), (width,)] if shift else [])]
    filters = [randn(*shape).float().to(device) for shape in shapes] + [None] * (0 if shift else 2)
    added = randn(3 * width).float().to(device) if bias else None
    signs = randn(batch, length, width).sign().to(device)
    for dtype in dtypes:
        tensors = [randn(batch, length, 3 * width).to(device, dtype), added, *filters]
        wide = [None if x is None else x.double() for x in tensors]
        exact = outputs_and_gradients(module.gated_reference, wide, signs, order=order, convolve=convolution_of(dtype))
        expected = outputs_and_gradients(module.gated_reference, tensors, signs, order=order)
        ours = outputs_and_gradients(planes.gated_long_conv, tensors, signs, order=order)
        for place, (mine, theirs, true) in enumerate(zip(ours, expected, exact, strict=True)):
            assert mine.dtype == theirs.dtype
            # The shift's outputs are rounded before others are made of them, and so are their gradients.
            stored = place < 2 or shift or bias
            floor = (FLOOR[dtype] if stored else SUMS[dtype]) if dtype != torch.float32 else FLOOR[dtype]
            assert relative_error(mine, true) <= 2 * relative_error(theirs, true) + (2 if shift else 1) * floor


@pytest.mark.parametrize(("heads", "channels", "shift"), [(3, 1, 0), (2, 2, 7)])
def test_packed_examples_are_those_of_a_batch(randn, device, heads, channels, shift):
    """More than a block of sequences, some of which have no tokens in the last tiles; outputs bit for bit."""
    packing = packing_of([40, 40, *[24] * 20, *[8] * 15], device)
    width = heads * channels
    shapes = [(45, heads), (heads,), *([(shift, width), (width,)] if shift else [])]
    filters = [randn(*shape).float().to(device) for shape in shapes] + [None] * (0 if shift else 2)
    x, bias = randn(1, packing.tokens, 3 * width).float().to(device), randn(3 * width).float().to(device)
    signs = randn(1, packing.tokens, width).sign().to(device)
    tensors = [x, bias, *filters]
    ours = outputs_and_gradients(planes.gated_long_conv, tensors, signs, order="kqv", packing=packing)
    tensors = [packing.spread(x), bias, *filters]
    batch = outputs_and_gradients(planes.gated_long_conv, tensors, packing.spread(signs), order="kqv")
    batch[:2] = [packing.gather(tensor) for tensor in batch[:2]]
    for mine, theirs in zip(ours, batch, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours[0], batch[0])


def test_the_filters_gradient_over_many_sequences_is_the_same_every_time(randn, device, monkeypatch):
    """Programs take several blocks of sequences each, unevenly."""
    monkeypatch.setattr(planes, "PROGRAMS", 8)
    x, taps = randn(70, 20, 6).float().to(device), randn(20, 2).float().to(device)
    given = [x, None, taps, None, None, None]
    signs = x[..., :2].sign()
    exact = outputs_and_gradients(
        module.gated_reference, [None if x is None else x.double() for x in given], signs, order="qkv"
    )
    ours, again = (outputs_and_gradients(planes.gated_long_conv, given, signs, order="qkv") for _ in range(2))
    for mine, repeated, true in zip(ours, again, exact, strict=True):
        assert torch.equal(mine, repeated)
        torch.testing.assert_close(mine, true.float(), rtol=1e-4, atol=1e-4)


def test_planes_are_neither_copied_nor_turned(randn, device):
    x = randn(24, 3, 9).float().to(device).permute(1, 2, 0).requires_grad_()
    taps = randn(8, 9).float().to(device).t().requires_grad_()
    y = planes.gated_long_conv(x, taps, None, None, None, order="qkv")
    assert y.shape == (3, 9, 8)
    assert y.permute(2, 0, 1).is_contiguous()
    dx, d_taps = torch.autograd.grad(y.sum(), [x, taps])
    assert dx.permute(2, 0, 1).is_contiguous()
    assert d_taps.is_contiguous()


def test_gradients_that_are_added_up_do_not_add_to_each_other(randn, device):
    """The skips' are the first taps'."""
    x = randn(2, 9, 24).float().to(device)
    leaves = [randn(*shape).float().to(device).requires_grad_() for shape in [(9, 4), (4,), (3, 8), (8,)]]
    for _ in range(2):
        planes.gated_long_conv(x, *leaves, order="qkv").sum().backward()
    once = torch.autograd.grad(planes.gated_long_conv(x, *leaves, order="qkv").sum(), leaves)
    for leaf, gradient in zip(leaves, once, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * gradient)


def test_nothing_is_read_beyond_the_sequences_and_everything_is_written(randn, device, poisoned, monkeypatch):
    """Planes of NaN around the input, NaN in every new buffer."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    padded = torch.full((64, 2, 19), torch.nan, device=device)
    padded[8:56] = randn(48, 2, 19)
    filters = [randn(*shape).float().to(device) for shape in [(19, 8), (8,), (5, 16), (16,)]]
    bias = randn(48).float().to(device).requires_grad_()
    leaves = [x.requires_grad_() for x in (padded[8:56].permute(1, 2, 0), *filters)]
    y = planes.gated_long_conv(*leaves, order="qkv", bias_E=bias)
    for x in (y, *torch.autograd.grad(y.sum(), [*leaves, bias])):
        assert torch.isfinite(x).all()


def test_registration(randn, device):
    shapes = [(24, 2, 5), (24,), (4, 5), (4,), (8, 3), (8,)]
    tensors = [randn(*s).float().to(device).requires_grad_() for s in shapes]
    torch.library.opcheck(planes._gated, (*tensors, None, 0, "qkv", True))
    torch.library.opcheck(planes._gated, (tensors[0], None, tensors[2], None, None, None, None, 0, "kqv", True))


def test_the_public_function_takes_them_for_bfloat16_on_cuda(randn, device):
    x, taps = randn(2, 5, 24).to(device, torch.bfloat16), randn(5, 8).float().to(device).requires_grad_()
    y = kernels.gated_long_conv(x, taps)
    assert y.dtype == torch.bfloat16
    assert y.permute(2, 0, 1).is_contiguous() == (device.type == "cuda")


@pytest.mark.skipif(not interpreted, reason="on a GPU no mixer computes planes in float32")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("mixer", "options"), [("hyena", {"filter_order": 16}), ("h3", {"d_state": 4})])
def test_whole_mixers_on_planes(randn, relative_error, monkeypatch, mixer, options, packed):
    """From the projection to the output, packed also at asked tokens only, with the gradients of every parameter."""
    torch.manual_seed(0)
    lengths = [24, 24, 16, 8] if packed else [20] * 3
    positions = torch.stack([torch.randperm(length)[:3] for length in lengths])
    layer, x = get_mixer(mixer)(8, **options), randn(sum(lengths), 8).float()
    signs = randn(sum(lengths) + (positions.numel() if packed else 0), 8).sign()

    def results(layer, x, mix):
        x = x.requires_grad_()
        y = mix(layer, x)
        return [y.detach(), *torch.autograd.grad((y * signs.to(y.dtype)).sum(), [x, *layer.parameters()])]

    def asked_of(x, packing):
        slots = slots_of((positions + packing.starts_B[:-1, None]).view(1, -1), packing.tokens)
        return ask(x[None], Questions(positions, slots, packing))

    def alone(layer, x):
        examples = [layer(example[None])[0] for example in x.split(lengths)]
        return torch.cat([*examples, *(y[at] for y, at in zip(examples, positions, strict=True) if packed)])

    def together(layer, x):
        if packed:
            packing = packing_of(lengths, "cpu")
            return torch.cat([layer(x[None], packing)[0], *layer.forward_asked(x[None], asked_of(x, packing))])
        return layer(x.unflatten(0, (3, -1))).flatten(0, 1)

    exact = results(copy.deepcopy(layer).double(), x.double(), alone)
    for name in ("long_conv", "plane_linear"):
        monkeypatch.setattr(import_module(f"basedbench.kernels.{name}"), "on_planes", lambda *_: True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(chooses_kernels))
    for mine, true in zip(results(layer, x, together), exact, strict=True):
        assert mine.shape == true.shape
        assert relative_error(mine, true) < 2e-5
