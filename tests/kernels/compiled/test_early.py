"""Kernels launched before the one ahead of them has ended: they have to wait for it before they touch what it wrote."""

import pytest

from tests.kernels.compiled.test_variants import compiled, disassembler

triton = pytest.importorskip("triton")
pytest.importorskip("basedbench.kernels.dependent_launch_triton")


@pytest.mark.slow
@pytest.mark.skipif(disassembler() is None, reason="this Triton comes without cuobjdump")
def test_early_kernels_wait_before_they_read_or_write():
    found = compiled("tests.kernels.compiled.compile_early")
    assert {one["kernel"] for one in found} == {
        *("add_norm_forward_kernel", "swiglu_kernel", "step_kernel", "decode_kernel"),
        *("append_kernel", "product_kernel", "conv_words_kernel", "argmax_kernel"),
    }
    for one in found:
        assert one["early"], one
        assert one["wait"] < one["access"], one
        assert (one["kernel"] == "product_kernel") == (one["copy"] is not None), one
        assert one["copy"] is None or one["copy"] < one["wait"], one  # the weights', which nobody writes
        assert (one["stack"], one["suspicions"]) == (0, []), one
