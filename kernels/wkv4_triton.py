"""Operators of `wkv4` by the kernels of `wkv4_gluon`: grids, outputs and gradients."""

# mypy: allow-untyped-defs

from typing import Any

import torch
import triton
from torch import Tensor

from .differentiated import differentiated
from .partial_sums_triton import sum_parts
from .wkv4 import NOTHING
from .wkv4_gluon import wkv4_backward_kernel, wkv4_kernel

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CHANNELS = 32  # of a program: one warp
CHUNK = 16  # tokens, a power of two


def unsupported(k: Tensor, v: Tensor, w: Tensor, u: Tensor, initial_state: Tensor | None = None) -> str | None:
    """Why the kernels do not take these inputs, or None if they do."""
    if any(part is not None and part.dtype not in DTYPES for part in (k, v, w, u, initial_state)):
        return "inputs must be float32, float16 or bfloat16"
    return "there is nothing to compute" if v.numel() == 0 else None


def _launch(v: Tensor) -> tuple[tuple[int], tuple[int, int, float], dict[str, int]]:
    """Grid, sizes and constants of both kernels."""
    batch, length, channels = v.shape
    grid = (batch * triton.cdiv(channels, CHANNELS),)
    sizes = length, triton.cdiv(length, CHUNK), NOTHING
    return grid, sizes, {"D": channels, "BD": CHANNELS, "T": CHUNK, "num_warps": 1}


@torch.library.custom_op("basedbench::wkv4", mutates_args=())
def forward(k: Tensor, v: Tensor, w: Tensor, u: Tensor, initial_state: Tensor | None, keep: bool) -> list[Tensor]:
    """y (B,L,D), the last state (B,3,D), and the states before chunks or (0,)."""
    y, final, kept = outputs = _outputs(k, v, w, u, initial_state, keep)
    grid, sizes, constants = _launch(v)
    initial = v if initial_state is None else initial_state.contiguous()
    wkv4_kernel[grid](
        k.contiguous(), v.contiguous(), w.contiguous(), u.contiguous(), initial, y, final, kept, *sizes,
        **constants, INITIAL=initial_state is not None, KEEP=keep,
    )  # fmt: skip
    return outputs


@forward.register_fake
def _outputs(k, v, w, u, initial_state, keep):
    batch, length, channels = v.shape
    kept = (batch, (length + CHUNK - 1) // CHUNK, 4, channels) if keep else (0,)
    return [v.new_empty(v.shape), *(v.new_empty(s, dtype=torch.float32) for s in ((batch, 3, channels), kept))]


@torch.library.custom_op("basedbench::wkv4_backward", mutates_args=())
def backward(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, initial_state: Tensor | None, kept: Tensor,
    dy: Tensor, grad_state: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    """Gradients of k, v, those of w and u (2,D), and of the initial state, (0,) if there is none."""
    dk, dv, _, dinitial = _gradients_like(k, v, w, u, initial_state, kept, dy, grad_state)
    partials = v.new_empty((len(v), 2 * v.shape[-1]), dtype=torch.float32)
    grid, sizes, constants = _launch(v)
    wkv4_backward_kernel[grid](
        k.contiguous(), v.contiguous(), w.contiguous(), u.contiguous(), dy.contiguous(),
        v if grad_state is None else grad_state.contiguous(), kept, dk, dv, dinitial, partials, *sizes,
        **constants, GRAD_INITIAL=initial_state is not None, GRAD_FINAL=grad_state is not None,
    )  # fmt: skip
    return [dk, dv, sum_parts(partials, torch.float32).view(2, -1), dinitial]


@backward.register_fake
def _gradients_like(k, v, w, u, initial_state, kept, dy, grad_state):
    dinitial = v.new_empty(0) if initial_state is None else initial_state.new_empty(initial_state.shape)
    return [k.new_empty(k.shape), v.new_empty(v.shape), v.new_empty((2, v.shape[-1]), dtype=torch.float32), dinitial]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    k, v, w, u, initial_state, kept = ctx.saved_tensors
    dy = torch.zeros_like(v) if grads[0] is None else grads[0]
    dk, dv, (dw, du), dinitial = backward(k, v, w, u, initial_state, kept, dy, grads[1])
    return dk, dv, dw.to(w.dtype), du.to(u.dtype), None if initial_state is None else dinitial, None


forward.register_autograd(_backward, setup_context=_keep)


def wkv4(k, v, w, u, *, initial_state=None, return_state=False):
    """`wkv4.reference` by the kernels above, for inputs that `unsupported` has no reason against."""
    tensors = k, v, w, u, initial_state
    keep = differentiated(*tensors)
    y, state, _ = forward(*tensors, keep)
    return (y, state) if return_state else y
