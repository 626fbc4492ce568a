"""Tensors too large for offsets of 32 bits inside a sequence, none of which is ever made."""

import importlib

import pytest
import torch
from torch import Tensor

from basedbench.kernels.offsets import LIMIT, fit, span

pytest.importorskip("triton")
taylor = importlib.import_module("basedbench.kernels.taylor_attention_triton")
window = importlib.import_module("basedbench.kernels.sliding_window_triton")


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def heads(length: int, *widths: int, batch: int = 1, count: int = 16) -> list[Tensor]:
    return [empty(batch, length, count, width) for width in widths]


def test_a_span_is_where_the_last_number_of_a_sequence_is() -> None:
    whole = torch.arange(2 * 5 * 3 * 4).view(2, 5, 3, 4)
    for x in (whole, whole[:, :, :2, 1:3], whole.transpose(1, 2), whole[..., ::2]):
        last = x[1, -1, -1, -1] - x[1, 0, 0, 0]
        assert span(x) == max(int(last) + 1, x[0].numel())
    assert span(whole[:, :1, :1, :1].expand(2, 5, 3, 4)) == 5 * 3 * 4  # what is made of its shape is contiguous


def test_the_batch_does_not_count() -> None:
    assert fit(empty(2**20, 2**11, 1, 16))
    assert fit(empty(1, 2**21, 16, 64))
    assert not fit(empty(1, 2**21 + 1, 16, 64))
    assert span(empty(1, 699_052, 3, 16, 64)[:, :, 0]) > LIMIT >= span(empty(1, 699_051, 3, 16, 64)[:, :, 0])


@pytest.mark.parametrize(("length", "taken"), [(2**21, True), (2**21 + 1, False)])
def test_sliding_windows_kernels_leave_longer_sequences_to_the_reference(length: int, taken: bool) -> None:
    assert window.supported(*heads(length, 64, 64, 64)) is taken
    assert window.supported(*heads(64, 64, 64, 64, batch=length)) is True


@pytest.mark.parametrize(("length", "taken"), [(2**21, True), (2**21 + 1, False)])
def test_taylor_kernels_leave_longer_sequences_to_the_reference(
    monkeypatch: pytest.MonkeyPatch, length: int, taken: bool
) -> None:
    monkeypatch.setattr(taylor.taylor_gluon, "unsupported", lambda *_: "no such GPU")
    assert (taylor.unsupported(*heads(length, 16, 16, 64), None, False) is None) is taken
    assert taylor.unsupported(*heads(64, 16, 16, 64, batch=length), None, False) is None


def test_taylor_kernels_with_tensor_maps_only_count_where_gradients_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taylor.taylor_gluon, "unsupported", lambda *_: None)

    def refused(length: int, value_dim: int = 64, differentiable: bool = False) -> bool:
        q, k, v = heads(length, 16, 16, value_dim)
        return taylor.unsupported(q.requires_grad_(differentiable), k, v, None, False) is not None

    assert not refused(2**24)
    assert not refused(2**23, differentiable=True)
    assert refused(2**23 + 1, differentiable=True)
    assert refused(2**21, value_dim=112, differentiable=True)
    assert not refused(2**21, value_dim=112)
