"""The stream between products without the kernel: as PyTorch has it."""

import torch
import torch.nn.functional as F

from basedbench.kernels.conv_gate import reference_step
from basedbench.kernels.row_stream import Rows, enter, enter_conv, enter_gated, leave, normalised

EPS = 1e-5


def test_norms_that_are_still_to_divide(randn):
    r, gain = randn(3, 12), randn(12)
    squares = torch.stack([r[:, :8].square().sum(1), r[:, 8:].square().sum(1)])
    found = normalised(Rows(r * gain, r, squares), EPS)
    torch.testing.assert_close(found, F.rms_norm(r, (12,), gain, EPS))
    assert normalised(Rows(found, r), EPS) is found


def test_from_the_stream_and_onto_it(randn):
    x, r, gain, weight, bias = randn(3, 12), randn(3, 12), randn(12), randn(10, 12), randn(10)
    rows, p = Rows(x, r), x @ weight.T
    torch.testing.assert_close(enter(rows, weight, bias, eps=EPS), p + bias)
    torch.testing.assert_close(enter_gated(rows, weight, eps=EPS), p[:, :5] * F.silu(p[:, 5:]))
    after = leave(p, weight.T, None, r, gain, eps=EPS, reader_ED=weight)
    torch.testing.assert_close(after.r_BD, r + p @ weight)
    torch.testing.assert_close(after.x_BD, F.rms_norm(after.r_BD, (12,), gain, EPS))
    assert after.squares_PB is None


def test_a_convolution_between(randn):
    x, weight, bias, taps, state = randn(3, 12), randn(10, 12), randn(10), randn(5, 3), randn(3, 5, 2)
    expected_state = state.clone()
    expected = reference_step(x @ weight.T + bias, taps, None, expected_state)
    torch.testing.assert_close(enter_conv(Rows(x, x), weight, bias, taps, None, state, eps=EPS), expected)
    torch.testing.assert_close(state, expected_state)
