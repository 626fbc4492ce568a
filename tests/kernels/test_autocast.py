"""Autocast must not reach the accumulation: float32 inputs give the same result with it as without."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from basedbench import kernels

B, L, H, K, N = 2, 300, 2, 16, 8
ATTENTION = [(B, L, H, K)] * 3
SCAN = [(B, L, K), (B, L, K), (K, N), (B, L, N), (B, L, N)]
SSD = [(B, L, H, K), (B, L, H), (H,), (B, L, 1, N), (B, L, 1, N)]
PARALLEL = {
    "taylor_attention": (kernels.taylor_attention, ATTENTION),
    "linear_attention": (kernels.linear_attention, ATTENTION),
    "retention": (lambda q, k, v, g: kernels.retention(q, k, v, -g.abs()), [*ATTENTION, (H,)]),
    "gated_linear_attention": (
        lambda q, k, v, g: kernels.gated_linear_attention(q, k, v, -g.abs()),
        [*ATTENTION, (B, L, H, K)],
    ),
    "sliding_window": (lambda q, k, v: kernels.sliding_window(q, k, v, 20), ATTENTION),
    "selective_scan": (lambda u, d, A, B, C: kernels.selective_scan(u, d.abs(), -A.abs(), B, C), SCAN),
    "ssd": (lambda x, dt, A, B, C: kernels.ssd(x, dt.abs(), -A.abs(), B, C), SSD),
    "delta_rule": (
        lambda q, k, v, a, b, g: kernels.delta_rule(q, k, v, -0.1 * a, 0.1 * b, -g.abs()),
        [(B, L, H, K)] * 6,
    ),
    "layer_delta_rule": (
        lambda q, k, v, beta, g: kernels.layer_delta_rule(q, 0.1 * k, v, beta.sigmoid(), -g.abs()),
        [(B, L, H, K)] * 3 + [(B, L, H), (B, L, H, 1)],
    ),
    "gated_long_conv": (kernels.gated_long_conv, [(B, L, 3 * K), (L, K), (K,), (N, K), (K,)]),
    "wkv4": (lambda k, v, w, u: kernels.wkv4(k, v, -w.abs(), u), [(B, L, K), (B, L, K), (K,), (K,)]),
}
TOKEN = [(B, H, K)] * 3
STEPS = {
    "taylor_attention": (
        kernels.taylor_attention_step,
        [*TOKEN, (B, H, 1 + K + K * (K + 1) // 2, K), (B, H, 1 + K + K * (K + 1) // 2)],
    ),
    "linear_attention": (kernels.linear_attention_step, [*TOKEN, (B, H, K, K + 1)]),
    "gated_linear_attention": (
        lambda q, k, v, g, s: kernels.gated_linear_attention_step(q, k, v, -g.abs(), s),
        [*TOKEN, (B, H, K), (B, H, K, K)],
    ),
    "sliding_window": (
        lambda *x: kernels.sliding_window_step(*x, torch.full((B,), 9, dtype=torch.int32)),
        [*TOKEN, (B, 5, H, K), (B, 5, H, K)],
    ),
    "selective_scan": (kernels.selective_scan_step, [(B, K), (B, K), (K, N), (B, N), (B, N), (B, K, N)]),
    "delta_rule": (kernels.delta_rule_step, [(B, H, K)] * 6 + [(B, H, K, K)]),
    "layer_delta_rule": (
        lambda q, k, v, beta, g, s: kernels.layer_delta_rule_step(q, k, v, beta, g, s),
        [(B, H, K)] * 3 + [(B, H), (B, H, 1), (B, H, K, K)],
    ),
    "ssd": (kernels.ssd_step, [(B, H, K), (B, H), (H,), (B, 1, N), (B, 1, N), (B, H, K, N)]),
    "wkv4": (
        lambda k, v, w, u, s: kernels.wkv4_step(k, v, -w.abs(), u, s.abs()),
        [(B, K), (B, K), (K,), (K,), (B, 3, K)],
    ),
}


@pytest.mark.parametrize(
    ("function", "shapes"),
    [*PARALLEL.values(), *STEPS.values()],
    ids=[*PARALLEL, *(f"{name} step" for name in STEPS)],
)
def test_same_result_under_autocast(randn, function: Callable[..., Tensor], shapes: list[tuple[int, ...]]):
    inputs = [randn(*shape).float() for shape in shapes]
    expected = function(*(x.clone() for x in inputs))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(function(*(x.clone() for x in inputs)), expected)
