"""The reference of `block_boundary` against the formula written out, and its counts."""

from importlib import import_module

import pytest
import torch

from basedbench.kernels import add_layer_norm, block_boundary, last_boundary
from basedbench.kernels.asked import questions_at

module = import_module("basedbench.kernels.block_boundary")


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("paired", [True, False])
def test_it_is_two_norms_and_two_sums(randn, gradients, center, paired):
    h, stream, weight, bias, *first = randn(2, 7, 12), randn(2, 7, 12), *(randn(12) for _ in range(4))
    positions = torch.tensor([[6, 0, 3], [1, 2, 5]])
    rows = positions + torch.tensor([[0], [7]])
    last = (weight, bias if center else None)

    def ours(h, stream, weight, *rest):
        return block_boundary(h, stream, (weight, last[1]), first=tuple(rest) if paired else None, center=center)

    def separate(h, stream, weight, *rest):
        if paired:
            h, stream = add_layer_norm(h, stream, *rest)
        return add_layer_norm(h, stream, weight, last[1], center=center)

    def ours_at(h, stream, weight, *rest):
        norm, first = (weight, last[1]), tuple(rest) if paired else None
        y, asked, s = last_boundary(h, stream, norm, questions_at(positions, h.shape[1]), first=first, center=center)
        return y, asked.x_BKD, s

    def separate_at(*given):
        y, s = separate(*given)
        return y, y.flatten(0, 1)[rows], s.flatten(0, 1)[rows]

    arguments = [h, stream, weight, *(first if paired else [])]
    for mine, theirs in ((ours, separate), (ours_at, separate_at)):
        torch.testing.assert_close(mine(*arguments), theirs(*arguments))
        torch.testing.assert_close(gradients(mine, *arguments), gradients(theirs, *arguments))


def test_dtypes(randn):
    h, stream, weight, bias = randn(4, 8).bfloat16(), randn(4, 8).float(), randn(8).float(), randn(8).float()
    norm = (weight, bias)
    assert [x.dtype for x in block_boundary(h, stream, norm, first=norm)] == [torch.float32] * 2
    y, s = block_boundary(h, stream, norm, dtype=torch.bfloat16)
    assert (y.dtype, s.dtype) == (torch.bfloat16, torch.float32)


def test_a_bias_without_centering_is_refused(randn):
    with pytest.raises(ValueError, match="without centering has no bias"):
        block_boundary(randn(2, 8), randn(2, 8), (randn(8), randn(8)), center=False)


def test_counts():
    assert module.bytes_moved(rows=1000, width=64) == 4 * (4 * 1000 * 64 + 4 * 64)
    assert module.bytes_moved(rows=1000, width=64, backward=True) == 4 * (8 * 1000 * 64 + 10 * 64)
    assert module.flops(rows=1000, width=64, backward=True) == 3 * module.flops(rows=1000, width=64)
