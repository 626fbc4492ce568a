"""split_ssd against its two halves as they are used by themselves; the kernels: triton/test_split_ssd.py."""

import importlib

import pytest
import torch

from basedbench.kernels import short_conv, ssd

# The package may come to have a function of the module's name.
module = importlib.import_module("basedbench.kernels.split_ssd")


@pytest.mark.parametrize(("heads", "groups"), [(2, 1), (4, 2)])
@pytest.mark.parametrize("more", [0, 5])
def test_parts_and_their_order(randn, heads, groups, more):
    width, states = 8, 3
    inner, keys = heads * width, groups * states
    z, xBC, dt, beyond = (randn(2, 21, size).double() for size in (inner, inner + 2 * keys, heads, more))
    weight, bias = randn(inner + 2 * keys, 4).double(), randn(inner + 2 * keys).double()
    A, D, dt_bias = -randn(heads).double().abs(), randn(heads).double(), randn(heads).double()
    p = torch.cat([z, xBC, dt, beyond], -1).requires_grad_()
    x, B, C = short_conv(xBC, weight, bias, activation="silu").split([inner, keys, keys], -1)
    B, C = (part.unflatten(-1, (groups, states)) for part in (B, C))
    expected = ssd(x.unflatten(-1, (heads, width)), dt, A, B, C, D_H=D, dt_bias_H=dt_bias, dt_softplus=True)
    expected = expected * torch.nn.functional.silu(z).unflatten(-1, (heads, width))
    for function in (module.reference, module.split_ssd):
        y = function(p, weight, bias, A, D, dt_bias, head_dim=width, groups=groups)
        torch.testing.assert_close(y, expected)
        (grad,) = torch.autograd.grad(y.square().sum(), p)
        assert grad[..., : p.shape[-1] - more].abs().amin(dim=(0, 1)).max() > 0
        assert not grad[..., p.shape[-1] - more :].any()
