"""Compile the kernels of `selective_ssm` for an H200 as Figure 2 trains them; a JSON line for each.

Examples packed or not.

python -m tests.kernels.compiled.compile_selective_ssm --every
"""

import re
import sys
from typing import Any

import torch

from basedbench.kernels import selective_ssm, selective_ssm_asked
from basedbench.kernels.asked import Asked, Questions, slots_of
from basedbench.kernels.packing import packing_of
from tests.kernels.compiled.disassembly import facts, tell
from tests.kernels.compiled.target import pretend

CELLS = ((256, 16), (128, 16), (256, 8), (256, 24))  # channels and states; without --every the first
BATCH, LENGTH, ASKED, RANK = 256, 8, 4, 8


def longest_loop(text: str) -> int:
    """Instructions of the longest one."""
    addresses, loops = {}, [0]
    for number, (address, what) in enumerate(re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", text, re.M)):
        addresses[int(address, 16)] = number
        target = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)", what)
        if target and int(target[1], 16) in addresses:
            loops.append(number - addresses[int(target[1], 16)])
    return max(loops)


def examined(kernel: Any, text: str) -> dict[str, Any]:
    """Suspicious instructions, sizes, and the longest loop."""
    return {**facts(kernel, text), "loop": longest_loop(text)}


def train(channels: int, states: int, asked: bool, packed: bool) -> None:
    """Forward and backward."""
    shapes = [(channels, 4), (channels,), (RANK + 2 * states, channels), (channels, RANK), (channels,)]
    shapes += [(channels, states), (channels,)]
    parameters = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    packing = packing_of([LENGTH] * BATCH, "cpu") if packed else None
    rows = (1, BATCH * LENGTH) if packed else (BATCH, LENGTH)
    width = channels if asked else 2 * channels
    x = torch.zeros(*rows, width, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        if asked:
            z = torch.zeros(BATCH, ASKED, channels, dtype=torch.bfloat16, requires_grad=True)
            positions = torch.arange(ASKED).expand(BATCH, -1)
            slots = slots_of(positions, LENGTH).view(rows)
            y = selective_ssm_asked(x, z, Asked(Questions(positions, slots, packing), z), *parameters)
        else:
            y = selective_ssm(x, *parameters, packing=packing)
    y.sum().backward()


def main(*, every: bool) -> None:
    compiled = pretend()
    found: list[tuple[dict[str, Any], Any]] = []
    for channels, states in CELLS if every else CELLS[:1]:
        for asked in (False, True):
            for packed in (False, True):
                compiled.clear()
                train(channels, states, asked, packed)
                cell = {"channels": channels, "states": states, "asked": asked, "packed": packed}
                found += [({"kernel": name, **cell}, kernel) for name, kernel in compiled.values()]
    tell(found, examined)


if __name__ == "__main__":
    main(every="--every" in sys.argv)
