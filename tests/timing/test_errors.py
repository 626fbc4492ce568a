"""The error measure: a wrong late block shows, a NaN is never right, rounding of a zero gradient is no error."""

import math

import pytest
import torch
from torch import Tensor

from basedbench.timing.errors import FLOOR, compare

LENGTH = 1000


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def judged(result: Tensor, truth: Tensor, same: Tensor | None = None, dtype: str = "fp32", name: str = "output 1"):
    return compare({name: result}, {name: truth if same is None else same}, {name: truth}, dtype, LENGTH)


def test_equal_is_right() -> None:
    y = normal(2, LENGTH, 4, 8)
    finding = judged(y.clone(), y)
    assert finding.right
    assert finding.error == 0


def test_a_small_error_in_a_late_block_shows_and_is_named() -> None:
    y = normal(2, LENGTH, 4, 8)
    wrong = y.clone()
    wrong[:, 960:] *= 1 + 5e-5  # in the norm of the whole 1e-5, which would pass
    finding = judged(wrong, y)
    assert not finding.right
    assert finding.where == "output 1, tokens 960-999"
    assert finding.error == pytest.approx(5e-5, rel=0.2)


def test_twice_the_error_of_the_reference_is_allowed() -> None:
    y, noise = normal(2, LENGTH, 8), 1e-3 * normal(2, LENGTH, 8, seed=1)
    assert judged(y + 1.9 * noise, y, same=y + noise).right
    assert not judged(y + 2.2 * noise, y, same=y + noise).right


@pytest.mark.parametrize(("dtype", "rounding"), [("bf16", 1.65e-3), ("fp16", 2.1e-4)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e7])  # in float16 nothing, and too much
def test_a_float32_gradient_is_allowed_what_rounding_it_to_the_cases_dtype_costs(
    dtype: str, rounding: float, size: float
) -> None:
    gradient = size * normal(2, LENGTH, 64)
    same, noise = gradient.float(), rounding * size * normal(2, LENGTH, 64, seed=1)
    limit = 2 * rounding + FLOOR[dtype]
    for share in (0.9, 1.1):
        off = (gradient + share * limit / rounding * noise).float()
        assert judged(off, gradient, same, dtype, "gradient of g").right is (share < 1)
    above_the_floor = (gradient + 1.2 * FLOOR[dtype] / rounding * noise).float()
    assert judged(above_the_floor, gradient, same, dtype, "gradient of g").right
    assert not judged(above_the_floor, gradient, same, dtype, "output 1").right
    assert not judged((1 + 1.2e-5) * gradient, gradient, gradient.float(), "fp32", "gradient of g").right


def test_one_wrong_head_of_a_state_shows() -> None:
    state = normal(2, 4, 16, 8)
    wrong = state.clone()
    wrong[1, 2] += 1e-4
    finding = judged(wrong, state)
    assert not finding.right
    assert finding.where.endswith("batch x head 6-6")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_single_bad_number_is_wrong(value: float) -> None:
    y = normal(2, LENGTH, 8)
    wrong = y.clone()
    wrong[1, 500, 3] = value
    assert not judged(wrong, y).right


def test_a_gradient_that_is_zero_is_held_against_the_largest() -> None:
    names = ("gradient of q", "gradient of v")
    truth = {names[0]: 1e-17 * normal(2, 1, 8), names[1]: normal(2, 1, 8)}
    rounding = {names[0]: 1e-7 * normal(2, 1, 8, seed=1), names[1]: truth[names[1]]}
    assert compare(rounding, truth, truth, "fp32", 1).right
    wrong = {names[0]: 1e-2 * normal(2, 1, 8, seed=1), names[1]: truth[names[1]]}
    assert not compare(wrong, truth, truth, "fp32", 1).right


def test_flags_may_differ_as_often_as_the_references() -> None:
    hit = torch.zeros(1000, dtype=torch.bool)
    off = hit.clone()
    off[:5] = True
    assert judged(off, hit).right
    off[:50] = True
    assert not judged(off, hit).right


def test_missing_outputs_and_shapes_are_named() -> None:
    y = normal(2, 5, 8)
    assert "output 2" in compare({"a": y}, {"a": y, "output 2": y}, {"a": y, "output 2": y}, "fp32", 5).where
    assert "shape (2, 5, 7) where (2, 5, 8) is due" in judged(y[..., :7], y).where


def test_what_is_imaginary_is_not_passed_over() -> None:
    y = normal(2, 5, 8)
    finding = judged(torch.complex(y, 100 + y), y)
    assert not finding.right
    assert finding.where == "output 1: complex numbers where real ones are due"


def test_one_wrong_row_shows_however_many_are_right() -> None:
    y = normal(64, LENGTH, 8)
    wrong = y.clone()
    wrong[17, 300] *= -1
    finding = judged(wrong, y, dtype="bf16")
    assert not finding.right
    assert finding.where == "output 1, one row of tokens 300"


def test_a_row_is_held_against_the_rows_around_it() -> None:
    """Early rows ten times the others: what their rounding leaves in a row that cancels is no error."""
    y = normal(2, LENGTH, 8)
    y[:, :64] *= 10
    y[0, 3] = 0
    rounding = torch.zeros_like(y)
    rounding[0, 3] = 0.03
    assert judged(y + rounding, y, dtype="bf16").right
    assert not judged(y + 40 * rounding, y, dtype="bf16").right


@pytest.mark.parametrize("shape", [(7,), (7, 3), (2, 3, 5), (2, 3, 4, 5), (2, LENGTH, 3)])
def test_every_shape_is_compared(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    assert judged(x.clone(), x).error == 0
    finding = judged(1.5 * x, x)
    assert finding.error == pytest.approx(0.5, rel=0.6)
    assert not finding.right


@pytest.mark.parametrize(("numbers", "right"), [(2, True), (16, True), (64, False)])
def test_a_gradient_of_few_numbers_is_no_mean(numbers: int, right: bool) -> None:
    gradient = normal(numbers).abs() + 1
    off = gradient * (1 + 3 * FLOOR["bf16"])
    assert judged(off, gradient, name="gradient of g", dtype="bf16").right is right
    assert not judged(gradient * (1 + 7 * FLOOR["bf16"]), gradient, name="gradient of g", dtype="bf16").right
    assert not judged(off, gradient, name="output 1", dtype="bf16").right
