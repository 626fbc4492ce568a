"""The reference of attention's decode step, against causal attention over the whole sequence, written out."""

import pytest
import torch

from basedbench.kernels import attention_decode, rotary, rotary_angles
from basedbench.kernels.attention_decode import bytes_moved, flops

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def causal(q, k, v, scale=None):
    """Token by token; query head h reads key head h // (heads / groups)."""
    group = q.shape[2] // k.shape[2]
    outputs = []
    for t in range(q.shape[1]):
        for h in range(q.shape[2]):
            scores = torch.einsum("bk,blk->bl", q[:, t, h], k[:, : t + 1, h // group])
            weights = (scores * (q.shape[-1] ** -0.5 if scale is None else scale)).softmax(-1)
            outputs.append(torch.einsum("bl,blv->bv", weights, v[:, : t + 1, h // group]))
    return torch.stack(outputs, 1).unflatten(1, q.shape[1:3])


def sequences(randn, length, heads=4, groups=4, key_dim=16, value_dim=16, batch=2):
    shapes = (heads, key_dim), (groups, key_dim), (groups, value_dim)
    return [randn(batch, length, *shape) for shape in shapes]


def steps(q, k, v, room, **options):
    """All tokens one by one, into caches whose unwritten part is NaN."""
    caches = [torch.full((len(x), room, *x.shape[2:]), torch.nan, dtype=x.dtype) for x in (k, v)]
    length = torch.zeros(len(q), dtype=torch.int32)
    outputs = []
    for t in range(q.shape[1]):
        angles = rotary_angles(length, options["width"], dtype=torch.float64) if "width" in options else None
        token = [x[:, t] for x in (q, k, v)]
        outputs.append(attention_decode(*token, *caches, length, scale=options.get("scale"), angles=angles))
        length += 1
    return torch.stack(outputs, 1), caches


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize(("length", "key_dim", "value_dim"), [(1, 16, 16), (17, 70, 24), (9, 48, 112)])
def test_steps_give_the_parallel_form(randn, relative_error, heads, groups, length, key_dim, value_dim):
    q, k, v = sequences(randn, length, heads, groups, key_dim, value_dim)
    y, (keys, values) = steps(q, k, v, length + 3)
    assert relative_error(y, causal(q, k, v)) < 1e-12
    for cache, x in ((keys, k), (values, v)):
        assert torch.equal(cache[:, :length], x)
        assert cache[:, length:].isnan().all()


@pytest.mark.parametrize("width", [16, 8, 7])
def test_angles_are_those_of_the_token(randn, relative_error, width):
    q, k, v = sequences(randn, 11)
    turned = rotary(q, k, rotary_angles(torch.arange(11), width, dtype=torch.float64))
    y, (keys, _) = steps(q, k, v, 11, width=width, scale=0.4)
    assert relative_error(y, causal(*turned, v, scale=0.4)) < 1e-12
    torch.testing.assert_close(keys, turned[1])


def test_sequences_of_a_batch_may_have_different_lengths(randn):
    q, k, v = sequences(randn, 9)
    expected = causal(q, k, v)
    lengths = torch.tensor([8, 3], dtype=torch.int32)
    unwritten = (torch.arange(12) >= lengths.unsqueeze(-1))[..., None, None]
    caches = [torch.cat([x, x.new_zeros(2, 3, *x.shape[2:])], 1).masked_fill(unwritten, torch.nan) for x in (k, v)]
    token = [torch.stack([x[0, 8], x[1, 3]]) for x in (q, k, v)]
    y = attention_decode(*token, *caches, lengths)
    torch.testing.assert_close(y, torch.stack([expected[0, 8], expected[1, 3]]))
    assert lengths.tolist() == [8, 3]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_error_of_each_dtype(randn, relative_error, dtype):
    q, k, v = (x.to(dtype) for x in sequences(randn, 20, key_dim=64, value_dim=64))
    y, _ = steps(q, k, v, 20)
    assert y.dtype == dtype
    assert relative_error(y, causal(q.double(), k.double(), v.double())) < TOLERANCE[dtype]


def test_costs():
    shape = {"batch": 128, "length": 1024, "heads": 24, "key_dim": 70, "value_dim": 70}
    assert flops(**shape) == 128 * 24 * 1024 * 4 * 70
    # 1,023 keys and values of the cache and the token's own in; the query; y and the token's own out.
    assert bytes_moved(**shape) == 2 * 128 * 24 * 70 * (2 * 1024 + 1 + 1 + 2)
    assert bytes_moved(**shape, key_heads=6) == 2 * 128 * 70 * (6 * 2 * 1024 + 24 + 24 + 6 * 2)
