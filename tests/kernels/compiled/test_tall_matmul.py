"""The machine code of products of many tokens: small programs, nothing spills, loads are wide."""

import pytest

from tests.kernels.compiled.test_variants import SHARED_LIMIT, compiled, disassembler

pytest.importorskip("triton")
REGISTERS = 65536 // 32  # of a multiprocessor, for each lane


@pytest.mark.slow
@pytest.mark.skipif(disassembler() is None, reason="this Triton comes without a disassembler")
def test_machine_code():
    found = compiled("tests.kernels.compiled.compile_tall_matmul")
    assert {one["kernel"] for one in found} == {"tall_matmul_kernel", "wide_rows_kernel", "token_sum_kernel"}
    for one in found:
        assert (one["stack"], one["suspicions"]) == (0, []), one
        assert one["added"] == "vector" or not one["short_loads"], one
        # What they are for: at least three fit on a multiprocessor.
        assert 3 * one["registers"] * one["warps"] <= REGISTERS, one
        assert 3 * one["shared"] <= SHARED_LIMIT, one
