"""The sums of partial sums are one kernel for all sizes, and read 16 bytes at a time."""

import pytest

from tests.kernels.compiled.test_variants import compiled, disassembler

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.skipif(disassembler() is None, reason="this Triton comes without a disassembler")
def test_machine_code():
    """A variant takes up to a second and more of compiling, before a run's first step."""
    (one,) = compiled("tests.kernels.compiled.compile_partial_sums")
    assert (one["stack"], one["suspicions"]) == (0, [])
    assert set(one["loads"]) == {"LDG.E.128"}
