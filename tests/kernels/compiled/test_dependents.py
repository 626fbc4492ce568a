"""The machine code of decode steps: a dependent waits once, before it writes; all other kernels never do."""

import pytest

from tests.kernels.compiled.test_variants import compiled, disassembler, thoroughly

pytest.importorskip("triton")
pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")

# These ask for something before they wait: weights and states.
AHEAD = {"add_norm_forward_kernel", "conv_words_kernel", "ring_kernel", "step_kernel", "product_kernel"}


@pytest.mark.slow
@pytest.mark.skipif(disassembler() is None, reason="this Triton comes without a disassembler")
@thoroughly
def test_dependents_wait(every):
    found = compiled("tests.kernels.compiled.compile_dependents", every=every)
    early = [one for one in found if one["early"]]
    assert {one["kernel"] for one in early} == {one["kernel"] for one in found if not one["early"]}
    for one in found:
        assert (one["waits"], one["triggers"]) == ((1, 1) if one["early"] else (0, 0)), one
    for one in early:
        assert one["suspicions"] == [], one
        assert one["writes_ahead"] == 0, one
        assert one["reads_ahead"] <= one["asked_ahead"], one
        assert (one["asked_ahead"] > 0) == (one["kernel"] in AHEAD), one
