"""Compile the kernel of `narrow_gradients` for an H200 in the sizes that Mamba's backward has; a JSON line for each.

python -m tests.kernels.compiled.compile_narrow_gradients
"""

import re
from typing import Any

import torch

from basedbench.kernels.narrow_gradients_triton import narrow_gradients
from tests.kernels.compiled.disassembly import facts, tell
from tests.kernels.compiled.sass import register_count, waits_a_product
from tests.kernels.compiled.target import pretend

SIZES = ((128, 8), (256, 8), (512, 16), (192, 16), (256, 32), (512, 32))  # channels and ranks
TOKENS, STATES = 1000, 16


def examined(kernel: Any, text: str) -> dict[str, Any]:
    """Resources, waits, and how many asynchronous loads there are of 16 bytes and of fewer."""
    loads = re.findall(r"\bLDGSTS\.\S*", text)
    return {
        **facts(kernel, text),
        "registers": register_count(text),
        "waits": waits_a_product(text),
        "loads": sum(load.endswith(".128") for load in loads),
        "short_loads": sum(not load.endswith(".128") for load in loads),
    }


def launch(channels: int, rank: int, dtype: torch.dtype) -> None:
    projected, dprojected = (torch.zeros(TOKENS, rank + 2 * STATES, dtype=dtype)[:, :rank] for _ in range(2))
    weight = torch.zeros(channels, rank, dtype=dtype)
    narrow_gradients(torch.zeros(TOKENS, channels, dtype=dtype), projected, weight, dprojected, weight)


def main() -> None:
    compiled = pretend()
    found: list[tuple[dict[str, Any], Any]] = []
    for dtype in (torch.bfloat16, torch.float16):
        for channels, rank in SIZES:
            compiled.clear()
            launch(channels, rank, dtype)
            (kernel,) = (one for name, one in compiled.values() if name == "narrow_gradients_kernel")
            found.append(({"channels": channels, "rank": rank, "dtype": str(dtype)}, kernel))
    tell(found, examined)


if __name__ == "__main__":
    main()
