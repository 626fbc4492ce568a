"""Walks over rows: all rows, by as many programs as have one."""

import pytest

pytest.importorskip("triton")

from basedbench.kernels.row_walks import walk_of_boundary, walk_of_norm


@pytest.mark.parametrize("walk_of", [walk_of_boundary, walk_of_norm])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("width", [1, 48, 64, 128, 200, 512, 1792, 4096])
@pytest.mark.parametrize("rows", [0, 1, 33, 4096, 16384, 65536])
def test_no_program_is_without_a_tile_and_no_thread_has_too_many_numbers(walk_of, masked, rows, width):
    walk = walk_of(rows, width, masked)
    tiles = -(-rows // walk.constants["ROWS"])
    assert walk.programs == 1 or walk.programs <= tiles
    tile = walk.constants["ROWS"] * walk.constants["BLOCK_D"]
    assert walk.constants["BLOCK_D"] >= width
    assert tile <= max(2048, walk.constants["BLOCK_D"])
    assert tile <= 32 * 32 * walk.constants["num_warps"] or width > 2048
