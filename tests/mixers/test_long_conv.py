"""The long convolution against its sum, both ways of computing it, and the precision it promises."""

import pytest
import torch

from basedbench.mixers import long_conv as module
from basedbench.mixers.long_conv import fft_conv, long_conv, toeplitz_conv

LENGTHS = [1, 2, 3, 17, 64, 100]


def draw(length, middle=(), dtype=torch.float64):
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(2, length, *middle, 5, dtype=dtype, generator=generator)
    return x, torch.randn(length, 5, dtype=torch.float64, generator=generator)


def naive(x, taps):
    """y[t] = sum_{s <= t} taps[t - s] x[s], one product after the other."""
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        for s in range(t + 1):
            y[:, t] += taps[t - s] * x[:, s]
    return y


@pytest.mark.parametrize("convolve", [long_conv, toeplitz_conv, fft_conv])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("middle", [(), (3,), (2, 3)])
def test_is_the_causal_sum(convolve, length, middle):
    x, taps = draw(length, middle)
    torch.testing.assert_close(convolve(x, taps), naive(x, taps))


@pytest.mark.parametrize("length", [module.TOEPLITZ_LENGTH, module.TOEPLITZ_LENGTH + 1])
def test_is_the_causal_sum_on_either_side_of_the_switch(length):
    x, taps = draw(length)
    torch.testing.assert_close(long_conv(x, taps), naive(x, taps))


@pytest.mark.parametrize("convolve", [toeplitz_conv, fft_conv])
def test_gradients(convolve):
    x, taps = (tensor.requires_grad_() for tensor in draw(7, (2,)))
    assert torch.autograd.gradcheck(convolve, (x, taps))


@pytest.mark.parametrize("length", [40, 300])
def test_half_precision_is_rounded_once(length):
    """bfloat16 in and out, float32 between, so that the only error is that of the last rounding; autocast or not."""
    x, taps = draw(length, dtype=torch.bfloat16)
    exact = naive(x.double(), taps)
    with torch.autocast("cpu", torch.bfloat16):
        y = long_conv(x, taps.float())
        assert torch.equal(long_conv(x.float(), taps.float()).bfloat16(), y)
    assert y.dtype == torch.bfloat16
    assert ((y.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-4).all()
