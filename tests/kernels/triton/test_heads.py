"""The elementwise kernels around mixers with heads against their references in float64: outputs and gradients.

head_norm, delta_inputs, rwkv7_inputs, token_shift.
"""

import importlib

import pytest
import torch
from torch import Tensor

from basedbench.kernels import delta_inputs_triton, head_norm_triton, rwkv7_inputs_triton, token_shift_triton


def module(name):
    """The package has a function of the module's name."""
    return importlib.import_module(f"basedbench.kernels.{name}")


FLOOR = {torch.float32: 5e-7, torch.float16: 1e-4, torch.bfloat16: 1e-3}
SHAPES = [(1, 1, 1, 16), (2, 17, 2, 48), (1, 40, 3, 80), (1, 9, 1, 256)]  # batch, length, heads, channels


def results(function, parts, signs) -> list[Tensor]:
    leaves = [None if part is None else part.detach().requires_grad_() for part in parts]
    outputs = function(*leaves)
    outputs = [y for y in (outputs if isinstance(outputs, list | tuple) else (outputs,)) if y is not None]
    signs = [sign.to(y.dtype) for sign, y in zip(signs(outputs), outputs, strict=True)]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, [x for x in leaves if x is not None], signs)]


def compare(relative_error, ours, reference, parts, floor_of_float32=FLOOR[torch.float32]) -> None:
    """Against float64, beside the reference in the dtype of the parts; and the same numbers every time."""

    def signs(outputs):
        generator = torch.Generator().manual_seed(1)
        return [torch.randn(y.shape, generator=generator).sign().to(y.device) for y in outputs]

    mine, again, theirs = (results(f, parts, signs) for f in (ours, ours, reference))
    exact = results(reference, [None if part is None else part.double() for part in parts], signs)
    for one, two, other, truth in zip(mine, again, theirs, exact, strict=True):
        assert torch.equal(one, two)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        floor = floor_of_float32 if one.dtype == torch.float32 else FLOOR[parts[0].dtype]
        assert relative_error(one, truth) <= 2 * relative_error(other, truth) + floor


@pytest.mark.parametrize("options", ["plain", "gate", "sigmoid", "group"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_head_norm(randn, relative_error, device, dtypes, shape, options):
    batch, length, heads, width = shape
    for dtype in dtypes:
        y, r, k, v = (randn(*shape).to(device, dtype) for _ in range(4))
        wide = randn(batch, length, 3 * heads * width).to(device, dtype)
        gate = None if options == "plain" else wide[..., heads * width : 2 * heads * width]
        weight, bias, rho = (randn(heads, width).float().to(device) for _ in range(3))
        activation = {"sigmoid": "sigmoid", "group": "identity"}.get(options, "silu")
        group = options == "group"
        parts = [y, weight if group else weight[0], bias if group else None, gate, *((r, k, rho, v) if group else ())]

        def ours(y, weight, bias, gate, *bonus, activation=activation, group=group, dtype=dtype):
            return head_norm_triton.head_norm(y, weight, bias, gate, activation, bonus or None, 1e-5, group, dtype)

        def reference(y, weight, bias, gate, *bonus, activation=activation, group=group):
            options = {"activation": activation, "bonus": bonus or None, "center": group}
            return module("head_norm").reference(y, weight, bias, gate_xE=gate, **options)

        compare(relative_error, ours, reference, parts)


@pytest.mark.parametrize("decays", ["none", "head", "channel"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_delta_inputs(randn, relative_error, device, dtypes, shape, decays):
    batch, length, heads, width = shape
    for dtype in dtypes:
        q, k, _ = randn(batch, length, 3 * heads * width).to(device, dtype).split(heads * width, -1)
        beta, logits = randn(batch, length, 2 * heads).to(device, dtype).split(heads, -1)
        more = [None, None, None]
        if decays != "none":
            each = 1 if decays == "head" else width
            logits = logits if decays == "head" else randn(batch, length, heads * width).to(device, dtype)
            more = [logits, randn(heads).float().to(device), randn(heads * each).float().to(device)]
        parts = [*(x.unflatten(-1, (heads, width)) for x in (q, k)), beta, *more]
        # Of the bias and A_log: sums of either sign that come out at a twentieth of what was added.
        compare(relative_error, delta_inputs_triton.delta_inputs, module("delta_inputs").reference, parts, 2e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rwkv7_inputs(randn, relative_error, device, dtypes, shape):
    for dtype in dtypes:
        parts = [randn(*shape).to(device, dtype) for _ in range(3)]
        parts += [randn(*shape[2:]).float().to(device) for _ in range(2)]
        compare(relative_error, rwkv7_inputs_triton.rwkv7_inputs, module("delta_inputs").rwkv7_reference, parts)


@pytest.mark.parametrize("shape", [(1, 1, 16, 1), (2, 17, 48, 6), (3, 40, 200, 3)], ids=str)
def test_token_shift(randn, relative_error, device, dtypes, shape):
    *shape, mixtures = shape
    for dtype in dtypes:
        parts = [randn(*shape).to(device, dtype), randn(mixtures, shape[-1]).float().to(device)]
        compare(relative_error, token_shift_triton.token_shift, module("token_shift").reference, parts)


def test_registration(randn, device):
    """Schema, fake tensors and autograd registration."""

    def leaf(*shape):
        return randn(*shape).float().to(device).requires_grad_()

    heads, size = (2, 16), (1, 5, 2, 16)
    check = torch.library.opcheck
    bonus = leaf(*size), leaf(*size), leaf(*heads), leaf(*size)
    rest = (1e-5, True, "silu", torch.float32)
    check(head_norm_triton.operator, (leaf(*size), leaf(*heads), leaf(*heads), leaf(1, 5, 32), *bonus, *rest))
    check(head_norm_triton.operator, (leaf(*size), leaf(16), *[None] * 6, *rest))
    decays = leaf(1, 5, 2), leaf(2), leaf(2)
    check(delta_inputs_triton.operator, (leaf(*size), leaf(*size), leaf(1, 5, 2), *decays))
    check(delta_inputs_triton.operator, (leaf(*size), leaf(*size), leaf(1, 5, 2), None, None, None))
    check(rwkv7_inputs_triton.operator, (*(leaf(*size) for _ in range(3)), leaf(*heads), leaf(*heads)))
    check(token_shift_triton.operator, (leaf(2, 5, 16), leaf(3, 16)))


def test_what_the_kernels_leave_to_the_reference(randn, device):
    y = randn(1, 2, 2, 16).to(device)
    for refuse in (head_norm_triton.unsupported, delta_inputs_triton.unsupported):
        assert refuse(y.float()) is None
        assert "float16" in refuse(y)
        assert "wide" in refuse(y.float().repeat(1, 1, 1, 65))
