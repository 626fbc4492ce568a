"""Tiles, layouts and programs that the Gluon kernels of taylor_attention share. Hopper, key width 16, 64 values, bf16.

Tiles come and go through tensor maps: what lies beyond the length or the value width reads as zero, which adds nothing
to any sum, and is not written. So tails need no masks.
"""

# mypy: allow-untyped-defs

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

# Triton 3.7 renamed it.
barrier = getattr(gl, "thread_barrier", None) or gl.barrier

T = gl.constexpr(64)
BF16 = gl.constexpr(gl.bfloat16)
SQUARE = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))
OPERAND = gl.constexpr(gl.DotOperandLayout(0, SQUARE.value, 2))
NUMBERS = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
KEYS_SHARED = gl.constexpr(gl.NVMMASharedLayout(32, 16, 2))
VALUES_SHARED = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))
# The same bytes as a tile (batch, head, token, width) of a tensor map.
KEYS_TILE = gl.constexpr(gl.NVMMASharedLayout(32, 16, 4))
VALUES_TILE = gl.constexpr(gl.NVMMASharedLayout(128, 16, 4))


@gluon.jit
def _place(heads, segment, segments, value_tiles):
    """(batch, head, sequence x value tile, number of the segment) of this program."""
    program = gl.program_id(0)
    number, place = program % segments, program // segments
    sequence = place // value_tiles
    return sequence // heads, sequence % heads, place, number


@gluon.jit
def _fetch(tiles, shared, bar, batch, head, row, column, pred):
    """Starts a copy to shared memory, announced before by `mbarrier.expect`.

    Each tensor has barriers of its own: between two writes to one allocation Triton would stop all threads.
    """
    tma.async_copy_global_to_shared(tiles, [batch, head, row, column], bar, shared, pred=pred)


@gluon.jit
def _allocate_barriers(STAGES: gl.constexpr):
    bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(bars.index(i), count=1)
    return bars


@gluon.jit
def _unseen(x):
    """x, as something new: what follows from it is not computed early and kept in registers."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _rounded(x):
    """float32 as bf16 holds it. Conversions to and fro would be one by one, at a quarter of the rate of pairs."""
    code: gl.constexpr = "{.reg .b32 t; cvt.rn.bf16x2.f32 t, $3, $2; shl.b32 $0, t, 16; and.b32 $1, t, 0xffff0000;}"
    return gl.inline_asm_elementwise(code, "=r,=r,r,r", [x], dtype=gl.float32, is_pure=True, pack=2)


@gluon.jit
def _not_before(x):
    """x (64,64) where its row is not before its column, else zero."""
    row = _unseen(gl.arange(0, T, layout=gl.SliceLayout(1, SQUARE)))
    column = gl.arange(0, T, layout=gl.SliceLayout(0, SQUARE))
    # Bits 1 and 2 of the column are the thread's, the others constants.
    beyond = row[:, None] - (column & 6)[None, :]
    return gl.where(beyond >= (column & 57)[None, :], x, 0.0)


@gluon.jit
def _not_after(x):
    """x (64,64) where its row is not after its column, else zero."""
    row = _unseen(gl.arange(0, T, layout=gl.SliceLayout(1, SQUARE)))
    column = gl.arange(0, T, layout=gl.SliceLayout(0, SQUARE))
    beyond = row[:, None] - (column & 6)[None, :]
    return gl.where(beyond <= (column & 57)[None, :], x, 0.0)
