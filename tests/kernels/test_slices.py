"""Cutting a tensor: the same numbers as `split`, without its copy where gradients lie side by side."""

import pytest
import torch

from basedbench.kernels.slices import cut, gradients_like

WIDTHS = [8, 8, 12]


def heads(parts):
    return [part.unflatten(-1, (2, -1)) for part in parts]


def test_gradients_that_lie_side_by_side_are_not_copied(randn):
    x = randn(3, 5, sum(WIDTHS)).requires_grad_()
    parts = cut(x, WIDTHS)
    room = gradients_like(*heads(parts))
    for piece in room:
        piece.copy_(randn(*piece.shape))
    (found,) = torch.autograd.grad(heads(parts), x, room)
    assert found.data_ptr() == room[0].data_ptr()
    assert torch.equal(found, torch.cat([piece.flatten(2) for piece in room], -1))


@pytest.mark.parametrize("order", [(0, 2, 1), (0, 1, 1)])
def test_other_gradients_are_put_together(randn, order):
    x = randn(3, 5, sum(WIDTHS)).requires_grad_()
    room = gradients_like(*heads(cut(x, WIDTHS)))
    flat = [piece.copy_(randn(*piece.shape)).flatten(2) for piece in room]
    for gradients in ([flat[index][..., :8] for index in order], [piece.contiguous() for piece in flat]):
        widths = [gradient.shape[-1] for gradient in gradients]
        whole = x[..., : sum(widths)].detach().requires_grad_()
        (found,) = torch.autograd.grad(cut(whole, widths), whole, gradients)
        assert torch.equal(found, torch.cat(gradients, -1))


def test_room_is_contiguous_unless_the_parts_are_a_whole(randn):
    q, k, v = heads(randn(3, 5, sum(WIDTHS)).split(WIDTHS, -1))
    for parts in [
        (q, k),
        (k, q, v),
        (q, k, v.clone()),
        (q[:, ::2], k[:, ::2], v[:, ::2]),
        (q[:, :0], k[:, :0], v[:, :0]),
    ]:
        for part, piece in zip(parts, gradients_like(*parts), strict=True):
            assert piece.is_contiguous()
            assert piece.shape == part.shape
    assert [piece.stride() for piece in gradients_like(q, k, v)] == [part.stride() for part in (q, k, v)]


def test_without_gradients_it_is_split(randn):
    x = randn(2, 3, sum(WIDTHS))
    for mine, theirs in zip(cut(x, WIDTHS), x.split(WIDTHS, -1), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() == theirs.data_ptr()


def test_second_derivatives(randn):
    x = randn(2, 3, sum(WIDTHS)).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: [part.square() for part in cut(x, WIDTHS)], x)
