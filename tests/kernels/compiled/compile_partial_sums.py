"""Compile the sums of partial sums for an H200 in several patterns of sizes; a JSON line for each kernel that there is.

python -m tests.kernels.compiled.compile_partial_sums
"""

import json
import re

import torch

from basedbench.kernels.partial_sums_triton import add_up
from tests.kernels.compiled.compile_variants import disassembled, facts, pretend

# Parts and columns of the sums of a step: as batches of 256 examples have them, smaller ones, and odd ones.
PATTERNS = (
    ((16, 65_536), (2_048, 256), (264, 256), (64, 640)),
    ((1, 65_536), (37, 256), (1, 256), (1, 640)),
    ((16, 12), (1, 20), (2_047, 4), (255, 16)),
)


def main() -> None:
    compiled = pretend()
    torch.set_num_threads(1)
    for pattern in PATTERNS:
        add_up([(torch.zeros(shape), torch.zeros(shape[1])) for shape in pattern])
    for name, kernel in compiled.values():
        dump = disassembled(kernel)
        loads = re.findall(r"\bLDG\.E\S*", dump)
        print(json.dumps({"kernel": name, "loads": loads, **facts(kernel, dump)}), flush=True)


if __name__ == "__main__":
    main()
