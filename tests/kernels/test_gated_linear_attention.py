"""Gated linear attention against its recurrence in float64."""

import pytest
import torch
from torch import Tensor

from basedbench.kernels import gated_linear_attention, gated_linear_attention_step, linear_attention, ssd

LENGTHS = (1, 17, 32, 100, 257)  # with 32 tokens a chunk: a part, a whole one, ragged ends, a token over
# Relative error against float64 on the same (rounded) inputs: outputs and gradients.
TOLERANCE = {torch.float32: (5e-7, 1e-6), torch.float16: (4e-4, 4e-4), torch.bfloat16: (3e-3, 3e-3)}


def naive(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    state = torch.zeros(*q.shape[:1], *q.shape[2:], v.shape[3], dtype=q.dtype) if state is None else state
    outputs = []
    for t in range(q.shape[1]):
        state = g[:, t].exp().unsqueeze(-1) * state + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, 1), state


def shapes(randn, length, key_dim=8, value_dim=5, batch=2, heads=2, decay=0.5):
    """q, k, v and g: decays between none and a few times `decay` a token."""
    q, k, v, g = (randn(batch, length, heads, width) for width in (key_dim, key_dim, value_dim, key_dim))
    return q, k, v, -decay * g.abs()


def whole(q, k, v, g, state) -> tuple[Tensor, Tensor]:
    return gated_linear_attention(q, k, v, g, initial_state=state, return_state=True)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("decay", [0.01, 0.5, 20.0])
def test_outputs_state_and_gradients_equal_the_loop(randn, gradients, length, decay):
    inputs = *shapes(randn, length, decay=decay), randn(2, 2, 8, 5)
    for ours, exact in zip(whole(*inputs), naive(*inputs), strict=True):
        torch.testing.assert_close(ours, exact)
    for ours, exact in zip(gradients(whole, *inputs), gradients(naive, *inputs), strict=True):
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize(("key_dim", "value_dim"), [(1, 1), (16, 64), (48, 112), (128, 48)])
def test_widths_without_a_state(randn, key_dim, value_dim):
    inputs = shapes(randn, 70, key_dim, value_dim)
    y, state = naive(*inputs)
    torch.testing.assert_close(gated_linear_attention(*inputs), y)
    torch.testing.assert_close(gated_linear_attention(*inputs, return_state=True)[1], state)
    short = [x[:, :20] for x in inputs]
    torch.testing.assert_close(gated_linear_attention(*short), y[:, :20])


@pytest.mark.parametrize("chunk", [1, 2, 3, 8, 64, 128])
def test_the_chunk_does_not_matter(randn, chunk):
    inputs = shapes(randn, 100)
    y = gated_linear_attention(*inputs, chunk=chunk)
    torch.testing.assert_close(y, naive(*inputs)[0])


@pytest.mark.parametrize("length", [1, 7])
def test_gradcheck(randn, length):
    inputs = *shapes(randn, length, key_dim=2, value_dim=2, heads=1), randn(2, 1, 2, 2)
    leaves = [x.requires_grad_() for x in inputs]

    def run(q, k, v, g, state):
        return gated_linear_attention(q, k, v, g, initial_state=state, return_state=True, chunk=4)

    assert torch.autograd.gradcheck(run, leaves)


def test_one_token_alone_has_a_gradient_of_zero_by_its_decay(randn, gradients):
    *others, by_decay = gradients(gated_linear_attention, *shapes(randn, 1))
    assert not by_decay.any()
    assert all(x.any() for x in others)


def test_prefix_and_rest_give_the_whole_and_so_do_steps(randn):
    inputs = shapes(randn, 100)
    y, last = gated_linear_attention(*inputs, return_state=True)
    head, state = gated_linear_attention(*(x[:, :70] for x in inputs), return_state=True)
    tail, end = gated_linear_attention(*(x[:, 70:] for x in inputs), initial_state=state, return_state=True)
    torch.testing.assert_close(torch.cat([head, tail], 1), y)
    torch.testing.assert_close(end, last)
    steps = [gated_linear_attention_step(*(x[:, t] for x in inputs), state) for t in range(70, 100)]
    torch.testing.assert_close(torch.stack(steps, 1), y[:, 70:])
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("length", [17, 257])
def test_error_of_each_dtype(randn, gradients, relative_error, dtype, length):
    inputs = tuple(x.to(dtype) for x in shapes(randn, length, 16, 32))
    exact = tuple(x.double() for x in inputs)
    forward, backward = TOLERANCE[dtype]
    y, state = gated_linear_attention(*inputs, return_state=True)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    assert relative_error(y, naive(*exact)[0]) < forward
    for ours, right in zip(
        gradients(gated_linear_attention, *inputs), gradients(lambda *x: naive(*x)[0], *exact), strict=True
    ):
        assert relative_error(ours, right) < backward


@pytest.mark.parametrize("decay", [20.0, 1000.0])
def test_weak_decays_behind_strong_ones_keep_their_digits(randn, gradients, relative_error, decay):
    """Every second token decays by exp(-decay), the others by exp(-1e-3): float32 sums over a chunk would round 1e-3
    away, and their exponentials, taken apart, be 0 and infinite.
    """
    q, k, v, _ = shapes(randn, 64)
    g = torch.full_like(q, -1e-3)
    g[:, ::2] = -decay
    inputs = tuple(x.float() for x in (q, k, v, g))
    exact = tuple(x.double() for x in inputs)
    assert relative_error(gated_linear_attention(*inputs), naive(*exact)[0]) < 5e-7
    found = gradients(gated_linear_attention, *inputs)
    for ours, right in zip(found, gradients(lambda *x: naive(*x)[0], *exact), strict=True):
        assert torch.isfinite(ours).all()
        assert relative_error(ours, right) < 1e-6


def test_a_state_that_is_forgotten_at_once(randn):
    """A decay of 0, the logarithm minus infinity, leaves v_t (k_t . q_t)."""
    q, k, v, _ = shapes(randn, 40)
    y = gated_linear_attention(q, k, v, torch.full_like(q, -torch.inf))
    torch.testing.assert_close(y, (q * k).sum(-1, keepdim=True) * v)


def test_without_decay_it_is_linear_attention(randn):
    """Of features elu + 1, before the normaliser: which is the same operator's output for values of one."""
    q, k, v, _ = shapes(randn, 300)
    features = [torch.nn.functional.elu(x) + 1 for x in (q, k)]
    none = torch.zeros_like(q)
    sums, normaliser = (gated_linear_attention(*features, x, none) for x in (v, torch.ones_like(v)))
    torch.testing.assert_close(sums / normaliser, linear_attention(q, k, v))


def test_with_one_decay_per_head_it_is_ssd(randn):
    q, k, v, g = shapes(randn, 100, heads=3)
    rate = g[..., :1]
    y = gated_linear_attention(q, k, v, rate.expand_as(q))
    ones, x = torch.ones(3, dtype=torch.float64), v / -rate  # ssd multiplies its inputs by the step size
    torch.testing.assert_close(ssd(x, -rate.squeeze(-1), -ones, k, q), y)


def test_large_norms_in_half_precision(randn, relative_error):
    q, k, v, g = shapes(randn, 100)
    inputs = tuple(x.half() for x in (1000 * q, 1000 * k, 1e-3 * v, g))
    assert relative_error(gated_linear_attention(*inputs), naive(*(x.double() for x in inputs))[0]) < 1e-3
