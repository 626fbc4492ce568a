"""Compile the kernels of asked attention for an H200 as Figure 2 trains them, and wide forwards in other dtypes.

A JSON line for each; examples packed or not.

python -m tests.kernels.compiled.compile_asked_attention
"""

import re
from typing import Any

import torch

from basedbench.kernels import sliding_window_asked, taylor_attention_asked
from basedbench.kernels.packing import packing_of
from basedbench.kernels.slices import cut
from tests.kernels.compiled.disassembly import facts, tell
from tests.kernels.compiled.target import pretend

# Window (0: Taylor), width of keys, width of values; the narrowest Taylor is one of `compile_variants`.
CELLS = ((0, 8, 48), (0, 24, 128), (64, 128, 128))
LENGTH, ASKED = 256, (16, 64)


def examined(kernel: Any, text: str) -> dict[str, Any]:
    """Suspicious instructions, sizes, asynchronous copies, and accesses of single 16-bit numbers."""
    return {
        **facts(kernel, text),
        "copies": len(re.findall(r"\bLDGSTS\b", text)),
        "single": len(re.findall(r"\b(?:LDG|STG)\.E\.U16\b", text)),
    }


def asked_of(
    window: int, keys: int, values: int, asked: int, dtype: torch.dtype, gradients: bool, packed: bool
) -> None:
    """One example is enough: what is compiled does not depend on their number."""
    q = torch.zeros(1, asked, 1, keys, dtype=dtype, requires_grad=gradients)
    kv = torch.zeros(1, LENGTH, keys + values, dtype=dtype, requires_grad=gradients)
    k, v = (part.unflatten(-1, (1, -1)) for part in cut(kv, [keys, values]))
    positions = torch.arange(asked)[None]
    packing = packing_of([LENGTH], "cpu") if packed else None
    if window:
        bias = torch.zeros(2 * keys + values, requires_grad=True) if gradients else None
        y = sliding_window_asked(q, k, v, positions, window, packing=packing, bias_E=bias)
    else:
        y = taylor_attention_asked(q, k, v, positions, packing=packing)
    if gradients:
        y.sum().backward()


def main() -> None:
    compiled = pretend()
    found: list[tuple[dict[str, Any], Any]] = []
    trained = [
        (*cell, asked, torch.bfloat16, True, packed) for packed in (True, False) for cell in CELLS for asked in ASKED
    ]
    # The products of these were wrong code once, with 64 queries a program.
    wide = [(*cell, 64, dtype, False, False) for cell in CELLS[1:] for dtype in (torch.float16, torch.float32)]
    for window, keys, values, asked, dtype, gradients, packed in (*trained, *wide):
        compiled.clear()
        asked_of(window, keys, values, asked, dtype, gradients, packed)
        cell = {"window": window, "keys": keys, "values": values, "asked": asked, "trained": gradients}
        cell["packed"] = packed
        found += [({"kernel": name, **cell}, kernel) for name, kernel in compiled.values()]
    tell(found, examined)


if __name__ == "__main__":
    main()
