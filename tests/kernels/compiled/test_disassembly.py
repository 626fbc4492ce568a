"""Kernels disassembled together are what they are one by one."""

import pytest

from tests.kernels.compiled.test_variants import compiled, disassembler

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.skipif(disassembler() is None, reason="this Triton comes without a disassembler")
def test_together_as_one_by_one():
    found = compiled("tests.kernels.compiled.compile_disassembly")
    assert len(found) > 1
    for one in found:
        assert one["instructions"] > 0, one
        assert one["same"], one
