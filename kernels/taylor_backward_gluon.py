"""Gradients of taylor_attention by the Gluon sweeps of `taylor_backward_gluon_kernels`: launches.

Enough sequences to fill the device: three kernels, each serial over whole sequences. Fewer: segments as in the forward;
the states they begin with are made again (cheaper than keeping them), R's after delta is known.
"""

from types import ModuleType

import triton
from torch import Tensor

from . import taylor_gluon
from .gluon_modules import gluon_module
from .taylor_gluon_states import SLOT, running_sums_kernel

# Buffers of 64 tokens: of the sweeps for dq, dk and dv, and of the sums.
STAGES = (2, 3, 3, 4)


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
) -> None:
    """Writes dq, dk (B,L,H,16), dv (B,L,H,V), all contiguous, and delta (B,H,L)."""
    kernels = _kernels()
    assert isinstance(kernels, ModuleType)
    batch, length, heads, value_dim = v.shape
    cut = taylor_gluon.plan(batch, length, heads, value_dim)
    scalars = (length, heads, cut.segment, cut.segments)
    several = cut.segments > 1
    programs, sums = (cut.places * cut.segments,), (cut.places * (cut.segments - 1),)
    slots = inverse
    if several or initial is not None:
        slots = inverse.new_empty((cut.places, cut.segments + 1, SLOT.value))
    q_map, k_map = (taylor_gluon._map(x, 64, 16) for x in (q, k))
    v_map, y_map, dy_map, dv_map = (taylor_gluon._map(x, 64, 64) for x in (v, y, dy, dv))
    if several:
        taylor_gluon._segment_sums(taylor_gluon._kernels(), k, v, slots, cut)
    if several or initial is not None:
        _running_sums(slots, initial, cut, value_dim)
    kernels.query_sweep_kernel[programs](
        q_map, k_map, v_map, dy_map, y_map, inverse, delta, dq, slots, *scalars,
        BEGIN=several or initial is not None, STAGES=STAGES[0], num_warps=4,
    )  # fmt: skip
    if several:
        kernels.reverse_sums_kernel[sums](q_map, dy_map, inverse, delta, slots, *scalars, STAGES=STAGES[3], num_warps=4)
        _running_sums(slots, None, cut, value_dim)
    for keys, stages in ((True, STAGES[1]), (False, STAGES[2])):
        kernels.key_value_sweep_kernel[programs](
            q_map, k_map, v_map, dy_map, dv_map, inverse, delta, dk, slots, *scalars,
            KEYS=keys, BEGIN=several, STAGES=stages, num_warps=4,
        )  # fmt: skip


def _running_sums(slots: Tensor, initial: Tensor | None, cut: taylor_gluon._Plan, value_dim: int) -> None:
    block = taylor_gluon.BLOCK
    running_sums_kernel[(cut.places, triton.cdiv(SLOT.value, block))](
        slots, slots if initial is None else initial, cut.segments, cut.value_tiles,
        V=value_dim, INITIAL=initial is not None, TURNED=False, BLOCK=block, num_warps=4,
    )  # fmt: skip
