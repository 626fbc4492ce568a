"""What is checked, and that the check itself is right and can fail."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from basedbench import kernels
from basedbench.checking import operators
from basedbench.checking.kernel import check_kernel
from basedbench.checking.operators import FORMS
from basedbench.checking.problems import COVERAGE, DTYPES, LENGTHS, Problem, problems

STEPPING = [name for name, form in FORMS.items() if form.step]
# Names of basedbench.kernels that have no kernel.
OTHERS = {"taylor_feature_map", "rotary_angles", "plane_linear"} | {"last_boundary"}  # an option of block_boundary
WITHOUT_GRADIENTS = {"adamw_step", "take_batch", "attention_decode", "cache_append", "row_argmax"}


def problem(operator: str, mode: str, dtype: str = "fp32", length: int = 70, options: tuple[str, ...] = ()) -> Problem:
    return Problem(operator, mode, dtype, length, tuple(COVERAGE[operator].sizes[0].items()), options)


def test_every_operator_is_checked() -> None:
    steps = {f"{name}_step" for name in STEPPING}
    assert set(kernels.__all__) - OTHERS <= set(COVERAGE) | steps
    assert set(FORMS) == set(COVERAGE)


def test_a_gpu_is_asked_everything_and_a_cpu_in_fp32() -> None:
    everything, quick = problems("cuda"), problems("cpu")
    assert len(set(everything)) == len(everything)
    assert set(quick) < set(everything)
    seen = Counter((one.operator, one.mode, one.dtype) for one in everything)
    assert all(seen[name, "fwd", dtype] >= len(LENGTHS) for name in COVERAGE for dtype in DTYPES)
    assert {name for name in COVERAGE if not seen[name, "gradients", "bf16"]} == WITHOUT_GRADIENTS
    assert len(quick) < len(everything) / 2
    assert max(Counter(one.operator for one in quick).values()) < 40  # a few seconds for an operator


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("operator", "mode"), [(name, mode) for name, coverage in COVERAGE.items() for mode in coverage.modes]
)
def test_the_references_are_right(operator: str, mode: str, dtype: str) -> None:
    row = check_kernel(problem(operator, mode, dtype), "cpu")
    assert row["verdict"] == "ok", row
    assert row["implementation"] == "reference"
    assert 0 <= row["error"] <= row["bound"]


@pytest.mark.parametrize("operator", STEPPING)
@pytest.mark.parametrize("length", [1, 200])
def test_steps_behind_short_and_long_prefixes(operator: str, length: int) -> None:
    row = check_kernel(problem(operator, "step", length=length), "cpu")
    assert row["verdict"] == "ok", row


def spoil(monkeypatch: pytest.MonkeyPatch, operator: str, **changes: object) -> None:
    monkeypatch.setitem(operators.FORMS, operator, replace(FORMS[operator], **changes))


def test_a_wrong_forward_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(q, k, v, **options):
        y = kernels.taylor_attention(q, k, v, **options)
        return torch.cat([y[:, :64], 1.0001 * y[:, 64:]], 1)

    def called(q_BLHK, k_BLHK, v_BLHV, **options):
        return late(q_BLHK, k_BLHK, v_BLHV, **options)

    spoil(monkeypatch, "taylor_attention", public=called)
    row = check_kernel(problem("taylor_attention", "fwd"), "cpu")
    assert row["verdict"] == "WRONG"
    assert "tokens 64-69" in row["reason"]


def test_a_wrong_gradient_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(x_BLD, weight_DW, bias_D, activation):
        weight_DW = 0.5 * weight_DW + 0.5 * weight_DW.detach()
        return kernels.short_conv(x_BLD, weight_DW, bias_D, activation=activation)

    spoil(monkeypatch, "short_conv", public=halved)
    assert check_kernel(problem("short_conv", "fwd"), "cpu")["verdict"] == "ok"
    row = check_kernel(problem("short_conv", "gradients"), "cpu")
    assert row["verdict"] == "WRONG"
    assert "gradient of weight_DW" in row["reason"]


def test_a_step_that_forgets_its_state_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(q_BHK, k_BHK, v_BHV, state_BHFW):
        state_BHFW = state_BHFW.clone()
        return kernels.taylor_attention_step(q_BHK, k_BHK, v_BHV, state_BHFW[..., :-1], state_BHFW[..., -1])

    spoil(monkeypatch, "taylor_attention", step=forgetful)
    row = check_kernel(problem("taylor_attention", "step"), "cpu")
    assert row["verdict"] == "WRONG"
    assert "state_BHFW" in row["reason"] or "output" in row["reason"]


def test_labels_say_everything() -> None:
    one = Problem("ssd", "gradients", "bf16", 17, (("H", 4), ("N", 16)), ("gate", "initial state"))
    assert one.label == "ssd gradients bf16 L17 H4 N16, gate, initial state"
    assert replace(one, contender="mine", options=()).label == "ssd/mine gradients bf16 L17 H4 N16"
