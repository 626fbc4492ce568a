"""The reference of head_norm: PyTorch's norms, the gates, RWKV-7's bonus written out, gradients."""

import pytest
import torch
import torch.nn.functional as F

from basedbench.kernels import head_norm
from basedbench.kernels.head_norm import bytes_moved, flops


def test_without_centre_it_is_a_root_mean_square_norm_of_each_head(randn):
    y, weight, gate = randn(2, 3, 4, 10), randn(10), randn(2, 3, 40)
    normed = F.rms_norm(y, (10,), weight, 1e-5).flatten(-2)
    torch.testing.assert_close(head_norm(y, weight), normed)
    torch.testing.assert_close(head_norm(y, weight, gate_xE=gate), normed * F.silu(gate))
    torch.testing.assert_close(head_norm(y, weight, gate_xE=gate, activation="sigmoid"), normed * gate.sigmoid())


def test_with_a_weight_for_each_channel_it_is_a_group_norm(randn):
    y, weight, bias = randn(5, 4, 10), randn(4, 10), randn(4, 10)
    exact = F.group_norm(y.flatten(1), 4, weight.flatten(), bias.flatten(), 1e-3)
    torch.testing.assert_close(head_norm(y, weight, bias, eps=1e-3, center=True), exact)


def test_the_bonus_weighs_the_values_of_each_head(randn):
    y, r, k, v = (randn(1, 2, 3) for _ in range(4))
    rho, gate = randn(2, 3), randn(1, 6)
    out = head_norm(y, gate_xE=gate, activation="identity", bonus=(r, k, rho, v)).view(2, 3)
    for h in range(2):
        share = sum(r[0, h, i] * k[0, h, i] * rho[h, i] for i in range(3))
        n = y[0, h] / (y[0, h].square().mean() + 1e-5).sqrt()
        torch.testing.assert_close(out[h], (n + share * v[0, h]) * gate[0, 3 * h : 3 * h + 3])


def test_gradients(randn):
    parts = [randn(2, 3, 4), randn(3, 4), randn(3, 4), randn(2, 12), *(randn(2, 3, 4) for _ in range(3)), randn(3, 4)]

    def run(y, weight, bias, gate, r, k, v, rho):
        return head_norm(y, weight, bias, gate_xE=gate, bonus=(r, k, rho, v), center=True)

    assert torch.autograd.gradcheck(run, [part.requires_grad_() for part in parts])


def test_the_dtype_asked_for(randn):
    y = randn(2, 3, 4).bfloat16()
    assert head_norm(y, torch.ones(4)).dtype == torch.bfloat16
    assert head_norm(y, torch.ones(4), dtype=torch.float32).dtype == torch.float32


def test_a_shared_weight_beside_a_bias_is_refused(randn):
    with pytest.raises(ValueError, match="heads share"):
        head_norm(randn(2, 3, 4), randn(4), randn(3, 4))


def test_costs():
    assert flops(tokens=2, heads=3, value_dim=4) == 24 * 9
    assert bytes_moved(tokens=2, heads=3, value_dim=4) == 24 * 3 * 2
    assert bytes_moved(tokens=2, heads=3, value_dim=4, backward=True) == 24 * 8 * 2
