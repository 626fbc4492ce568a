"""Mamba-2's machine code as it is trained: right, without large spills, and hardly more of them for packed examples."""

import pytest

from tests.kernels.compiled.test_variants import SHARED_LIMIT, STACK_LIMITS, compiled, disassembler, thoroughly

pytest.importorskip("triton")

# By kernel, states, and whether packed (docs/log/ssd.md): 24 states are too much for the walk back.
KNOWN_STACKS = {("walk_gradient_kernel", 24, False): 264, ("walk_gradient_kernel", 24, True): 312}
MORE_PACKED = 16  # bytes of stack
FULL = 64  # asked tokens: tiles take all registers, or as many as let two programs run at once, and some spill


@pytest.mark.slow
@pytest.mark.skipif(disassembler() is None, reason="this Triton comes without a disassembler")
@thoroughly
def test_machine_code(every):
    found = compiled("tests.kernels.compiled.compile_split_ssd", every=every)
    walks, asked = {"walk_output_kernel", "walk_gradient_kernel"}, {"asked_output_kernel", "asked_gradient_kernel"}
    assert walks | asked <= {one["kernel"] for one in found}
    plain = {(one["kernel"], one["states"], one["asked"]): one["stack"] for one in found if not one["packed"]}
    for one in found:
        assert one["suspicions"] == [], one
        known = KNOWN_STACKS.get((one["kernel"], one["states"], one["packed"]), 0)
        assert one["stack"] <= max(STACK_LIMITS["bf16"], known), one
        if one["asked"] < FULL:
            assert one["stack"] <= max(plain[one["kernel"], one["states"], one["asked"]] + MORE_PACKED, known), one
        assert one["shared"] <= SHARED_LIMIT, one
