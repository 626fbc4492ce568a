"""The reference of token_shift: mixtures written out, the first token, gradients."""

import torch

from basedbench.kernels import token_shift
from basedbench.kernels.token_shift import bytes_moved, flops, mixed


def test_each_token_is_mixed_with_the_one_before_it(randn):
    x, mu = randn(2, 5, 3), randn(4, 3)
    for share, y in zip(mu, token_shift(x, mu), strict=True):
        torch.testing.assert_close(y[:, 0], (1 - share) * x[:, 0])
        torch.testing.assert_close(y[:, 1:], (1 - share) * x[:, 1:] + share * x[:, :-1])


def test_token_by_token_it_is_the_same(randn):
    x, mu = randn(2, 5, 3), randn(2, 3)
    before = torch.zeros_like(x[:, 0])
    for t in range(5):
        for whole, one in zip(token_shift(x, mu), mixed(x[:, t], before, mu), strict=True):
            torch.testing.assert_close(whole[:, t], one)
        before = x[:, t]


def test_gradients(randn):
    inputs = randn(2, 4, 3).requires_grad_(), randn(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, mu: tuple(token_shift(x, mu)), inputs)


def test_outputs_have_the_dtype_of_x(randn):
    assert [y.dtype for y in token_shift(randn(1, 2, 3).bfloat16(), randn(2, 3).float())] == [torch.bfloat16] * 2


def test_costs():
    shape = {"batch": 2, "length": 3, "channels": 4, "mixtures": 6}
    assert flops(**shape) == 24 * 13
    assert flops(**shape, backward=True) == 24 * (13 + 30)
    assert bytes_moved(**shape) == 24 * 7 * 2
    assert bytes_moved(**shape, backward=True) == 24 * (3 + 12) * 2
