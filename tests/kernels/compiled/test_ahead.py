"""Kernels launched before the one ahead of them has ended: they have to wait for it before they touch memory."""

import pytest
import torch

from tests.kernels.compiled.test_variants import compiled, disassembler

triton = pytest.importorskip("triton")
ahead = pytest.importorskip("basedbench.kernels.ahead_triton")


@pytest.mark.slow
@pytest.mark.skipif(disassembler() is None, reason="this Triton comes without cuobjdump")
def test_early_kernels_wait_before_they_read_or_write():
    found = compiled("tests.kernels.compiled.compile_ahead")
    assert {one["kernel"] for one in found} == {
        "add_norm_forward_kernel",
        "swiglu_kernel",
        "conv_step_kernel",
        "step_kernel",
        "decode_kernel",
        "product_kernel",
        "join_kernel",
    }
    for one in found:
        assert one["early"], one
        assert one["wait"] < one["access"], one
        assert one["request"] is None or one["request"] < one["wait"], one
        assert (one["stack"], one["suspicions"]) == (0, []), one


@pytest.mark.parametrize("limit", [0, 1000, 2**14, 2**30])
@pytest.mark.parametrize("shape", [(7, 1024), (40, 1000), (3, 200)])
def test_requests_stay_inside_the_weight(monkeypatch, shape, limit):
    monkeypatch.setattr(ahead, "LIMIT", limit)
    monkeypatch.setattr(ahead, "_usable", lambda weight: True)
    weight = torch.zeros(shape, dtype=torch.bfloat16)
    found, size = ahead.options(weight), ahead.PIECE.value
    assert found["AHEAD"] == (limit > 0)
    assert found["ahead_pieces"] * size <= limit
    ends = [
        piece % found["ahead_rows"] * found["ahead_bytes"] + piece // found["ahead_rows"] * size + size
        for piece in range(found["ahead_pieces"])
    ]
    assert len(set(ends)) == len(ends)
    assert max(ends, default=0) <= weight.nbytes
    assert all((end - 1) % (2 * shape[1]) >= size - 1 for end in ends)  # no piece reaches into the next row


def test_nothing_is_asked_for_off_the_gpu_or_off_alignment():
    for weight in (None, torch.zeros(8, 1024), torch.zeros(8, 1027), torch.zeros(1024, 8).T):
        assert ahead.options(weight)["AHEAD"] is False
    assert ahead.launched_early(torch.zeros(8, 1024)) == {"EARLY": False}
