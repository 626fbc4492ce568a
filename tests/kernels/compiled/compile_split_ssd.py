"""Compile Mamba-2's kernels for an H200 as Figure 2 trains them, examples packed or not; a JSON line for each.

python -m tests.kernels.compiled.compile_split_ssd --every
"""

import sys
from typing import Any

import torch

from basedbench.kernels import ssd_plan
from basedbench.kernels.asked import Asked, Questions, slots_of
from basedbench.kernels.packing import Packing, packing_of
from basedbench.kernels.split_ssd import split_ssd
from basedbench.kernels.split_ssd_asked import split_ssd_asked
from tests.kernels.compiled.disassembly import facts, tell
from tests.kernels.compiled.target import pretend

# Heads, states.
CELLS = ((8, 16), (4, 8), (4, 24))
HEAD_DIM, LENGTH, ASKED = 64, 256, (0, 16, 64, 32)  # asked tokens; 0: the whole scan
USUAL = 1, 3  # of them without --every


def gradients_of(heads: int, states: int, asked: int, packing: Packing | None) -> None:
    """Few examples are enough: what is compiled does not depend on their number."""
    inner, conv = heads * HEAD_DIM, heads * HEAD_DIM + 2 * states
    batch, tokens = (2, LENGTH) if packing is None else (1, packing.tokens)
    width = (0 if asked else inner) + conv + heads
    p = torch.zeros(batch, tokens, width + -width % 16, dtype=torch.bfloat16, requires_grad=True)
    parameters = torch.zeros(conv, 4), torch.zeros(conv), -torch.ones(heads), torch.ones(heads), torch.zeros(heads)
    sizes = {"head_dim": HEAD_DIM, "groups": 1}
    if asked:
        z = torch.zeros(2, asked, inner, dtype=torch.bfloat16, requires_grad=True)
        positions = torch.arange(asked).expand(2, asked)
        slots = slots_of(positions, LENGTH) if packing is None else torch.zeros(1, tokens, dtype=torch.int32)
        y = split_ssd_asked(z, p, Asked(Questions(positions, slots, packing), z), *parameters, **sizes)
    else:
        y = split_ssd(p, *parameters, **sizes, packing=packing)
    y.sum().backward()


def main(*, every: bool) -> None:
    packing = packing_of([LENGTH, LENGTH // 2], "cpu")
    compiled = pretend()
    found: list[tuple[dict[str, Any], Any]] = []
    ssd_plan.WALKS = 1  # as with many sequences
    cells, counts = (None, None) if every else USUAL
    for heads, states in CELLS[:cells]:
        for asked in ASKED[:counts]:
            for packed in (None, packing):
                compiled.clear()
                gradients_of(heads, states, asked, packed)
                cell: dict[str, Any] = {"states": states, "asked": asked, "packed": packed is not None}
                found += [({"kernel": name, **cell}, kernel) for name, kernel in compiled.values()]
    tell(found, facts)


if __name__ == "__main__":
    main(every="--every" in sys.argv)
