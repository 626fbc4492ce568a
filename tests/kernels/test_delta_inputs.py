"""The references of delta_inputs and rwkv7_inputs: what each output is, token by token, and gradients."""

import math

import pytest
import torch

from basedbench.kernels import delta_inputs, rwkv7_inputs
from basedbench.kernels.delta_inputs import bytes_moved, flops

SIZE = (2, 3, 2, 4)  # batch, length, heads, channels


def decays_of(randn, kind):
    """Logits, A_log and bias."""
    return {"none": (), "head": (randn(2, 3, 2), randn(2), randn(2)), "channel": (randn(2, 3, 8), randn(2), randn(8))}[
        kind
    ]


@pytest.mark.parametrize("kind", ["none", "head", "channel"])
def test_what_a_delta_rule_reads(randn, kind):
    q, k, beta, decays = randn(*SIZE), randn(*SIZE), randn(*SIZE[:3]), decays_of(randn, kind)
    found = delta_inputs(q, k, beta, *decays)
    for h in range(2):
        at = (1, 2, h)
        step, n = 1 / (1 + math.exp(-beta[at])), k[at] / (k[at].square().sum() + 1e-6).sqrt()
        alpha = torch.ones(4, dtype=torch.float64)
        if decays:
            logits, A_log, bias = decays
            logit = (logits + bias)[1, 2].view(2, -1)[h]
            alpha = torch.exp(-A_log[h].exp() * torch.log1p(logit.exp())).expand(4)
            torch.testing.assert_close(found[3][at].expand(4), alpha.log())
        exact = q[at] / (q[at].square().sum() + 1e-6).sqrt() / 2, n, torch.tensor(step, dtype=torch.float64)
        for value, right in zip(found, exact, strict=False):
            torch.testing.assert_close(value[at], right)
    assert decays or found[3] is None


@pytest.mark.parametrize("kind", ["none", "head", "channel"])
def test_gradients(randn, kind):
    inputs = [randn(*SIZE), randn(*SIZE), randn(*SIZE[:3]), *decays_of(randn, kind)]
    run = lambda *x: tuple(y for y in delta_inputs(*x) if y is not None)  # noqa: E731
    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in inputs])


def test_what_rwkv7_reads(randn):
    k, rate, decay = (randn(*SIZE) for _ in range(3))
    xi, alpha = randn(2, 4), randn(2, 4)
    found = rwkv7_inputs(k, rate, decay, xi, alpha)
    at = (1, 2, 1)
    eta, scaled = rate[at].sigmoid(), k[at] * xi[1]
    kappa = scaled / (scaled.square().sum() + 1e-6).sqrt()
    exact = k[at] * (1 + (eta - 1) * alpha[1]), -eta * kappa, kappa, -math.exp(-0.5) * decay[at].sigmoid()
    for value, right in zip(found, exact, strict=True):
        torch.testing.assert_close(value[at], right)


def test_gradients_of_rwkv7(randn):
    inputs = [*(randn(*SIZE) for _ in range(3)), randn(2, 4), randn(2, 4)]
    assert torch.autograd.gradcheck(rwkv7_inputs, [x.requires_grad_() for x in inputs])


def test_step_sizes_and_decays_stay_in_float32(randn):
    """Sums of decays over a sequence are exponents."""
    q, k, beta, *decays = (
        x.bfloat16() for x in (randn(*SIZE), randn(*SIZE), randn(*SIZE[:3]), *decays_of(randn, "head"))
    )
    found = delta_inputs(q, k, beta, *decays)
    assert [x.dtype for x in found] == [torch.bfloat16] * 2 + [torch.float32] * 2


def test_costs():
    assert flops(tokens=2, heads=3, key_dim=4) == 24 * 8
    assert bytes_moved(tokens=2, heads=3, key_dim=4) == 24 * 4 * 2
    assert bytes_moved(tokens=2, heads=3, key_dim=4, backward=True) == 24 * (4 + 6) * 2
