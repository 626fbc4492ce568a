"""A part of a large case stands for it: the truth of the part is that of the whole there, and what is wrong shows."""

import math

import pytest
import torch

from basedbench.config.throughput import Case
from basedbench.contenders import operator_of
from basedbench.contenders.operators import bind
from basedbench.timing import part as parts
from basedbench.timing.correctness import Verdict, check
from basedbench.timing.part import Part, part_of
from basedbench.timing.program import first_run, inputs
from tests.contenders.conftest import FORMS, small
from tests.timing.conftest import Altered

HEADED = {
    *("attention", "taylor_attention", "linear_attention", "sliding_window"),
    *("delta_rule", "gated_linear_attention"),
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is large."""
    monkeypatch.setitem(parts.MOST_BYTES, "cpu", 1)


def part(case: Case) -> Part | None:
    return part_of(case, inputs(case, 0, "cpu"))


def large(operator: str, mode: str, **changes: object) -> Case:
    heads = {"heads": 4} if small(operator, mode).heads > 1 else {}
    return small(operator, mode, **({"batch": 3} | changes)).model_copy(update=heads)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("operator", "mode"), FORMS)
def test_what_is_checked_of_each_operator(operator: str, mode: str) -> None:
    found = part(large(operator, mode))
    if operator in HEADED:
        assert found.words == "4 of 12 heads"
        assert found.share == pytest.approx(1 / 3)
    elif operator == "linear_cross_entropy" or mode == "fwd_bwd":
        assert found is None  # targets and parameters are shared
    else:
        assert found.words == "2 of 3 sequences"


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("operator", "mode"), FORMS)
def test_the_truth_of_a_part_is_that_of_the_whole_there(operator: str, mode: str) -> None:
    case = large(operator, mode)
    found, tensors = part(case), inputs(case, 0, "cpu")
    if found is None:
        pytest.skip("all of it is checked")
    reference = bind(operator_of(case).reference, case)
    with torch.set_grad_enabled(mode == "fwd_bwd"):
        whole = found.results(first_run(case, reference, tensors, "cpu", torch.float64)[1])
        alone = first_run(case, reference, found.inputs(tensors), "cpu", torch.float64, found)[1]
    assert set(alone) == set(whole)
    for name, expected in whole.items():
        assert alone[name].shape == expected.shape
        torch.testing.assert_close(alone[name], expected, rtol=1e-9, atol=1e-12)


def test_small_cases_are_checked_whole() -> None:
    assert part(large("attention", "fwd_bwd")) is None


def test_a_part_is_at_most_half(monkeypatch: pytest.MonkeyPatch) -> None:
    case = large("attention", "fwd", batch=8)
    for share, words in ((0.51, None), (0.5, "16 of 32 heads"), (0.25, "8 of 32 heads"), (0.01, "4 of 32 heads")):
        monkeypatch.setitem(parts.MOST_BYTES, "cpu", share * parts.bytes_of(case))
        found = part(case)
        assert (found and found.words) == words


@pytest.mark.usefixtures("tiny")
def test_first_and_last_are_there_and_the_others_are_the_seeds() -> None:
    case = large("attention", "fwd", batch=16)
    one = part(case)
    pairs = list(zip(one.sequences, one.heads, strict=True))
    assert len(set(pairs)) == 4
    assert pairs[0] == (0, 0)
    assert pairs[-1] == (15, 3)
    assert part(case.model_copy(update={"contender": "flex"})).sequences == one.sequences
    others = {part(large("attention", "fwd", batch=16, length=length)).sequences for length in range(30, 40)}
    assert len(others) > 1


def verdict(alter, mode: str = "fwd", **changes: object) -> Verdict:
    case, contender = large("attention", mode, **changes), Altered(alter)
    with torch.set_grad_enabled(mode == "fwd_bwd"):
        return check(case, contender, contender.build(case), "cpu")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_is_right_passes_and_what_was_checked_is_said(mode: str, dtype: str) -> None:
    result = verdict(lambda y, _: y, mode, dtype=dtype)
    assert result.reason is None
    assert result.truth == "float64, 4 of 12 heads"


@pytest.mark.usefixtures("tiny")
def test_heads_and_sequences_that_change_places_are_refused() -> None:
    assert verdict(lambda y, _: y.roll(1, 0)).reason.startswith("the output: relative error")
    assert verdict(lambda y, _: y.roll(1, 2)).reason.startswith("the output: relative error")


@pytest.mark.usefixtures("tiny")
def test_a_wrong_gradient_is_refused() -> None:
    def half(y, tensors):
        return y + (tensors["k_BLHK"].sum() - tensors["k_BLHK"].sum().detach())

    assert verdict(half, "fwd_bwd").reason.startswith("the gradient of k_BLHK")


@pytest.mark.usefixtures("tiny")
def test_what_is_not_written_shows_wherever_it_is() -> None:
    case = large("attention", "fwd", batch=16)
    checked = set(part(case).sequences)
    other = next(index for index in range(16) if index not in checked)

    def spoil(y, _):
        y = y.clone()
        y[other, 0, 0, 0] = math.nan
        return y

    result = verdict(spoil, batch=16)
    assert result.reason == "the output: values that are no finite numbers"
    assert math.isnan(result.error)
