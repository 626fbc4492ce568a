"""Gradients of taylor_attention by the Gluon sweeps of `taylor_backward_gluon_kernels`: launches.

Enough sequences to fill the device: three kernels, each serial over whole sequences. Fewer: segments as in the forward,
which keeps the states they begin with; R's are made after delta is known.
"""

from types import ModuleType

import torch
from torch import Tensor

from . import taylor_gluon
from .gluon_modules import gluon_module

# Buffers of 64 tokens: of the sweeps for dq, dk and dv; of 128: of the sums.
STAGES, SUMS_STAGES = (2, 2, 3), 3


def _kernels() -> ModuleType | str:
    """The module with the kernels, or why there is none."""
    return gluon_module("taylor_backward_gluon_kernels")


def unsupported(q: Tensor, k: Tensor, v: Tensor, y: Tensor, dy: Tensor) -> str | None:
    """Why the Gluon kernels do not take these inputs, or None if they do."""
    if v.shape[-1] > 64:
        return "value width at most 64"
    for values in (v, y, dy):
        reason = taylor_gluon.unsupported(q, k, values)
        if reason is not None:
            return reason
    kernels = _kernels()
    return kernels if isinstance(kernels, str) else None


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    initial: Tensor | None,
    y: Tensor,
    inverse: Tensor,
    dy: Tensor,
    delta: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    kept: Tensor,
) -> None:
    """Writes dq, dk (B,L,H,16), dv (B,L,H,V), all contiguous, and delta (B,H,L).

    `kept` are the slots of the forward, if there are several segments.
    """
    kernels = _kernels()
    assert isinstance(kernels, ModuleType)
    batch, length, heads, value_dim = v.shape
    cut = taylor_gluon.plan(batch, length, heads, value_dim)
    scalars = (length, heads, cut.segment, cut.segments)
    several = cut.segments > 1
    programs, sums = (cut.places * cut.segments,), (cut.places * (cut.segments - 1),)
    slots = kept
    if initial is not None and not several:
        slots = inverse.new_empty(taylor_gluon.slots_shape(cut))
        taylor_gluon.running_sums(slots, initial, cut, value_dim)
    q_map, k_map = (taylor_gluon._map(x, 64, 16) for x in (q, k))
    v_map, y_map, dy_map, dv_map = (taylor_gluon._map(x, 64, 64) for x in (v, y, dy, dv))
    kernels.query_gradient_kernel[programs](
        q_map, k_map, v_map, dy_map, y_map, inverse, delta, dq, slots, *scalars,
        BEGIN=several or initial is not None, STAGES=STAGES[0], num_warps=4,
    )  # fmt: skip
    if several:
        slots = torch.empty_like(kept)
        kernels.gradient_sums_kernel[sums](
            taylor_gluon._map(q, 128, 16), taylor_gluon._map(dy, 128, 64), inverse, delta, slots, *scalars,
            STAGES=SUMS_STAGES, num_warps=4,
        )  # fmt: skip
        taylor_gluon.running_sums(slots, None, cut, value_dim)
    kernels.key_gradient_kernel[programs](
        q_map, k_map, v_map, dy_map, inverse, delta, dk, slots, *scalars,
        BEGIN=several, STAGES=STAGES[1], num_warps=4,
    )  # fmt: skip
    kernels.value_sweep_kernel[programs](
        q_map, k_map, dy_map, dv_map, inverse, slots, *scalars, BEGIN=several, STAGES=STAGES[2], num_warps=4
    )
