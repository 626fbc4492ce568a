"""Compile the sums of partial sums for an H200 in several patterns of sizes; a JSON line for each kernel that there is.

python -m tests.kernels.compiled.compile_partial_sums
"""

import re
from typing import Any

import torch

from basedbench.kernels.partial_sums_triton import add_up
from tests.kernels.compiled.disassembly import facts, tell
from tests.kernels.compiled.target import pretend

# Parts and columns of the sums of a step: as batches of 256 examples have them, smaller ones, and odd ones.
PATTERNS = (
    ((16, 65_536), (2_048, 256), (264, 256), (64, 640)),
    ((1, 65_536), (37, 256), (1, 256), (1, 640)),
    ((16, 12), (1, 20), (2_047, 4), (255, 16)),
)


def examined(kernel: Any, text: str) -> dict[str, Any]:
    """Resources, and all loads."""
    return {"loads": re.findall(r"\bLDG\.E\S*", text), **facts(kernel, text)}


def main() -> None:
    compiled = pretend()
    for pattern in PATTERNS:
        add_up([(torch.zeros(shape), torch.zeros(shape[1])) for shape in pattern])
    tell((({"kernel": name}, kernel) for name, kernel in compiled.values()), examined)


if __name__ == "__main__":
    main()
