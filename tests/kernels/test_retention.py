"""Retention against its recurrence in float64; the operator on a CPU is `ssd`'s reference."""

import pytest
import torch
from torch import Tensor

from basedbench.kernels import retention, ssd_step

SCALE = 0.3
LOG_DECAY = torch.tensor([-0.5, -0.01], dtype=torch.float64)


def recurrence(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    outputs = []
    for q_BHK, k_BHK, v_BHV in zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True):
        state = LOG_DECAY.exp()[:, None, None] * state + SCALE * v_BHV.unsqueeze(-1) * k_BHK.unsqueeze(-2)
        outputs.append((state @ q_BHK.unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, 1), state


def inputs(randn, length) -> list[Tensor]:
    return [*(randn(2, length, 2, width) for width in (6, 6, 5)), randn(2, 2, 5, 6)]


def operator(q, k, v, state):
    return retention(q, k, v, LOG_DECAY, scale=SCALE, initial_state=state, return_state=True)


@pytest.mark.parametrize("length", [1, 17, 150])
def test_outputs_states_and_gradients_equal_the_recurrence(randn, gradients, relative_error, length):
    given = inputs(randn, length)
    for ours, exact in zip(operator(*given), recurrence(*given), strict=True):
        assert relative_error(ours, exact) < 1e-10
    for ours, exact in zip(gradients(operator, *given), gradients(recurrence, *given), strict=True):
        assert relative_error(ours, exact) < 1e-9


def test_prefix_and_rest_give_the_whole_and_so_do_steps(randn):
    q, k, v, first = inputs(randn, 90)
    whole, last = operator(q, k, v, first)
    head, state = operator(*(x[:, :80] for x in (q, k, v)), first)
    tail, end = operator(*(x[:, 80:] for x in (q, k, v)), state)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole)
    torch.testing.assert_close(end, last)
    sizes = torch.full((2, 2), SCALE, dtype=torch.float64)
    steps = [ssd_step(v[:, t], sizes, LOG_DECAY / SCALE, k[:, t], q[:, t], state) for t in range(80, 90)]
    torch.testing.assert_close(torch.stack(steps, 1), whole[:, 80:])
    torch.testing.assert_close(state, last)


def test_decays_are_constants(randn):
    q, k, v, _ = inputs(randn, 3)
    decay = LOG_DECAY.clone().requires_grad_()
    y = retention(q.requires_grad_(), k, v, decay, scale=SCALE)
    assert torch.autograd.grad(y.sum(), [q, decay], allow_unused=True)[1] is None
