"""The delta rule against its recurrence, token by token in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from basedbench.kernels import delta_rule, delta_rule_step, layer_delta_rule_step

# Relative error against float64 on the same (rounded) inputs: outputs and gradients.
TOLERANCE = {torch.float32: (2e-6, 1e-5), torch.float16: (4e-4, 5e-4), torch.bfloat16: (3e-3, 4e-3)}
DECAYS = ["none", "head", "channel"]


def naive(q, k, v, a, b, g=None, state=None) -> tuple[Tensor, Tensor]:
    """The recurrence as written."""
    state = torch.zeros(*k.shape[:1], *k.shape[2:], v.shape[-1], dtype=v.dtype) if state is None else state
    outputs = []
    for t in range(v.shape[1]):
        u = torch.einsum("bhk,bhkv->bhv", b[:, t], state)
        kept = state if g is None else g[:, t].exp()[..., None] * state
        state = kept + torch.einsum("bhk,bhv->bhkv", a[:, t], u) + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, 1), state


def shapes(randn, length, decay="channel", key_dim=5, value_dim=3, batch=2, heads=2) -> list[Tensor]:
    """q, k, v, a, b and a decay: a takes back part of what stands under b, as the models do; k points elsewhere."""
    q, k, b = (F.normalize(randn(batch, length, heads, key_dim), dim=-1) for _ in range(3))
    a = -b * randn(batch, length, heads, key_dim if decay == "channel" else 1).sigmoid()
    inputs = [q, k, randn(batch, length, heads, value_dim), a, b]
    if decay != "none":
        inputs.append(F.logsigmoid(2 + randn(batch, length, heads, key_dim if decay == "channel" else 1)))
    return inputs


def both(*inputs, chunk=8):
    return delta_rule(*inputs, return_state=True, chunk=chunk)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("length", [1, 2, 8, 17, 40])
def test_outputs_state_and_gradients_equal_the_loop(randn, gradients, length, decay):
    inputs = shapes(randn, length, decay)
    for ours, exact in zip(both(*inputs), naive(*inputs), strict=True):
        torch.testing.assert_close(ours, exact)
    for ours, exact in zip(gradients(both, *inputs), gradients(naive, *inputs), strict=True):
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(
    ("length", "key_dim", "value_dim"), [(1, 64, 64), (17, 48, 128), (64, 32, 256), (200, 112, 48), (1000, 16, 24)]
)
def test_shapes_and_the_chunk_of_its_own(randn, gradients, relative_error, length, key_dim, value_dim, decay):
    inputs = shapes(randn, length, decay, key_dim, value_dim, batch=1)
    assert relative_error(delta_rule(*inputs), naive(*inputs)[0]) < 1e-12
    for ours, exact in zip(gradients(delta_rule, *inputs), gradients(lambda *x: naive(*x)[0], *inputs), strict=True):
        assert relative_error(ours, exact) < 1e-11


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("chunk", [1, 2, 3, 64])
def test_gradcheck_with_states(randn, decay, chunk):
    inputs = [x.requires_grad_() for x in shapes(randn, 5, decay, 3, 2, batch=1)]
    inputs.append(randn(1, 2, 3, 2).requires_grad_())

    def run(*x):
        return delta_rule(*x[:-1], initial_state=x[-1], return_state=True, chunk=chunk)

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("decay", DECAYS)
def test_prefix_and_rest_give_the_whole_and_so_do_steps(randn, decay):
    inputs = shapes(randn, 150, decay)
    whole, last = delta_rule(*inputs, return_state=True)
    head, state = delta_rule(*(x[:, :130] for x in inputs), return_state=True)
    tail, end = delta_rule(*(x[:, 130:] for x in inputs), initial_state=state, return_state=True)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole)
    torch.testing.assert_close(end, last)
    token = [*inputs, None][:6]
    steps = [delta_rule_step(*(None if x is None else x[:, t] for x in token), state) for t in range(130, 150)]
    torch.testing.assert_close(torch.stack(steps, 1), whole[:, 130:])
    torch.testing.assert_close(state, last)


def test_one_decay_for_all_channels_is_one_for_the_head(randn, gradients):
    *inputs, g = shapes(randn, 70, "head")
    spread = g.expand_as(inputs[0]).contiguous()
    torch.testing.assert_close(delta_rule(*inputs, spread), delta_rule(*inputs, g))
    *_, by_channel = gradients(delta_rule, *inputs, spread)
    *_, by_head = gradients(delta_rule, *inputs, g)
    torch.testing.assert_close(by_channel.sum(-1, keepdim=True), by_head)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_error_of_each_dtype(randn, gradients, relative_error, dtype, decay):
    inputs = tuple(x.to(dtype) for x in shapes(randn, 200, decay, 32, 48))
    exact = tuple(x.double() for x in inputs)
    forward, backward = TOLERANCE[dtype]
    y, state = delta_rule(*inputs, return_state=True)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    assert relative_error(y, naive(*exact)[0]) < forward
    for ours, other in zip(gradients(delta_rule, *inputs), gradients(lambda *x: naive(*x)[0], *exact), strict=True):
        assert relative_error(ours, other) < backward


@pytest.mark.parametrize("decay", ["head", "channel"])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_strong_decays_neither_overflow_nor_lose_digits(randn, gradients, relative_error, decay, scale):
    """exp(-20) at every token, or at every third one, where exp(-1300) at the end of a chunk has passed by."""
    *inputs, g = (x.float() for x in shapes(randn, 128, decay, 16, 8))
    strong = torch.where(torch.arange(128)[:, None, None] % 3 == 0, torch.tensor(-20.0), scale * g - 20 * (1 - scale))
    inputs = *inputs, strong.expand_as(g).contiguous()
    exact = tuple(x.double() for x in inputs)
    assert relative_error(delta_rule(*inputs), naive(*exact)[0]) < 1e-6
    for ours, other in zip(gradients(delta_rule, *inputs), gradients(lambda *x: naive(*x)[0], *exact), strict=True):
        assert ours.isfinite().all()
        assert relative_error(ours, other) < 2e-5


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_a_decay_of_minus_infinity_forgets_everything(randn, gradients, decay):
    *inputs, g = shapes(randn, 20, decay)
    g[:, 7] = float("-inf")
    torch.testing.assert_close(delta_rule(*inputs, g), naive(*inputs, g)[0])
    for ours, exact in zip(
        gradients(delta_rule, *inputs, g), gradients(lambda *x: naive(*x)[0], *inputs, g), strict=True
    ):
        torch.testing.assert_close(ours, exact)


def test_repeated_keys_cancel_nothing(randn, relative_error):
    """One key with beta = 1 throughout: y is the newest value; powers of A_ba would reach binomial coefficients."""
    key = F.normalize(randn(1, 1, 1, 16), dim=-1).float().expand(1, 128, 1, 16)
    v = randn(1, 128, 1, 8).float()
    assert relative_error(delta_rule(key, key, v, -key, key), v) < 1e-5


def test_what_is_written_can_be_read_and_replaced(randn):
    """With orthogonal keys the rule is an exact dictionary: the last value of each key, nothing of the others."""
    keys, values = torch.eye(4, dtype=torch.float64), randn(7, 3)
    order = torch.tensor([0, 1, 2, 1, 3, 0, 1])
    k = keys[order][None, :, None]
    y, state = delta_rule(k, k, values[None, :, None], -k, k, return_state=True)
    torch.testing.assert_close(y[0, :, 0], values)
    torch.testing.assert_close(state[0, 0], values[[5, 6, 2, 4]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_layers_step_keeps_its_state_exact_in_half_precision(randn, relative_error, dtype):
    """Step sizes and decays times keys are not rounded on their way into a float32 state."""
    q, k, v = (randn(2, 64, 2, 8).to(dtype) for _ in range(3))
    k = F.normalize(k.float(), dim=-1).to(dtype)
    beta, g = randn(2, 64, 2).sigmoid().float(), F.logsigmoid(2 + randn(2, 64, 2, 8)).float()
    state, exact = torch.zeros(2, 2, 8, 8), torch.zeros(2, 2, 8, 8, dtype=torch.float64)
    for t in range(64):
        given = q[:, t], k[:, t], v[:, t], beta[:, t], g[:, t]
        layer_delta_rule_step(*given, state)
        layer_delta_rule_step(*(x.double() for x in given), exact)
    assert relative_error(state, exact) < 1e-6
