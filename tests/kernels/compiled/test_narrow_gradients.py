"""The machine code of `narrow_gradients`: nothing spills, products are not waited for one by one, loads are wide."""

import pytest

from tests.kernels.compiled.test_variants import SHARED_LIMIT, compiled, disassembler

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.skipif(disassembler() is None, reason="this Triton comes without a disassembler")
def test_machine_code():
    found = compiled("tests.kernels.compiled.compile_narrow_gradients")
    for one in found:
        assert (one["stack"], one["suspicions"]) == (0, []), one
        assert one["waits"] <= 0.25, one
        assert one["loads"] >= 8 * one["short_loads"], one  # rows of x, 64 x 16, are 8 bytes for each of 256 threads
        assert one["shared"] <= SHARED_LIMIT, one
