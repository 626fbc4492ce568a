"""What passes the gate and what does not."""

import math
from threading import Event, Thread

import pytest
import torch

from basedbench.contenders import get_contender
from basedbench.timing import correctness
from basedbench.timing.correctness import check, judge
from basedbench.timing.errors import FLOOR
from tests.contenders.conftest import FORMS, small
from tests.timing.conftest import Altered


def verdict(alter, operator="taylor_attention", mode="fwd", **changes):
    case, contender = small(operator, mode, "altered", **changes), Altered(alter)
    with torch.set_grad_enabled(mode == "fwd_bwd"):
        return check(case, contender, contender.build(case), "cpu")


@pytest.mark.parametrize(("operator", "mode"), FORMS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_reference_itself_passes(operator: str, mode: str, dtype: str) -> None:
    result = verdict(lambda y, _: y, operator, mode, dtype=dtype)
    assert result.reason is None
    assert result.error <= result.bound
    assert result.truth == "float64"
    assert result.error > 0


def test_an_error_beyond_the_bound_is_refused() -> None:
    result = verdict(lambda y, _: y * 1.001)
    assert result.error == pytest.approx(1e-3, rel=0.01)
    assert result.reason.startswith("the output: relative error")
    assert verdict(lambda y, _: y * 1.000003).reason is None


@pytest.mark.parametrize(
    ("mode", "dtype", "error", "floor"),
    [
        ("fwd", "bf16", 1e-3, FLOOR["bf16"]),
        ("fwd_bwd", "bf16", 1e-3, 1.5 * FLOOR["bf16"]),
        ("fwd_bwd", "fp16", 1e-4, 1.5 * FLOOR["fp16"]),
        ("fwd_bwd", "fp32", 1e-6, FLOOR["fp32"]),
    ],
)
def test_the_bound_is_twice_the_references_own_error_and_a_floor(mode, dtype, error, floor) -> None:
    truth = {"y": torch.ones(1000, 4, dtype=torch.float64)}
    same = {"y": truth["y"] * (1 + error)}
    for share, passes in ((0.98, True), (1.02, False)):
        off = {"y": truth["y"] * (1 + share * (2 * error + floor))}
        result = judge(off, same, truth, small("ssd", mode, "ours", dtype=dtype), "float64")
        assert (result.reason is None) is passes
        assert result.bound == pytest.approx(2 * error + floor)


def test_one_wrong_row_in_many_is_refused() -> None:
    def last_row(y, _):
        y = y.clone()
        y[-1, -1, -1] *= -1
        return y

    many = {"batch": 64, "length": 512, "dtype": "bf16"}  # 65 thousand rows: one adds 0.8 % to the norm at most
    assert verdict(last_row, **many).reason.startswith("the output, one row of tokens 511: relative error")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_refused(value: float) -> None:
    def spoil(y, _):
        y = y.clone()
        y[0, 0, 0, 0] = value
        return y

    result = verdict(spoil)
    assert result.reason is not None
    assert not math.isfinite(result.error)


@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd"])
def test_a_call_that_changes_its_inputs_is_refused(mode: str) -> None:
    """Its first results are right, and whatever is timed afterwards is another problem."""

    def halve(y, tensors):
        tensors["v_BLHV"].data[:, -1].mul_(0.5)
        return y

    result = verdict(halve, mode=mode)
    assert result.reason == "it writes into its input v_BLHV"
    assert math.isnan(result.error)


@pytest.mark.parametrize("shape", [(2, 30, 4), (1, 60, 3), (7,), (), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64, torch.bool])
def test_inputs_are_compared_a_part_at_a_time(shape, dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum of 16-bit numbers first makes them 64 bits wide: of the largest inputs that is more than fits."""
    at_once, plain = list[int](), torch.Tensor.sum
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) > 0).to(dtype)

    def noting(self, dtype=None):
        if dtype is not None:
            at_once.append(self.numel())
        return plain(self, dtype=dtype)

    monkeypatch.setattr(correctness, "SUMMED", 12)
    monkeypatch.setattr(torch.Tensor, "sum", noting)
    for laid_out in (x, x.movedim(0, -1) if x.dim() else x):
        assert torch.equal(correctness._sum_of_bits(laid_out), correctness._sum_of_bits(laid_out.contiguous()))
    assert max(at_once) <= 12


def test_inputs_in_another_order_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0))
    others = x.flip(1), x.roll(1, 1), x.sort(1).values, x.flip(0), x.flip(2)
    for summed in (correctness.SUMMED, 12):
        monkeypatch.setattr(correctness, "SUMMED", summed)
        assert not any(torch.equal(correctness._sum_of_bits(other), correctness._sum_of_bits(x)) for other in others)


def test_what_is_no_tensor_or_has_another_shape_is_said_so() -> None:
    with pytest.raises(TypeError, match="it returns None where a tensor is due"):
        verdict(lambda y, _: None)
    assert verdict(lambda y, _: y[:, :-1]).reason.endswith("is due")


def test_wrong_gradients_are_refused_by_name() -> None:
    def detach_half(y, tensors):
        return y + (tensors["k_BLHK"].sum() - tensors["k_BLHK"].sum().detach())  # same value, other gradient

    result = verdict(detach_half, mode="fwd_bwd")
    assert result.reason.startswith("the gradient of k_BLHK: relative error")


def test_inputs_without_a_gradient_are_named() -> None:
    with pytest.raises(RuntimeError, match="no gradient reaches q_BLHK, k_BLHK, v_BLHV; what has no backward"):
        verdict(lambda y, _: y.detach(), mode="fwd_bwd")


def test_what_is_kept_of_an_earlier_call_is_refused() -> None:
    kept: list[torch.Tensor] = []

    def first(y, _):
        kept.append(y)
        return kept[0]

    assert "relative error" in verdict(first).reason


@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd", "decode"])
def test_what_is_kept_by_the_place_of_its_input_is_refused(mode: str) -> None:
    """Every input set of a sample would find it there from its second call on: nothing would be computed any more."""
    kept: dict[tuple[int, int, int], torch.Tensor] = {}

    def keep(y, tensors):
        x = tensors["v_BHV" if mode == "decode" else "v_BLHV"]
        return y + kept.setdefault((id(x), x.data_ptr(), x._version), x.detach().mean()) - x.detach().mean()

    reason = verdict(keep, mode=mode).reason
    assert reason.startswith(
        "it is right on inputs in a place of their own, so it may keep what it made of others there: the output"
    )
    assert verdict(lambda y, tensors: y + len(kept), mode=mode).reason.startswith("the output")  # plainly wrong


def test_a_failure_of_what_is_called_again_hides_no_verdict() -> None:
    calls: list[int] = []

    def wrong(y, _):
        calls.append(1)
        if len(calls) > 3:
            raise ValueError("not again")
        return y * 1.5

    assert verdict(wrong).reason.startswith("the output: relative error 0.5")


def test_a_layout_may_depend_on_the_values_and_the_call_put_aside_what_it_likes() -> None:
    """An index of no fixed length, a tensor without elements, and a workspace among the tensors that were given."""

    class Ragged(Altered):
        def layout(self, case, tensors):
            positive = tensors["v_BLHV"].flatten().gt(0).nonzero().flatten()
            return tensors | {"positive": positive, "none": torch.zeros(1).expand(0, 1)[:, :0]}

        def build(self, case):
            call = get_contender("reference").build(case)

            def with_workspace(tensors):
                given = {name: x for name, x in tensors.items() if name not in ("positive", "none", "_ws")}
                tensors["_ws"] = given["v_BLHV"] * 2
                return self.alter(call(given), tensors)

            return with_workspace

    case, ragged = small("taylor_attention", "fwd", "ragged"), Ragged(lambda y, _: y)
    assert check(case, ragged, ragged.build(case), "cpu").reason is None


def test_a_layout_with_several_elements_in_one_place_is_checked() -> None:
    """As of a kernel that is told by zero strides what its channels share."""

    class Shared(Altered):
        def layout(self, case, tensors):
            return tensors | {"dt_BLH": tensors["dt_BLH"].unsqueeze(-1).expand(-1, -1, -1, 6)}

        def build(self, case):
            call = get_contender("reference").build(case)
            return lambda tensors: call(tensors | {"dt_BLH": self.alter(tensors["dt_BLH"], tensors)[..., 0]})

    case = small("ssd", "fwd", "shared")
    right, wrong = Shared(lambda x, _: x), Shared(lambda x, _: x * 1.01)
    assert check(case, right, right.build(case), "cpu").reason is None
    assert "relative error" in check(case, wrong, wrong.build(case), "cpu").reason


def test_what_is_not_done_when_the_call_returns_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a thread, or on a stream that nobody waits for: the time would be that of a launch."""
    reference, truth_is_due, at_work = correctness.reference_call, Event(), list[Thread]()

    def later(y, _):
        given = y * 0

        def work():
            truth_is_due.wait(60)
            given.copy_(y)

        at_work.append(Thread(target=work))
        at_work[-1].start()
        return given

    def waiting(*arguments):
        truth_is_due.set()
        for thread in at_work:
            thread.join(60)
        return reference(*arguments)

    monkeypatch.setattr(correctness, "reference_call", waiting)
    assert verdict(later).reason == "it returns before its work is done: the output changes afterwards"


def test_a_state_left_behind_is_refused() -> None:
    def forget(y, tensors):
        tensors["state_BHFV"].mul_(0.5)
        return y

    assert verdict(forget, mode="decode").reason.startswith("state_BHFV: relative error")


def test_wrong_shapes_and_missing_outputs_are_refused() -> None:
    assert "shape (2, 39, 2, 6) where (2, 40, 2, 6) is due" in verdict(lambda y, _: y[:, :-1]).reason
    assert (
        "it returns the output, where output 1, output 2 should be"
        in verdict(lambda y, _: y[0], "linear_cross_entropy").reason
    )


def test_wrong_flags_are_refused() -> None:
    result = verdict(lambda y, _: (y[0], ~y[1]), "linear_cross_entropy")
    assert result.reason.startswith("output 2: share of wrong values 1")


def test_rows_that_are_not_written_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory that a call gets held NaN before, not the result of an earlier call."""
    filled = []
    original = torch.full
    monkeypatch.setattr(correctness.torch, "full", lambda *a, **k: filled.append(a) or original(*a, **k))
    verdict(lambda y, _: y)
    assert filled[0][0] == (2, 40, 2, 6)
    assert math.isnan(filled[0][1])


def test_nothing_that_a_backward_starts_from_lies_where_its_results_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients that are not written hold NaN then: no other tensor of the run that is judged has taken their place."""
    poisoned, taken = set[int](), list[bool]()
    full, grad = torch.full, torch.autograd.grad

    def poison(*arguments, **options):
        x = full(*arguments, **options)
        poisoned.add(x.data_ptr())
        return x

    def noting(ends, leaves, starts, **options):
        taken.append(any(start.data_ptr() in poisoned for start in starts))
        return grad(ends, leaves, starts, **options)

    monkeypatch.setattr(correctness.torch, "full", poison)
    monkeypatch.setattr(torch.autograd, "grad", noting)
    verdict(lambda y, _: y, mode="fwd_bwd", batch=64, length=64)
    assert len(poisoned) == 4
    assert len(taken) == 5  # three times the contender, the truth, the reference in the case's dtype
    assert not taken[2]


@pytest.mark.parametrize(("name", "runs"), [("altered", 2), ("reference", 1)])
@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd", "decode"])
def test_the_reference_is_called_no_oftener_than_need_be(
    mode: str, name: str, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for the truth; once as it is, unless it is the contender; and forwards once for a backward, too."""
    called, call = list[torch.dtype](), correctness.reference_call
    case = small("taylor_attention", mode, name, dtype="bf16")

    def counting(*arguments):
        made = call(*arguments)
        return lambda tensors: called.append(tensors["v_BLHV" if mode != "decode" else "v_BHV"].dtype) or made(tensors)

    monkeypatch.setattr(correctness, "reference_call", counting)
    contender = get_contender("reference") if name == "reference" else Altered(lambda y, _: y)
    with torch.set_grad_enabled(mode == "fwd_bwd"):
        assert check(case, contender, contender.build(case), "cpu").reason is None
    assert called == [torch.float64, torch.bfloat16][:runs]


def test_large_cases_are_checked_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(correctness.FLOAT64_FLOPS, "cpu", 10)
    assert verdict(lambda y, _: y, dtype="bf16").truth == "float32"


def test_a_truth_that_does_not_fit_is_taken_of_one_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    original = correctness._check

    def full(case, *more):
        if case.batch > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(case, *more)

    monkeypatch.setattr(correctness, "_check", full)
    assert verdict(lambda y, _: y).truth == "float64, at batch 1"
    assert verdict(lambda y, _: y * 2).reason is not None


def test_a_single_sequence_that_does_not_fit_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(correctness, "_check", full)
    with pytest.raises(torch.OutOfMemoryError):
        verdict(lambda y, _: y, batch=1)


@pytest.mark.parametrize("length", [257, 2048])
def test_the_librarys_own_gradients_pass_in_half_precision(length: int) -> None:
    """Rows of a query's gradient nearly cancel early in a sequence, in every kernel that keeps y in 16 bits."""
    case = small("attention", "fwd_bwd", "sdpa-flash", dtype="bf16", batch=1, length=length, key_dim=64, value_dim=64)
    contender = get_contender("sdpa-flash")
    result = check(case, contender, contender.build(case), "cpu")
    assert result.reason is None
    assert result.error > 1e-3
