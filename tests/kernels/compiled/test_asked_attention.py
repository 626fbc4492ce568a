"""Asked attention's machine code: right, without large spills, and keys and values are read in whole pieces."""

import pytest

from tests.kernels.compiled.test_variants import SHARED_LIMIT, STACK_LIMITS, compiled, disassembler

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.skipif(disassembler() is None, reason="this Triton comes without a disassembler")
def test_machine_code():
    found = compiled("tests.kernels.compiled.compile_asked_attention")
    assert {one["kernel"] for one in found} == {"asked_forward_kernel", "asked_backward_kernel", "sum_parts_kernel"}
    for one in found:
        if one["kernel"] == "sum_parts_kernel":
            continue
        assert one["suspicions"] == [], one
        assert one["stack"] <= STACK_LIMITS["bf16"], one
        assert one["shared"] <= SHARED_LIMIT, one
        if not one["trained"]:
            continue
        # Rows of 8 or 24 keys beside values are no multiples of 16 numbers, which is all that Triton looks for itself.
        assert one["single"] == 0, one
        assert one["copies"] > 0, one
