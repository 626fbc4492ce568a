"""The kernel of `row_linear`: weights are asked for before its wait for the kernel in front, nothing is written."""

import pytest

from tests.kernels.compiled.test_variants import SHARED_LIMIT, compiled, disassembler

pytest.importorskip("triton")
pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")


@pytest.mark.slow
@pytest.mark.skipif(disassembler() is None, reason="this Triton comes without a disassembler")
def test_weights_are_asked_for_before_the_wait_and_nothing_is_written():
    found = compiled("tests.kernels.compiled.compile_row_linear")
    assert [one["early"] for one in found].count(False) == 1
    for one in found:
        assert (one["stack"], one["suspicions"]) == (0, []), one
        assert one["rings"] <= one["shared"] <= SHARED_LIMIT, one
        if one["early"]:
            assert one["copy"] < one["wait"] < one["write"], one
        else:
            assert one["wait"] is None, one
