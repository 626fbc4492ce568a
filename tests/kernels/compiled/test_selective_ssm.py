"""The machine code of `selective_ssm`: right, without large spills, and for packed examples as short as for others."""

import pytest

from tests.kernels.compiled.test_variants import SHARED_LIMIT, STACK_LIMITS, compiled, disassembler, thoroughly

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.skipif(disassembler() is None, reason="this Triton comes without a disassembler")
@thoroughly
def test_machine_code(every):
    found = compiled("tests.kernels.compiled.compile_selective_ssm", every=every)
    for one in found:
        assert one["suspicions"] == [], one
        assert one["stack"] <= STACK_LIMITS["bf16"], one
        assert one["shared"] <= SHARED_LIMIT, one
    # Where the compiler knows what an example's tiles are counted from, loops become longer and spill (packed_tiles).
    for name in ("forward", "backward"):
        scans = [one for one in found if one["kernel"] == name]
        usual, packed = ([one for one in scans if one["packed"] is packed] for packed in (False, True))
        assert len(usual) == len(packed) == (8 if every else 2)
        for one, other in zip(usual, packed, strict=True):
            assert other["loop"] <= 1.005 * one["loop"], (one, other)
            assert other["stack"] <= one["stack"] + 8, (one, other)
