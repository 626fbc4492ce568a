"""The reference of selective_ssm against its formula, written with a loop over time."""

import sys

import torch
import torch.nn.functional as F

from basedbench.kernels import selective_ssm

B, L, D, N, R, W = 2, 9, 6, 4, 3, 4
SHAPES = [(B, L, 2 * D), (D, W), (D,), (R + 2 * N, D), (D, R), (D,), (D, N), (D,)]


def loop(xz, conv, conv_bias, x_weight, dt_weight, dt_bias, A_log, skip):
    x, z = xz[..., :D], xz[..., D:]
    padded = F.pad(x, (0, 0, W - 1, 0))
    x = F.silu(sum(padded[:, w : w + L] * conv[:, w] for w in range(W)) + conv_bias)
    h, outputs = torch.zeros(B, D, N, dtype=xz.dtype), []
    for t in range(L):
        dt, b, c = (x[:, t] @ x_weight.t()).split([R, N, N], -1)
        delta = (1 + (dt @ dt_weight.t() + dt_bias).exp()).log()
        h = (-delta[..., None] * A_log.exp()).exp() * h + (delta * x[:, t])[..., None] * b[:, None]
        outputs.append(((h * c[:, None]).sum(-1) + skip * x[:, t]) * F.silu(z[:, t]))
    return torch.stack(outputs, 1)


def test_outputs_and_gradients_equal_the_loop(randn, gradients):
    inputs = [randn(*shape) for shape in SHAPES]
    torch.testing.assert_close(selective_ssm(*inputs), loop(*inputs))
    for ours, exact in zip(gradients(selective_ssm, *inputs), gradients(loop, *inputs), strict=True):
        torch.testing.assert_close(ours, exact)


def test_the_reference_is_what_a_cpu_takes(randn):
    inputs = [randn(*shape) for shape in SHAPES]
    reference = sys.modules["basedbench.kernels.selective_ssm"].reference
    assert torch.equal(selective_ssm(*inputs), reference(*inputs))
