"""Every operator under a CUDA graph: forward, backward and steps are captured once and replayed on other inputs."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from basedbench import kernels

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

B, L, H, K, V, D, N = 2, 300, 2, 16, 32, 48, 8
ATTENTION = [(B, L, H, K), (B, L, H, K), (B, L, H, V)]
SCAN = [(B, L, D), (B, L, D), (D, N), (B, L, N), (B, L, N)]
SSD = [(B, L, H, V), (B, L, H), (H,), (B, L, 1, N), (B, L, 1, N)]


def loss(x: Tensor, weight: Tensor) -> Tensor:
    return kernels.linear_cross_entropy(x, weight, torch.arange(len(x), device=x.device))[0]


def angles(q: Tensor) -> tuple[Tensor, Tensor]:
    return kernels.rotary_angles(torch.arange(L, device=q.device), 12)


PARALLEL = {
    "taylor_attention": (kernels.taylor_attention, ATTENTION),
    "linear_attention": (kernels.linear_attention, ATTENTION),
    "retention": (lambda q, k, v: kernels.retention(q, k, v, torch.full((H,), -0.1, device=q.device)), ATTENTION),
    "gated_linear_attention": (
        lambda q, k, v, g: kernels.gated_linear_attention(q, k, v, F.logsigmoid(g)),
        [*ATTENTION, (B, L, H, K)],
    ),
    "sliding_window": (lambda q, k, v: kernels.sliding_window(q, k, v, 20), ATTENTION),
    "selective_scan": (lambda u, d, A, B, C: kernels.selective_scan(u, d, -A.exp(), B, C, delta_softplus=True), SCAN),
    "ssd": (lambda x, dt, A, B, C: kernels.ssd(x, dt, -A.exp(), B, C, dt_softplus=True), SSD),
    "delta_rule": (
        lambda q, k, v, g: kernels.delta_rule(q, k, v, -0.1 * k, 0.1 * k, -g.abs()),
        [*ATTENTION, (B, L, H, K)],
    ),
    "layer_delta_rule": (
        lambda q, k, v, beta, g: kernels.layer_delta_rule(q, 0.1 * k, v, beta.sigmoid(), -g.abs()),
        [*ATTENTION, (B, L, H), (B, L, H, 1)],
    ),
    "layer_delta_rule, channels": (  # mild and strong chunks, others when replayed
        lambda q, k, v, beta, g: kernels.layer_delta_rule(q, 0.1 * k, v, beta.sigmoid(), -2.5 * g.abs()),
        [*ATTENTION, (B, L, H), (B, L, H, K)],
    ),
    "shared_delta_rule": (
        lambda q, k, v, g: torch.cat(kernels.shared_delta_rule(q, k, v, -0.1 * k, 0.1 * k, -2.5 * g.abs()), -1),
        [*ATTENTION, (B, L, H, K)],
    ),
    "wkv4": (lambda k, v, w, u: kernels.wkv4(k, v, -w.exp(), u), [(B, L, D), (B, L, D), (D,), (D,)]),
    "delta_inputs": (
        lambda q, k, b, d, A, c: torch.cat(
            [x.flatten(2) for x in kernels.delta_inputs(q, k, b, d, A, c) if x is not None], -1
        ),
        [(B, L, H, K), (B, L, H, K), (B, L, H), (B, L, H), (H,), (H,)],
    ),
    "rwkv7_inputs": (
        lambda k, e, d, x, a: torch.cat(kernels.rwkv7_inputs(k, e, d, x, a)),
        [(B, L, H, K)] * 3 + [(H, K)] * 2,
    ),
    "token_shift": (lambda x, mu: torch.cat(kernels.token_shift(x, mu)), [(B, L, D), (6, D)]),
    "head_norm": (
        lambda y, w, g: kernels.head_norm(y, w, gate_xE=g),
        [(B, L, H, V), (V,), (B, L, H * V)],
    ),
    "short_conv": (lambda x, w: kernels.short_conv(x, w, activation="silu"), [(B, L, D), (D, 4)]),
    "diagonal_filter": (
        lambda dt, A, w, B, C: kernels.diagonal_filter(dt - 4, A, w, B, C, L),
        [(D,), (D, N), (D, N), (D, N, 2), (D, N, 2)],
    ),
    "base_conv": (kernels.base_conv, [(B, L, D), (D, D), (D,), (D, 3), (D,)]),
    "plane_conv": (kernels.plane_conv, [(B, L, D), (D,), (D, 3), (D,)]),
    "shift_filter": (kernels.shift_filter, [(D, N), (D, N)]),
    "long_conv": (kernels.long_conv, [(B, L, D), (L, D)]),
    "gated_long_conv": (kernels.gated_long_conv, [(B, L, 3 * D), (L, D), (D,), (9, D), (D,)]),
    "conv_gate": (kernels.conv_gate, [(B, L, 2 * D), (D, 3)]),
    "selective_ssm": (
        lambda xz, c, w, dt, b, A: kernels.selective_ssm(xz, c, None, w, dt, b, A, b),
        [(B, L, 2 * D), (D, 4), (5 + 2 * N, D), (D, 5), (D,), (D, N)],
    ),
    "split_conv": (
        lambda x, w: torch.cat(kernels.split_conv(x, [9, 32, 16, 2], w, start=9, activation="silu"), -1),
        [(B, L, 11 + D), (D, 4)],
    ),
    "swiglu": (kernels.swiglu, [(B, L, 2 * D)]),
    "rotary": (lambda q, k: torch.cat(kernels.rotary(q, k, angles(q))), ATTENTION[:2]),
    "linear_cross_entropy": (loss, [(L, D), (500, D)]),
}
FEATURES = 1 + K + K * (K + 1) // 2
STEPS = {
    "taylor_attention": (kernels.taylor_attention_step, ATTENTION, [(B, H, FEATURES, V), (B, H, FEATURES)]),
    "linear_attention": (kernels.linear_attention_step, ATTENTION, [(B, H, K, V + 1)]),
    "gated_linear_attention": (
        lambda q, k, v, g, s: kernels.gated_linear_attention_step(q, k, v, F.logsigmoid(g), s),
        [*ATTENTION, (B, L, H, K)],
        [(B, H, K, V)],
    ),
    "sliding_window": (kernels.sliding_window_step, ATTENTION, [(B, 5, H, K), (B, 5, H, V), (B,)]),
    "selective_scan": (
        lambda u, d, A, B, C, state: kernels.selective_scan_step(u, d, -A.exp(), B, C, state, delta_softplus=True),
        SCAN,
        [(B, D, N)],
    ),
    "ssd": (lambda x, d, A, B, C, s: kernels.ssd_step(x, d, -A.exp(), B, C, s, dt_softplus=True), SSD, [(B, H, V, N)]),
    "delta_rule": (
        lambda q, k, v, g, s: kernels.delta_rule_step(q, k, v, -0.1 * k, 0.1 * k, -g.abs(), s),
        [*ATTENTION, (B, L, H, K)],
        [(B, H, K, V)],
    ),
    "wkv4": (
        lambda k, v, w, u, s: kernels.wkv4_step(k, v, -w.exp(), u, s),
        [(B, L, D), (B, L, D), (D,), (D,)],
        [(B, 3, D)],
    ),
    "attention_decode": (kernels.attention_decode, ATTENTION, [(B, 700, H, K), (B, 700, H, V), (B,)]),
    "conv_gate": (
        lambda x, w, s: kernels.conv_gate_step(x, w, None, s),
        [(B, L, 2 * D), (D, 3)],
        [(B, D, 2)],
    ),
    "short_conv": (lambda x, w, s: kernels.short_conv_step(x, w, None, s), [(B, L, D), (D, 4)], [(B, D, 3)]),
}


def captured(function: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
    """Warm up on a side stream, capture, and return the replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()

    def replay() -> list[Tensor]:
        graph.replay()
        return [output.clone() for output in outputs]

    return replay


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PARALLEL)
def test_forward_and_backward_replay(name, dtype):
    function, shapes = PARALLEL[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape, device="cuda", dtype=dtype).requires_grad_() for shape in shapes]

    def run() -> list[Tensor]:
        y = function(*inputs)
        return [y.detach(), *torch.autograd.grad(y.float().square().sum(), inputs)]

    replay = captured(run)
    for tensor in inputs:
        tensor.data.normal_()
    torch.testing.assert_close(replay(), run(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", STEPS)
def test_steps_replay(name):
    function, shapes, states = STEPS[name]
    torch.manual_seed(0)
    token = [shape[:1] + shape[2:] if shape[:2] == (B, L) else shape for shape in shapes]
    inputs = [torch.randn(shape, device="cuda") for shape in token]
    state = [torch.zeros(s, device="cuda", dtype=torch.int32 if len(s) == 1 else None) for s in states]
    replay = captured(lambda: [function(*inputs, *state)])
    for tensor in state:
        tensor.zero_()
    expected_state = [tensor.clone() for tensor in state]
    for _ in range(7):  # past the end of the ring
        for tensor in inputs:
            tensor.normal_()
        torch.testing.assert_close(replay(), [function(*inputs, *expected_state)])
    torch.testing.assert_close(state, expected_state)
