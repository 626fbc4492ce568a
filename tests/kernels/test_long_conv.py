"""The long convolutions against their sums written out, both ways of computing them, and the precision they promise."""

from importlib import import_module

import pytest
import torch

from basedbench.kernels import gated_long_conv, long_conv
from basedbench.kernels.costs import causal_pairs

module = import_module("basedbench.kernels.long_conv")  # the package re-exports a function under its name
LENGTHS = [1, 2, 3, 17, 64, 100]


def naive(x, taps, skip=None):
    """y[t, d] = sum_{s <= t} taps[t - s, d mod G] x[s, d], one product after the other."""
    repeated = taps.repeat(1, x.shape[2] // taps.shape[1])
    y = torch.zeros_like(x) if skip is None else x * skip.repeat(x.shape[2] // len(skip))
    for t in range(x.shape[1]):
        for s in range(max(0, t - len(taps) + 1), t + 1):
            y[:, t] += repeated[t - s] * x[:, s]
    return y


def naive_gated(q, k, v, taps, skip):
    """Head by head, key by key, value by value."""
    heads = taps.shape[1]
    y = torch.zeros_like(v)
    for value in range(v.shape[2]):
        for key in range(value % heads, k.shape[2], heads):
            head = value % heads
            c = naive((k[..., key] * v[..., value])[..., None], taps[:, head, None], skip[head, None])[..., 0]
            y[..., value] += q[..., key] * c
    return y


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("groups", [6, 3, 1])
def test_is_the_causal_sum(randn, length, groups):
    x, taps, skip = randn(2, length, 6), randn(length, groups), randn(groups)
    torch.testing.assert_close(long_conv(x, taps), naive(x, taps))
    torch.testing.assert_close(long_conv(x, taps, skip), naive(x, taps, skip))


@pytest.mark.parametrize("convolve", [module.toeplitz_conv, module.fft_conv])
@pytest.mark.parametrize("length", LENGTHS)
def test_both_ways_are_the_causal_sum(randn, convolve, length):
    x, taps = randn(2, length, 6), randn(length, 3)
    torch.testing.assert_close(convolve(x.unflatten(-1, (2, 3)), taps).flatten(-2), naive(x, taps))


@pytest.mark.parametrize("length", [module.TOEPLITZ_LENGTH, module.TOEPLITZ_LENGTH + 1])
def test_is_the_causal_sum_on_either_side_of_the_switch(randn, length):
    x, taps = randn(2, length, 4), randn(length, 4)
    torch.testing.assert_close(long_conv(x, taps), naive(x, taps))


@pytest.mark.parametrize("reach", [1, 5, 30])
def test_filters_that_are_shorter_or_longer_than_the_sequence(randn, reach):
    x, taps = randn(2, 17, 4), randn(reach, 4)
    torch.testing.assert_close(long_conv(x, taps), naive(x, taps))


@pytest.mark.parametrize(("channels", "order", "shift"), [(1, "kqv", 0), (2, "qkv", 4), (3, "vkq", 20)])
@pytest.mark.parametrize("length", [1, 9])
def test_gated_is_the_sum_over_keys(randn, length, channels, order, shift):
    width = 2 * channels
    parts = {name: randn(2, length, width) for name in "qkv"}
    taps, skip, shift_taps, shift_skip = randn(length, 2), randn(2), randn(shift, width), randn(width)
    x = torch.cat([parts[name] for name in order], -1)
    shifts = (shift_taps, shift_skip) if shift else (None, None)
    k = naive(parts["k"], *shifts) if shift else parts["k"]
    expected = naive_gated(parts["q"], k, parts["v"], taps, skip)
    torch.testing.assert_close(gated_long_conv(x, taps, skip, *shifts, order=order), expected)


def test_gradients(randn):
    inputs = [randn(*shape).requires_grad_() for shape in [(2, 7, 4), (9, 2), (2,)]]
    assert torch.autograd.gradcheck(long_conv, inputs)
    inputs = [randn(*shape).requires_grad_() for shape in [(2, 5, 12), (5, 2), (2,), (3, 4), (4,)]]
    assert torch.autograd.gradcheck(gated_long_conv, inputs)


@pytest.mark.parametrize("length", [40, 300])
def test_half_precision_is_rounded_once(randn, length):
    """bfloat16 in and out, float32 between, so that the only error is that of the last rounding; autocast or not."""
    x, taps = randn(2, length, 5).bfloat16(), randn(length, 5)
    exact = naive(x.double(), taps)
    with torch.autocast("cpu", torch.bfloat16):
        y = long_conv(x, taps.float())
        assert torch.equal(long_conv(x.float(), taps.float()).bfloat16(), y)
    assert y.dtype == torch.bfloat16
    assert ((y.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-4).all()


def test_no_tokens(randn):
    assert long_conv(randn(2, 0, 4), randn(3, 4)).shape == (2, 0, 4)


def test_costs():
    """A multiply-add for each pair and channel; x and taps in, y out; a backward has two products more."""
    sizes = {"batch": 3, "length": 10, "channels": 4}
    assert module.flops(**sizes) == 2 * 3 * 55 * 4
    assert module.flops(**sizes, backward=True) == 3 * module.flops(**sizes)
    assert module.bytes_moved(**sizes, element_bytes=2) == 2 * (2 * 120 + 40)
    assert module.gated_flops(**sizes, head_channels=2) == 3 * 4 * 2 * (2 * causal_pairs(10) + 3 * 10)
    assert module.gated_bytes_moved(**sizes, head_channels=2, element_bytes=4) == 4 * (4 * 120 + 20)
