"""The reference of split_conv: cuts and a convolution, one after the other."""

import pytest
import torch

from basedbench.kernels import short_conv, split_conv


def one_after_the_other(x, weight, bias):
    before, inner, dt = x.split([6, 10, 2], -1)
    return (before, *short_conv(inner, weight, bias, activation="silu").split([4, 6], -1), dt)


def test_outputs_and_gradients(randn, gradients):
    tensors = randn(2, 9, 18), randn(10, 4), randn(10)
    ours = split_conv(tensors[0], [6, 4, 6, 2], *tensors[1:], start=6, activation="silu")
    torch.testing.assert_close(ours, one_after_the_other(*tensors))

    def ours_sewn(x, weight, bias):
        return torch.cat(split_conv(x, [6, 4, 6, 2], weight, bias, start=6, activation="silu"), -1)

    theirs = gradients(lambda *given: torch.cat(one_after_the_other(*given), -1), *tensors)
    torch.testing.assert_close(gradients(ours_sewn, *tensors), theirs)


def test_what_lies_beyond_the_parts_is_left_out(randn):
    x = randn(1, 5, 12).requires_grad_()
    parts = split_conv(x, [4, 6], randn(6, 2), start=4)
    assert [part.shape[-1] for part in parts] == [4, 6]
    (dx,) = torch.autograd.grad(sum(part.sum() for part in parts), x)
    assert not dx[..., 10:].any()


@pytest.mark.parametrize(("widths", "start"), [([4, 8], 2), ([12], 0), ([4, 6, 4], 4), ([6, 4], 6)])
def test_parts_that_do_not_fit(randn, widths, start):
    with pytest.raises(ValueError, match="do not fit"):
        split_conv(randn(1, 5, 12), widths, randn(6, 2), start=start)


def test_the_activation_is_checked(randn):
    with pytest.raises(ValueError, match="relu"):
        split_conv(randn(1, 5, 6), [6], randn(6, 2), activation="relu")
