"""Linear attention (elu + 1) against the L x L formula in float64."""

import pytest
import torch
from torch import Tensor

from basedbench.kernels import chunked, linear_attention, linear_attention_step

# Relative error against float64 on the same (rounded) inputs: outputs and gradients.
TOLERANCE = {torch.float32: (5e-7, 1e-6), torch.float16: (4e-4, 4e-4), torch.bfloat16: (3e-3, 3e-3)}


def phi(x: Tensor) -> Tensor:
    return torch.where(x > 0, x + 1, x.exp())


def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("blhk,bmhk->bhlm", phi(q), phi(k)).tril()
    return torch.einsum("bhlm,bmhv->blhv", weights / weights.sum(-1, keepdim=True), v)


def shapes(randn, length, key_dim=16, value_dim=64, batch=2, heads=2):
    return tuple(randn(batch, length, heads, width) for width in (key_dim, key_dim, value_dim))


@pytest.mark.parametrize(
    ("length", "key_dim", "value_dim"), [(1, 16, 64), (17, 8, 48), (256, 64, 112), (300, 32, 128), (1000, 24, 48)]
)
def test_forward_equals_the_formula(randn, relative_error, length, key_dim, value_dim):
    q, k, v = shapes(randn, length, key_dim, value_dim, batch=1)
    assert relative_error(linear_attention(q, k, v), naive(q, k, v)) < 1e-10


@pytest.mark.parametrize("length", [17, 300])
def test_gradients_equal_those_of_the_formula(randn, gradients, relative_error, length):
    inputs = shapes(randn, length, value_dim=48)
    for ours, exact in zip(gradients(linear_attention, *inputs), gradients(naive, *inputs), strict=True):
        assert relative_error(ours, exact) < 1e-9


@pytest.mark.parametrize("limit", [0, 256])
def test_gradcheck_with_states(randn, monkeypatch, limit):
    monkeypatch.setattr(chunked, "QUADRATIC_LIMIT", limit)
    inputs = [x.requires_grad_() for x in shapes(randn, 7, key_dim=3, value_dim=2, batch=1)]
    inputs.append(randn(1, 2, 3, 3).abs().requires_grad_())

    def run(q, k, v, state):
        return linear_attention(q, k, v, initial_state=state, return_state=True, chunk=3)

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("length", [1, 300])
def test_the_state_is_the_sum_of_outer_products(randn, length):
    q, k, v = shapes(randn, length, value_dim=5)
    _, state = linear_attention(q, k, v, return_state=True)
    torch.testing.assert_close(state[..., :-1], torch.einsum("blhk,blhv->bhkv", phi(k), v))
    torch.testing.assert_close(state[..., -1], phi(k).sum(1))


def test_prefix_and_rest_give_the_whole_and_so_do_steps(randn):
    inputs = shapes(randn, 300, value_dim=48)
    whole, last = linear_attention(*inputs, return_state=True)
    head, state = linear_attention(*(x[:, :285] for x in inputs), return_state=True)
    tail, end = linear_attention(*(x[:, 285:] for x in inputs), initial_state=state, return_state=True)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole)
    torch.testing.assert_close(end, last)
    steps = [linear_attention_step(*(x[:, t] for x in inputs), state) for t in range(285, 300)]
    torch.testing.assert_close(torch.stack(steps, 1), whole[:, 285:])
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("length", [17, 300])
def test_features_that_are_given(randn, gradients, relative_error, length):
    """Squares of their own, wider than the keys that elu + 1 would take: through the block, states and steps."""

    def features(x):
        return torch.cat([x**2, x.roll(1, -1) ** 2], -1)

    def ours(q, k, v):
        return linear_attention(features(q), features(k), v, feature_map=None)

    def formula(q, k, v):
        weights = torch.einsum("blhf,bmhf->bhlm", features(q), features(k)).tril()
        return torch.einsum("bhlm,bmhv->blhv", weights / weights.sum(-1, keepdim=True), v)

    inputs = shapes(randn, length, key_dim=8, value_dim=5)
    assert relative_error(ours(*inputs), formula(*inputs)) < 1e-10
    for found, exact in zip(gradients(ours, *inputs), gradients(formula, *inputs), strict=True):
        assert relative_error(found, exact) < 1e-9
    torch.testing.assert_close(linear_attention(*inputs, feature_map=features), ours(*inputs))
    state = torch.zeros(2, 2, 16, 6, dtype=torch.float64)
    steps = [linear_attention_step(*(x[:, t] for x in inputs), state, feature_map=features) for t in range(length)]
    torch.testing.assert_close(torch.stack(steps, 1), ours(*inputs))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("length", [64, 300])
def test_error_of_each_dtype(randn, gradients, relative_error, dtype, length):
    inputs = tuple(x.to(dtype) for x in shapes(randn, length))
    exact = tuple(x.double() for x in inputs)
    forward, backward = TOLERANCE[dtype]
    y, state = linear_attention(*inputs, return_state=True)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    assert relative_error(y, naive(*exact)) < forward
    for ours, reference in zip(gradients(linear_attention, *inputs), gradients(naive, *exact), strict=True):
        assert relative_error(ours, reference) < backward


def test_large_norms_in_half_precision(randn, relative_error):
    inputs = tuple((100 * x).half() for x in shapes(randn, 300))
    assert relative_error(linear_attention(*inputs), naive(*(x.double() for x in inputs))) < 1e-3
