"""The reference of asked attention against the whole operators in float64, and what it refuses."""

import pytest
import torch

from basedbench.kernels import sliding_window, sliding_window_asked, taylor_attention, taylor_attention_asked
from basedbench.kernels.asked import slots_of, take_rows

B, L, K, H = 3, 29, 5, 2


def inputs(widths):
    torch.manual_seed(0)
    positions_BK = torch.stack([torch.randperm(L)[:K] for _ in range(B)])
    return positions_BK, [torch.randn(B, L, H, width, dtype=torch.float64, requires_grad=True) for width in widths]


@pytest.mark.parametrize("window", [None, 1, 7, 100])
def test_outputs_and_gradients_are_rows_of_the_whole(window):
    positions_BK, leaves = inputs((8, 8, 6))
    slots_BL = slots_of(positions_BK, L)

    def asked(q, k, v):
        q = take_rows(q.flatten(2), positions_BK, slots_BL).unflatten(-1, (H, -1))
        if window is None:
            return taylor_attention_asked(q, k, v, positions_BK).flatten(2)
        return sliding_window_asked(q, k, v, positions_BK, window).flatten(2)

    def whole(q, k, v):
        y = taylor_attention(q, k, v) if window is None else sliding_window(q, k, v, window)
        return take_rows(y.flatten(2), positions_BK, slots_BL)

    found, expected = asked(*leaves), whole(*leaves)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    for mine, theirs in zip(
        *(torch.autograd.grad((y * weights).sum(), leaves) for y in (found, expected)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_a_bias_takes_the_sums_of_what_it_was_added_to():
    """Of q at the asked tokens, of k and v at all; it changes no output."""
    positions_BK, (q, k, v) = inputs((8, 8, 6))
    q, bias = q[:, :K], torch.randn(H * 22, dtype=torch.float64, requires_grad=True)
    y, plain = (sliding_window_asked(q, k, v, positions_BK, 7, **more) for more in ({"bias_E": bias}, {}))
    assert torch.equal(y, plain)
    weights = torch.randn_like(y)
    (mine,) = torch.autograd.grad((y * weights).sum(), [bias])
    expected = [x.sum((0, 1)).flatten() for x in torch.autograd.grad((plain * weights).sum(), [q, k, v])]
    torch.testing.assert_close(mine, torch.cat(expected))


def test_a_window_of_nothing_is_refused():
    positions_BK, (q, k, v) = inputs((8, 8, 6))
    with pytest.raises(ValueError, match="at least 1"):
        sliding_window_asked(q[:, :K], k, v, positions_BK, 0)
