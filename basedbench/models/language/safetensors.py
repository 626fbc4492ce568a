"""A reader of safetensors files: tensors as they lie in the file, mapped into memory, nothing ever executed.

    8 bytes         n, the length of the header, little endian
    n bytes         JSON: {"name": {"dtype": "BF16", "shape": [4, 3], "data_offsets": [begin, end]}, ...}
    the rest        the tensors' bytes, row by row, little endian, offsets counted from here

The tensors fill the rest without gap or overlap. "__metadata__" may stand among the names, with strings for the reader.
Format: https://github.com/huggingface/safetensors.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basedbench.errors import UserError

LONGEST_HEADER = 100_000_000
MOST_NUMBERS = 2**60  # of a tensor, or if it is empty of its other sizes: PyTorch multiplies them all in 64 bits
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of the file by name, on the CPU. UserError says what is wrong with a malformed file."""
    try:
        header, data = _parts(path)
        entries = {name: _entry(name, entry) for name, entry in header.items() if name != "__metadata__"}
        _fill(entries, len(data))
    except (_MalformedError, OSError) as error:
        raise UserError(f"{path} is no whole safetensors file: {error}; download or write it again.") from None
    return {name: _tensor(data[begin:end], dtype, shape) for name, (dtype, shape, begin, end) in entries.items()}


Entry = tuple[torch.dtype, list[int], int, int]


class _MalformedError(Exception):
    """What is wrong with the file."""


def _parts(path: Path) -> tuple[dict[str, Any], Tensor]:
    """The header, and the bytes behind it, mapped."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise _MalformedError(f"a header of {length} bytes does not fit into {size}")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise _MalformedError(f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise _MalformedError("its header is not a JSON object")
    return header, torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[8 + length :]


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise _MalformedError("a name stands in its header twice")
    return dict(pairs)


def _entry(name: str, entry: Any) -> Entry:
    """dtype, shape and place of a tensor, each checked."""
    if not isinstance(entry, dict):
        raise _MalformedError(f"the entry of {name!r} is not a JSON object")
    dtype, shape, place = DTYPES.get(str(entry.get("dtype"))), _counts(entry, "shape"), _counts(entry, "data_offsets")
    if dtype is None:
        raise _MalformedError(f"{name!r} has the dtype {entry.get('dtype')!r}, not one of {', '.join(DTYPES)}")
    if shape is None or place is None or len(place) != 2:
        raise _MalformedError(f"{name!r} has the shape {entry.get('shape')!r} at {entry.get('data_offsets')!r}")
    begin, end = place
    if end - begin != math.prod(shape) * dtype.itemsize or math.prod(size or 1 for size in shape) > MOST_NUMBERS:
        raise _MalformedError(f"{name!r} of {dtype} {shape} has {end - begin} bytes")
    return dtype, shape, begin, end


def _counts(entry: dict[str, Any], key: str) -> list[int] | None:
    """The whole numbers >= 0 under `key`; None for anything else."""
    value = entry.get(key)
    counts = isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
    return value if counts else None


def _fill(entries: dict[str, Entry], size: int) -> None:
    """Refuse tensors that overlap, leave gaps, or end elsewhere than the file."""
    reached = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != reached:
            raise _MalformedError(f"{name!r} begins at byte {begin} of the data, not at {reached}")
        reached = end
    if reached != size:
        raise _MalformedError(f"its tensors end at byte {reached} of {size} bytes of data")


def _tensor(data: Tensor, dtype: torch.dtype, shape: list[int]) -> Tensor:
    if data.storage_offset() % dtype.itemsize:  # a view of another dtype must begin at a multiple of its size
        data = data.clone()
    return data.view(dtype).view(shape)
