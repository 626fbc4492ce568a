"""What `row_linear`'s kernel does between two products, against float64: norms, gates, convolutions, the stream."""

import pytest
import torch
import torch.nn.functional as F

from basedbench.kernels import row_linear_launch
from basedbench.kernels.row_linear import LEAST_ROWS, batch_of
from tests.kernels.triton.conftest import interpreted

pytestmark = pytest.mark.usefixtures("tensor_maps")

PLANS = {  # tile, width of a stage, parts, stages of both rings, whether programs meet, groups of rows
    "whole": (64, 64, 1, 2, 3, False, 1),
    "halves": (64, 64, 2, 2, 3, False, 1),
    "quarters meet": (128, 64, 4, 3, 2, True, 1),
    "whole wide": (128, 128, 1, 2, 2, False, 1),
    "rows in groups": (64, 64, 1, 2, 3, False, 4),
    "halves of groups": (64, 64, 2, 2, 3, False, 2),
}
if not interpreted:
    PLANS |= {"of many rows": (64, 128, 1, 6, 4, True, 1), "of many rows, in parts": (64, 128, 2, 6, 4, True, 1)}
    PLANS |= {"many rows in groups": (64, 128, 1, 8, 4, True, 8), "halves of groups meet": (64, 128, 2, 4, 4, True, 2)}
ROWS = [1, 17] if interpreted else [1, 17, 100]
EPS, D, INNER = 1e-5, 320, 208  # neither a number of whole stages, nor of whole tiles
DTYPE = torch.float16 if interpreted else torch.bfloat16


@pytest.fixture(params=PLANS)
def plan(request):
    if interpreted and PLANS[request.param][5]:
        pytest.skip("waits")
    return PLANS[request.param]


@pytest.fixture
def drawn(randn, device):
    return lambda *shape: randn(*shape).to(device, DTYPE)


def close(relative_error, y, exact):
    """As near to the exact result as its own rounding, twice."""
    assert y.dtype == DTYPE
    assert relative_error(y, exact) <= 2 * relative_error(exact.to(DTYPE), exact) + 1e-5


def fewer(plan, rows):
    """With no more groups than there are."""
    return *plan[:-1], min(plan[-1], batch_of(rows) // LEAST_ROWS)


def rms(x, squares):
    """What x is divided by."""
    return (squares.double().sum(0) / x.shape[1] + EPS).sqrt()[:, None]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("normed", [False, True])
def test_norm_and_gate(drawn, randn, relative_error, device, plan, rows, normed):
    x, weight = drawn(rows, D), drawn(2 * INNER, D) / D**0.5
    squares = randn(5, rows).float().square().to(device) * D / 5 if normed else None
    y = row_linear_launch.operator(x, weight, None, *fewer(plan, len(x)), False, squares, EPS, True)
    p = x.double() @ weight.double().T
    value, gate = (p / rms(x, squares) if normed else p).chunk(2, -1)
    close(relative_error, y, value * F.silu(gate))


@pytest.mark.parametrize("bias", [False, True])
def test_norm_and_bias(drawn, randn, relative_error, device, plan, bias):
    x, weight = drawn(17, D), drawn(INNER, D) / D**0.5
    squares, b = randn(3, 17).float().square().to(device) * D / 3, drawn(INNER) if bias else None
    y = row_linear_launch.operator(x, weight, b, *fewer(plan, len(x)), False, squares, EPS)
    close(relative_error, y, x.double() @ weight.double().T / rms(x, squares) + (b.double() if bias else 0))


@pytest.mark.parametrize("bias", [False, True])
def test_convolution(drawn, randn, relative_error, device, plan, bias):
    rows = 9
    x, weight, taps, state = drawn(rows, D), drawn(2 * INNER, D) / D**0.5, drawn(INNER, 3), drawn(rows, INNER, 2)
    b, taps_bias = (drawn(2 * INNER), drawn(INNER)) if bias else (None, None)
    squares, before = randn(5, rows).float().square().to(device) * D / 5, state.clone()
    y = row_linear_launch.conv_operator(x, weight, b, taps, taps_bias, state, *fewer(plan, len(x)), False, squares, EPS)
    p = x.double() @ weight.double().T / rms(x, squares) + (b.double() if bias else 0)
    u, gate = p.chunk(2, -1)
    close(relative_error, state[..., 1], u)
    assert torch.equal(state[..., 0], before[..., 1])
    c = (before.double() * taps[:, :2].double()).sum(-1) + state[..., 1].double() * taps[:, 2].double()
    close(relative_error, y, F.silu(c + (taps_bias.double() if bias else 0)) * gate)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", ROWS)
def test_stream(drawn, randn, relative_error, device, plan, rows, bias):
    x, weight, gain, b = drawn(rows, D), drawn(INNER, D) / D**0.5, drawn(INNER), drawn(INNER) if bias else None
    stream = randn(rows, INNER).float().to(device)
    before = stream.clone()
    y, new, squares = row_linear_launch.onto_operator(x, weight, b, stream, gain, *fewer(plan, len(x)), False)
    exact = before.double() + x.double() @ weight.double().T + (b.double() if bias else 0)
    assert torch.equal(stream, before)
    assert relative_error(new, exact) < 2e-6
    close(relative_error, y, exact * gain.double())
    assert relative_error(squares.double().sum(0), exact.square().sum(1)) < 2e-6


def test_registration(drawn, randn, device):
    x, weight, plan = drawn(3, D), drawn(64, D), PLANS["halves"]
    squares, state = randn(2, 3).float().square().to(device), drawn(3, 32, 2)
    torch.library.opcheck(
        row_linear_launch.operator, (x, weight, None, *fewer(plan, len(x)), False, squares, EPS, True)
    )
    given = (x, weight, None, drawn(32, 3), None, state, *fewer(plan, len(x)), False, squares, EPS)
    torch.library.opcheck(row_linear_launch.conv_operator, given)
    torch.library.opcheck(
        row_linear_launch.onto_operator,
        (x, weight, None, randn(3, 64).float().to(device), weight[:, 0], *fewer(plan, len(x)), False),
    )
