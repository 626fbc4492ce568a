"""Sliding-window attention against an explicit loop over positions, and against PyTorch's attention with a mask."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from basedbench.kernels import rotary, rotary_angles, sliding_window, sliding_window_step

# Relative error against float64 on the same (rounded) inputs: outputs and gradients.
TOLERANCE = {torch.float32: (5e-7, 1e-6), torch.float16: (4e-4, 4e-4), torch.bfloat16: (3e-3, 3e-3)}


def naive(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    outputs = []
    for i in range(q.shape[1]):
        first = max(0, i - window)
        scores = torch.einsum("bhk,bmhk->bhm", q[:, i], k[:, first : i + 1]) / q.shape[-1] ** 0.5
        outputs.append(torch.einsum("bhm,bmhv->bhv", scores.softmax(-1), v[:, first : i + 1]))
    return torch.stack(outputs, 1)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float | None = None) -> Tensor:
    distance = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
    mask = (distance >= 0) & (distance <= window)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)


def shapes(randn, length, key_dim=16, value_dim=64, batch=2, heads=2):
    return tuple(randn(batch, length, heads, width) for width in (key_dim, key_dim, value_dim))


@pytest.mark.parametrize(
    ("length", "window", "key_dim", "value_dim"),
    [
        (1, 1, 16, 64),
        (17, 4, 64, 64),
        (64, 64, 48, 48),
        (65, 1, 16, 112),
        (100, 16, 128, 128),
        (130, 64, 64, 48),
        (300, 299, 16, 48),
    ],
)
def test_forward_equals_the_loop_and_masked_attention(randn, relative_error, length, window, key_dim, value_dim):
    q, k, v = shapes(randn, length, key_dim, value_dim, batch=1)
    y = sliding_window(q, k, v, window)
    assert relative_error(y, naive(q, k, v, window)) < 1e-12
    assert relative_error(y, masked_attention(q, k, v, window)) < 1e-12


@pytest.mark.parametrize(("length", "window"), [(1000, 16), (1000, 100), (4097, 64)])
def test_long_sequences(randn, relative_error, length, window):
    q, k, v = shapes(randn, length, 16, 16, batch=1, heads=1)
    assert relative_error(sliding_window(q, k, v, window), masked_attention(q, k, v, window)) < 1e-12


@pytest.mark.parametrize(("length", "window"), [(40, 8), (200, 8), (200, 16), (200, 64), (200, 150)])
def test_the_window_holds_the_key_at_its_edge_and_none_before(randn, length, window):
    """Through the gradient of each output: it reads exactly the values i - window ... i."""
    q, k, v = shapes(randn, length, 8, 1, batch=1, heads=1)
    for i in (0, window - 1, window, window + 1, length - 1):
        leaf = v.clone().requires_grad_()
        sliding_window(q, k, leaf, window)[0, i, 0, 0].backward()
        read = leaf.grad[0, :, 0, 0].nonzero().flatten().tolist()
        assert read == list(range(max(0, i - window), i + 1))


@pytest.mark.parametrize(("length", "window"), [(17, 3), (150, 20)])
def test_gradients_equal_those_of_the_loop(randn, gradients, relative_error, length, window):
    inputs = shapes(randn, length, value_dim=48)
    ours = gradients(lambda q, k, v: sliding_window(q, k, v, window), *inputs)
    exact = gradients(lambda q, k, v: naive(q, k, v, window), *inputs)
    for one, other in zip(ours, exact, strict=True):
        assert relative_error(one, other) < 1e-11


@pytest.mark.parametrize("length", [5, 66])
def test_gradcheck(randn, length):
    inputs = [x.requires_grad_() for x in shapes(randn, length, 2, 1, batch=1, heads=1)]
    assert torch.autograd.gradcheck(lambda q, k, v: sliding_window(q, k, v, 2), inputs, fast_mode=length > 10)


def test_a_given_scale_is_used(randn, relative_error):
    q, k, v = shapes(randn, 100)
    assert relative_error(sliding_window(q, k, v, 20, scale=0.7), masked_attention(q, k, v, 20, 0.7)) < 1e-12
    ring = [torch.zeros(2, 20, 2, 16).double(), torch.zeros(2, 20, 2, 64).double(), torch.zeros(2, dtype=torch.int32)]
    y = [sliding_window_step(q[:, t], k[:, t], v[:, t], *ring, scale=0.7) for t in range(30)]
    assert relative_error(torch.stack(y, 1), masked_attention(q, k, v, 20, 0.7)[:, :30]) < 1e-12


@pytest.mark.parametrize("window", [1, 5, 30])
def test_steps_give_the_parallel_form(randn, window):
    q, k, v = shapes(randn, 17, value_dim=48)
    keys, values = torch.zeros(2, window, 2, 16).double(), torch.full((2, window, 2, 48), 1e9).double()
    position = torch.zeros(2, dtype=torch.int32)
    steps = [sliding_window_step(q[:, t], k[:, t], v[:, t], keys, values, position) for t in range(17)]
    torch.testing.assert_close(torch.stack(steps, 1), sliding_window(q, k, v, window))
    assert position.dtype == torch.int32
    assert position.tolist() == [17, 17]
    for t in range(max(0, 17 - window), 17):
        assert torch.equal(keys[:, t % window], k[:, t])
        assert torch.equal(values[:, t % window], v[:, t])


def test_sequences_of_a_batch_may_be_at_different_positions(randn):
    q, k, v = shapes(randn, 8)
    keys, values = torch.zeros(2, 4, 2, 16).double(), torch.zeros(2, 4, 2, 64).double()
    position = torch.zeros(2, dtype=torch.int32)
    for t in range(6):  # the first sequence alone
        sliding_window_step(q[:1, t], k[:1, t], v[:1, t], keys[:1], values[:1], position[:1])
    y = sliding_window_step(*(torch.stack([x[0, 6], x[1, 0]]) for x in (q, k, v)), keys, values, position)
    torch.testing.assert_close(y[0], sliding_window(q, k, v, 4)[0, 6])
    torch.testing.assert_close(y[1], v[1, 0])
    assert position.tolist() == [7, 1]


def test_a_shared_position_and_angles(randn, relative_error):
    """Steps that turn q and k and leave the position to the caller, against turning first."""
    q, k, v = shapes(randn, 12, value_dim=48)
    turned = rotary(q, k, rotary_angles(torch.arange(12), 10, dtype=torch.float64))
    ring = torch.zeros(2, 5, 2, 16).double(), torch.zeros(2, 5, 2, 48).double()
    position, steps = torch.zeros(2, dtype=torch.int32), []
    for t in range(12):
        angles = rotary_angles(position, 10, dtype=torch.float64)
        steps.append(sliding_window_step(q[:, t], k[:, t], v[:, t], *ring, position, angles=angles, count=False))
        assert position.tolist() == [t, t]
        position += 1
    assert relative_error(torch.stack(steps, 1), naive(*turned, v, 5)) < 1e-12


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_error_of_each_dtype(randn, gradients, relative_error, dtype):
    inputs = tuple(x.to(dtype) for x in shapes(randn, 150))
    exact = tuple(x.double() for x in inputs)
    forward, backward = TOLERANCE[dtype]
    y = sliding_window(*inputs, 20)
    assert y.dtype == dtype
    assert relative_error(y, masked_attention(*exact, 20)) < forward
    ours = gradients(lambda q, k, v: sliding_window(q, k, v, 20), *inputs)
    reference = gradients(lambda q, k, v: masked_attention(q, k, v, 20), *exact)
    for one, other in zip(ours, reference, strict=True):
        assert relative_error(one, other) < backward


def test_large_norms_in_half_precision(randn, relative_error):
    """Scores beyond 65504."""
    inputs = tuple((500 * x).half() for x in shapes(randn, 150))
    assert relative_error(sliding_window(*inputs, 20), masked_attention(*(x.double() for x in inputs), 20)) < 1e-3


def test_an_empty_window_is_refused(randn):
    with pytest.raises(ValueError, match="window must be at least 1"):
        sliding_window(*shapes(randn, 4), 0)
