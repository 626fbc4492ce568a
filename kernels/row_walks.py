"""How the backwards of norms walk over rows: a fixed number of programs, each with tiles of whole rows.

The number depends on the shape alone, so that sums of partial gradients are made in one order on every device. Chosen
on an H100 (docs/log/norms_and_conv.md): few tiles a program repay no loads ahead, many do; each program leaves partial
sums, so that more of them than run at once cost more than they hide.
"""

from typing import Any, NamedTuple

import triton

from .company import most_programs

SHORT = 2**20  # elements up to which a backward is over before loads ahead are worth their beginning
FEW_ROWS = 2**22
NARROW = 128
WIDE = 512  # from here on a tile is a row or two, and takes four warps


class Walk(NamedTuple):
    """Programs, and what the kernel is compiled for: `AHEAD` tiles at a time, all but one on their way."""

    programs: int
    constants: dict[str, Any]


def walk_of_boundary(rows: int, width: int, masked: bool = False) -> Walk:
    """Of `block_boundary`: rows of one norm or two. `masked`: with a mask of dropout."""
    block = triton.next_power_of_2(width)
    if block > WIDE:
        return _walk(rows, block, tile=2048, programs=384, ahead=3, warps=4)
    if masked and block <= NARROW:
        return _walk(rows, block, tile=1024, programs=528, ahead=1, warps=4)
    if rows * block <= SHORT:
        return _walk(rows, block, tile=512, programs=512, ahead=1, warps=2)
    return _walk(rows, block, tile=1024, programs=384, ahead=3, warps=2)


def walk_of_norm(rows: int, width: int, masked: bool = False) -> Walk:
    """Of `add_layer_norm`; `masked` as above."""
    block = triton.next_power_of_2(width)
    if block > NARROW:
        return _walk(rows, block, tile=2048, programs=256, ahead=3, warps=4)
    if masked and rows * block <= SHORT:
        return _walk(rows, block, tile=1024, programs=1056, ahead=1, warps=4)
    if rows * block <= SHORT:
        return _walk(rows, block, tile=512, programs=512, ahead=1, warps=2)
    return _walk(rows, block, tile=1024, programs=256 if rows * block <= FEW_ROWS else 512, ahead=3, warps=4)


def _walk(rows: int, block: int, *, tile: int, programs: int, ahead: int, warps: int) -> Walk:
    tile_rows = max(1, tile // block)
    constants = {"BLOCK_D": block, "ROWS": tile_rows, "AHEAD": ahead, "num_warps": warps}
    return Walk(max(1, min(most_programs(programs, rows), triton.cdiv(rows, tile_rows))), constants)
