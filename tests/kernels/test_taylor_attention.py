"""Taylor attention against the L x L formula in float64."""

import pytest
import torch
from torch import Tensor

from basedbench.kernels import chunked, taylor_attention, taylor_attention_step, taylor_feature_map

# Relative error against float64 on the same (rounded) inputs: outputs and gradients.
TOLERANCE = {torch.float32: (5e-7, 1e-6), torch.float16: (4e-4, 4e-4), torch.bfloat16: (3e-3, 3e-3)}


def naive(q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None = None) -> Tensor:
    """The definition, for some or all query positions."""
    rows = torch.arange(q.shape[1]) if rows is None else rows
    s = torch.einsum("blhk,bmhk->bhlm", q[:, rows], k) * q.shape[-1] ** -0.5
    weights = (1 + s + s**2 / 2) * (torch.arange(k.shape[1]) <= rows[:, None])
    return torch.einsum("bhlm,bmhv->blhv", weights / weights.sum(-1, keepdim=True), v)


def shapes(randn, length, key_dim=16, value_dim=64, batch=2, heads=2):
    return tuple(randn(batch, length, heads, width) for width in (key_dim, key_dim, value_dim))


@pytest.mark.parametrize(
    ("length", "key_dim", "value_dim"),
    [(1, 16, 64), (17, 8, 48), (64, 16, 64), (256, 24, 112), (257, 16, 64), (300, 32, 128), (1000, 24, 48)],
)
def test_forward_equals_the_formula(randn, relative_error, length, key_dim, value_dim):
    q, k, v = shapes(randn, length, key_dim, value_dim, batch=1)
    assert relative_error(taylor_attention(q, k, v), naive(q, k, v)) < 1e-10


def test_forward_at_4097_tokens(randn, relative_error):
    q, k, v = shapes(randn, 4097, key_dim=8, value_dim=48, batch=1, heads=1)
    rows = torch.tensor([0, 63, 64, 65, 2048, 4095, 4096])
    assert relative_error(taylor_attention(q, k, v)[:, rows], naive(q, k, v, rows)) < 1e-10


@pytest.mark.parametrize("length", [17, 300])
def test_gradients_equal_those_of_the_formula(randn, gradients, relative_error, length):
    inputs = shapes(randn, length, value_dim=48)
    for ours, exact in zip(gradients(taylor_attention, *inputs), gradients(naive, *inputs), strict=True):
        assert relative_error(ours, exact) < 1e-9


@pytest.mark.parametrize("limit", [0, 256])
def test_gradcheck_with_states(randn, monkeypatch, limit):
    """Every input and both outputs, through the chunk loop (7 tokens in chunks of 3) and as one block."""
    monkeypatch.setattr(chunked, "QUADRATIC_LIMIT", limit)
    q, k, v = (x.requires_grad_() for x in shapes(randn, 7, key_dim=3, value_dim=2, batch=1))
    state = taylor_attention(*shapes(randn, 5, key_dim=3, value_dim=2, batch=1), return_state=True)[1].requires_grad_()

    def run(q, k, v, state):
        return taylor_attention(q, k, v, initial_state=state, return_state=True, chunk=3)

    assert torch.autograd.gradcheck(run, (q, k, v, state))


@pytest.mark.parametrize("length", [1, 17, 300])
def test_state_answers_queries_like_the_keys_it_holds(randn, length):
    q, k, v = shapes(randn, length, key_dim=8, value_dim=5)
    _, state = taylor_attention(q, k, v, return_state=True)
    assert state.shape == (2, 2, 1 + 8 + 36, 6)
    s = torch.einsum("bhk,bmhk->bhm", q[:, 0], k) * 8**-0.5
    weights = 1 + s + s**2 / 2
    read = (taylor_feature_map(q[:, 0]).unsqueeze(-2) @ state).squeeze(-2)
    torch.testing.assert_close(read[..., :-1], torch.einsum("bhm,bmhv->bhv", weights, v), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(read[..., -1], weights.sum(-1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("length", "cut"), [(17, 16), (300, 1), (600, 290)])
def test_prefix_and_rest_give_the_whole(randn, length, cut):
    inputs = shapes(randn, length, value_dim=48)
    whole, last = taylor_attention(*inputs, return_state=True)
    head, state = taylor_attention(*(x[:, :cut] for x in inputs), return_state=True)
    tail, end = taylor_attention(*(x[:, cut:] for x in inputs), initial_state=state, return_state=True)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole)
    torch.testing.assert_close(end, last)


def test_steps_give_the_parallel_form(randn):
    inputs = shapes(randn, 17, key_dim=24, value_dim=48)
    whole, last = taylor_attention(*inputs, return_state=True)
    state = torch.zeros_like(last)
    columns = state[..., :-1], state[..., -1]
    steps = [taylor_attention_step(*(x[:, t] for x in inputs), *columns) for t in range(17)]
    torch.testing.assert_close(torch.stack(steps, 1), whole)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("limit", [0, 256])
def test_other_orders(randn, monkeypatch, relative_error, order, limit):
    """In one block and through states. Queries and keys are short, so that sums of A stay away from zero."""
    monkeypatch.setattr(chunked, "QUADRATIC_LIMIT", limit)
    q, k, v = (0.5 * x.requires_grad_() for x in shapes(randn, 7, key_dim=3, value_dim=2, batch=1))
    s = torch.einsum("blhk,bmhk->bhlm", q, k) * 3**-0.5
    weights = (1 + s if order == 1 else 1 + s + s**2 / 2 + s**3 / 6).tril()
    exact = torch.einsum("bhlm,bmhv->blhv", weights / weights.sum(-1, keepdim=True), v)
    y, state = taylor_attention(q, k, v, order=order, return_state=True, chunk=3)
    assert relative_error(y, exact) < 1e-10
    assert state.shape == (1, 2, 4 if order == 1 else 20, 3)

    def run(q, k, v, state):
        return taylor_attention(q, k, v, order=order, initial_state=state, return_state=True, chunk=3)

    assert torch.autograd.gradcheck(run, tuple(x.detach().requires_grad_() for x in (q, k, v, state)))
    stepped = torch.zeros_like(state)
    columns = stepped[..., :-1], stepped[..., -1]
    q, k, v = (x.detach() for x in (q, k, v))
    steps = [taylor_attention_step(*(x[:, t] for x in (q, k, v)), *columns, order=order) for t in range(7)]
    torch.testing.assert_close(torch.stack(steps, 1), y)
    torch.testing.assert_close(stepped, state)


@pytest.mark.parametrize("key_dim", [8, 16, 24, 32])
def test_features_factor_the_polynomial(randn, key_dim):
    q, k = randn(5, key_dim), randn(5, key_dim)
    s = (q * k).sum(-1) * key_dim**-0.5
    features = taylor_feature_map(q)
    assert features.shape == (5, 1 + key_dim + key_dim * (key_dim + 1) // 2)
    torch.testing.assert_close((features * taylor_feature_map(k)).sum(-1), 1 + s + s**2 / 2)


def test_feature_gradients(randn):
    assert torch.autograd.gradcheck(taylor_feature_map, (randn(3, 5).requires_grad_(),))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("length", [64, 300])
def test_error_of_each_dtype(randn, gradients, relative_error, dtype, length):
    inputs = tuple(x.to(dtype) for x in shapes(randn, length))
    exact = tuple(x.double() for x in inputs)
    forward, backward = TOLERANCE[dtype]
    y, state = taylor_attention(*inputs, return_state=True)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    assert relative_error(y, naive(*exact)) < forward
    for ours, reference in zip(gradients(taylor_attention, *inputs), gradients(naive, *exact), strict=True):
        assert ours.dtype == dtype
        assert relative_error(ours, reference) < backward


@pytest.mark.parametrize("length", [64, 300])
def test_large_norms_in_half_precision(randn, relative_error, length):
    """s^2 / 2 passes 65504 here: sums cast to float16 before the division would be infinite, quotients zero or NaN."""
    inputs = tuple((50 * x).half() for x in shapes(randn, length))
    assert (inputs[0][:, 0] * inputs[1][:, 0]).double().sum(-1).square().max() > 32 * 65504
    assert relative_error(taylor_attention(*inputs), naive(*(x.double() for x in inputs))) < 1e-3


def test_the_state_counts_tokens_exactly_for_half_inputs(randn):
    _, state = taylor_attention(*(x.bfloat16() for x in shapes(randn, 1000)), return_state=True)
    assert (state[:, :, 0, -1] == 1000).all()
