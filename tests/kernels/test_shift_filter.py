"""The reference of `shift_filter`: its formula written out."""

import torch

from basedbench.kernels import shift_filter


def test_formula(randn):
    B, C = randn(3, 5), randn(3, 5)
    taps = [[sum(B[d, i] * C[d, i + j] for i in range(5 - j)) for d in range(3)] for j in range(5)]
    torch.testing.assert_close(shift_filter(B, C), torch.tensor(taps, dtype=torch.float64))


def test_half_precision_is_computed_in_float32(randn):
    B, C = randn(3, 5).bfloat16(), randn(3, 5).bfloat16()
    taps = shift_filter(B, C)
    assert taps.dtype == torch.float32
    torch.testing.assert_close(taps.double(), shift_filter(B.double(), C.double()), rtol=1e-5, atol=1e-5)
