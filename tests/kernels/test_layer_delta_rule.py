"""The delta rule as layers have it against its recurrence, token by token in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from basedbench.kernels import layer_delta_rule, layer_delta_rule_step

DECAYS = ["none", "head", "channel"]


def naive(q, k, v, beta, g=None, state=None) -> tuple[Tensor, Tensor]:
    """The recurrence as written."""
    state = torch.zeros(*k.shape[:1], *k.shape[2:], v.shape[-1], dtype=v.dtype) if state is None else state
    outputs = []
    for t in range(v.shape[1]):
        kept = state if g is None else g[:, t].exp().unsqueeze(-1) * state
        new = v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], kept)
        state = kept + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], new)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, 1), state


def shapes(randn, length, decay, key_dim=5, value_dim=3, batch=2, heads=2) -> list[Tensor]:
    q, k = (F.normalize(randn(batch, length, heads, key_dim), dim=-1) for _ in range(2))
    given = [q, k, randn(batch, length, heads, value_dim), randn(batch, length, heads).sigmoid()]
    if decay != "none":
        given.append(F.logsigmoid(2 + randn(batch, length, heads, key_dim if decay == "channel" else 1)))
    return given


def both(*inputs) -> tuple[Tensor, Tensor]:
    return layer_delta_rule(*inputs, return_state=True)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("length", [1, 17, 70])
def test_outputs_state_and_gradients_equal_the_loop(randn, gradients, length, decay):
    inputs = shapes(randn, length, decay)
    for ours, exact in zip(both(*inputs), naive(*inputs), strict=True):
        torch.testing.assert_close(ours, exact)
    for ours, exact in zip(gradients(both, *inputs), gradients(naive, *inputs), strict=True):
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("decay", DECAYS)
def test_prefix_and_rest_give_the_whole_and_so_do_steps(randn, decay):
    inputs = shapes(randn, 60, decay)
    whole, last = both(*inputs)
    _, state = both(*(x[:, :41] for x in inputs))
    tail, end = layer_delta_rule(*(x[:, 41:] for x in inputs), initial_state=state, return_state=True)
    torch.testing.assert_close(tail, whole[:, 41:])
    torch.testing.assert_close(end, last)
    token = [*inputs, None][:5]
    steps = [layer_delta_rule_step(*(None if x is None else x[:, t] for x in token), state) for t in range(41, 60)]
    torch.testing.assert_close(torch.stack(steps, 1), whole[:, 41:])
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("decay", DECAYS)
def test_bfloat16_is_rounded_once(randn, relative_error, decay):
    inputs = [x.bfloat16() if i < 3 else x.float() for i, x in enumerate(shapes(randn, 100, decay, 32, 48))]
    y, state = both(*inputs)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert relative_error(y, naive(*(x.double() for x in inputs))[0]) < 3e-3


def test_the_newest_value_of_a_key_is_read(randn):
    """Orthogonal keys and step sizes of one: an exact dictionary."""
    order = torch.tensor([0, 1, 2, 1, 3, 0, 1])
    k, values = torch.eye(4, dtype=torch.float64)[order][None, :, None], randn(7, 3)
    y, state = layer_delta_rule(k, k, values[None, :, None], torch.ones(1, 7, 1), return_state=True)
    torch.testing.assert_close(y[0, :, 0], values)
    torch.testing.assert_close(state[0, 0], values[[5, 6, 2, 4]])
