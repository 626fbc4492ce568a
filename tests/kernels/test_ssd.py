"""SSD against its recurrence in float64, and against the selective scan, of which it is the scalar-decay case."""

import pytest
import torch
from torch import Tensor

from basedbench.kernels import selective_scan, ssd, ssd_step

# Relative error against float64 on the same (rounded) inputs: outputs and gradients.
TOLERANCE = {torch.float32: (1e-6, 5e-6), torch.float16: (4e-4, 4e-4), torch.bfloat16: (3e-3, 3e-3)}


def naive(x, dt, A, B, C, D=None, z=None, bias=None, softplus=False, state=None) -> tuple[Tensor, Tensor]:
    dt = dt if bias is None else dt + bias
    dt = (1 + dt.exp()).log() if softplus else dt
    heads, groups = x.shape[2], B.shape[2]
    group = torch.arange(heads) // (heads // groups)
    state = torch.zeros(x.shape[0], heads, x.shape[3], B.shape[3], dtype=x.dtype) if state is None else state
    outputs = []
    for t in range(x.shape[1]):
        grown = torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], x[:, t], B[:, t, group])
        state = (dt[:, t] * A).exp()[..., None, None] * state + grown
        y = torch.einsum("bhpn,bhn->bhp", state, C[:, t, group])
        y = y if D is None else y + D[:, None] * x[:, t]
        outputs.append(y if z is None else y * z[:, t] * z[:, t].sigmoid())
    return torch.stack(outputs, 1), state


def required(randn, length, heads=4, groups=2, width=5, states=3, batch=2):
    """x, dt, A, B, C."""
    sequences = randn(batch, length, heads, width), 0.5 * randn(batch, length, heads).abs()
    keys = randn(batch, length, groups, states), randn(batch, length, groups, states)
    return *sequences, -randn(heads).abs(), *keys


def optional(randn, length, heads=4, width=5, states=3, batch=2, **_):
    """D, z, the bias of dt, the initial state."""
    return randn(heads), randn(batch, length, heads, width), randn(heads), randn(batch, heads, width, states)


def full(x, dt, A, B, C, D, z, bias, state, chunk=8) -> tuple[Tensor, Tensor]:
    """Everything switched on."""
    options = {"D_H": D, "z_BLHP": z, "dt_bias_H": bias, "dt_softplus": True}
    return ssd(x, dt, A, B, C, **options, initial_state=state, return_state=True, chunk=chunk)


def naive_full(x, dt, A, B, C, D, z, bias, state) -> tuple[Tensor, Tensor]:
    return naive(x, dt, A, B, C, D, z, bias, True, state)


@pytest.mark.parametrize(("length", "groups"), [(1, 1), (8, 4), (17, 2), (24, 1)])
def test_everything_on_equals_the_loop(randn, gradients, length, groups):
    inputs = *required(randn, length, groups=groups), *optional(randn, length)
    for ours, exact in zip(full(*inputs), naive_full(*inputs), strict=True):
        torch.testing.assert_close(ours, exact)
    for ours, exact in zip(gradients(full, *inputs), gradients(naive_full, *inputs), strict=True):
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("chunk", [2, 64])
def test_gradcheck(randn, chunk):
    sizes = {"heads": 2, "groups": 1, "width": 2, "states": 2, "batch": 1}
    inputs = [x.requires_grad_() for x in (*required(randn, 5, **sizes), *optional(randn, 5, **sizes))]
    assert torch.autograd.gradcheck(lambda *x: full(*x, chunk=chunk), inputs)


@pytest.mark.parametrize(
    ("length", "width", "states"), [(1, 64, 16), (17, 48, 128), (64, 112, 16), (100, 128, 64), (1000, 64, 16)]
)
def test_everything_off_equals_the_loop(randn, length, width, states):
    inputs = required(randn, length, heads=2, groups=1, width=width, states=states, batch=1)
    y, state = naive(*inputs)
    torch.testing.assert_close(ssd(*inputs), y)
    torch.testing.assert_close(ssd(*inputs, return_state=True)[1], state)


def test_equals_the_selective_scan_with_one_decay_per_head(randn):
    x, dt, A, B, C = required(randn, 100, heads=3, groups=1)
    width = x.shape[-1]
    y = selective_scan(
        x.flatten(2),
        dt.repeat_interleave(width, 2),
        A.repeat_interleave(width)[:, None].expand(-1, B.shape[-1]),
        B[:, :, 0],
        C[:, :, 0],
    )
    torch.testing.assert_close(ssd(x, dt, A, B, C).flatten(2), y)


def test_prefix_and_rest_give_the_whole(randn):
    x, dt, A, B, C = required(randn, 150)
    whole, last = ssd(x, dt, A, B, C, return_state=True)
    head, state = ssd(x[:, :70], dt[:, :70], A, B[:, :70], C[:, :70], return_state=True)
    rest = x[:, 70:], dt[:, 70:], A, B[:, 70:], C[:, 70:]
    tail, end = ssd(*rest, initial_state=state, return_state=True)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole)
    torch.testing.assert_close(end, last)


def test_steps_give_the_parallel_form(randn):
    x, dt, A, B, C, D, z, bias, state = *required(randn, 17), *optional(randn, 17)
    whole, last = full(x, dt, A, B, C, D, z, bias, state)
    options = {"D_H": D, "dt_bias_H": bias, "dt_softplus": True}
    steps = [ssd_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], state, z_BHP=z[:, t], **options) for t in range(17)]
    torch.testing.assert_close(torch.stack(steps, 1), whole)
    torch.testing.assert_close(state, last)
    for rates, log_A in ((A, False), ((-A).log(), True)):
        y = ssd_step(x[:, 0], dt[:, 0], rates, B[:, 0], C[:, 0], torch.zeros_like(state), log_A=log_A)
        torch.testing.assert_close(y, ssd(x, dt, A, B, C)[:, 0])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_error_of_each_dtype(randn, gradients, relative_error, dtype):
    inputs = tuple(x.to(dtype) for x in required(randn, 200))
    exact = tuple(x.double() for x in inputs)
    forward, backward = TOLERANCE[dtype]
    y, state = ssd(*inputs, return_state=True)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    assert relative_error(y, naive(*exact)[0]) < forward
    for ours, other in zip(gradients(ssd, *inputs), gradients(lambda *x: naive(*x)[0], *exact), strict=True):
        assert relative_error(ours, other) < backward


def test_strong_decays_neither_overflow_nor_spoil_gradients(randn, gradients):
    """A chunk's decays reach exp(-3000): the entries above the diagonal would be exp(+3000) if they were formed."""
    x, dt, A, B, C = required(randn, 128)
    inputs = x, dt + 1, 100 * A - 1, B, C
    torch.testing.assert_close(ssd(*inputs), naive(*inputs)[0])
    for ours, exact in zip(gradients(ssd, *inputs), gradients(lambda *x: naive(*x)[0], *inputs), strict=True):
        torch.testing.assert_close(ours, exact)


def test_large_norms_in_half_precision(randn, relative_error):
    x, dt, A, B, C = required(randn, 100)
    inputs = tuple(tensor.half() for tensor in (1000 * x, dt, A, 1000 * B, 1e-3 * C))
    assert relative_error(ssd(*inputs), naive(*(tensor.double() for tensor in inputs))[0]) < 1e-3


def test_groups_must_divide_the_heads(randn):
    with pytest.raises(ValueError, match="3 groups do not divide 4 heads"):
        ssd(*required(randn, 4, heads=4, groups=3))
