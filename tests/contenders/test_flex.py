"""FlexAttention's block masks of long sequences, made without their entries."""

import pytest
import torch

from basedbench.contenders import flex
from basedbench.contenders.flex import band, blocks

LENGTHS = [1, 100, 128, 300, 1000, 1024]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("window", [1, 63, 64, 127, 128, 129, 200, 256, 5000])
def test_blocks_are_those_that_the_entries_give(length: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = band(length, window, "cpu")
    expected = whole.kv_num_blocks, whole.kv_indices, whole.full_kv_num_blocks, whole.full_kv_indices
    for found, right in zip(blocks(length, window, "cpu"), expected, strict=True):
        torch.testing.assert_close(found, right)
    monkeypatch.setattr(flex, "LONGEST_DENSE", 0)
    made = band(length, window, "cpu")
    assert made.shape == whole.shape
    assert torch.equal(made.to_dense(), whole.to_dense())


def test_a_long_sequence_takes_little_memory() -> None:
    mask = band(2**17, 2**17, "cpu")
    assert mask.shape[-2:] == (2**17, 2**17)
    assert int(mask.kv_num_blocks.sum()) == 1024
    assert int(mask.full_kv_num_blocks.sum()) == 1024 * 1023 // 2
