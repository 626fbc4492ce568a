"""Compile the kernels of `tall_matmul` for an H200, for the products that recall models' layers have; a JSON line each.

python -m tests.kernels.compiled.compile_tall_matmul
"""

import re
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from basedbench.kernels.tall_matmul_triton import tall_matmul, token_sum
from tests.kernels.compiled.disassembly import facts, tell
from tests.kernels.compiled.sass import register_count, waits_a_product
from tests.kernels.compiled.target import pretend

TOKENS = 4096
SIDES = (128, 256), (256, 128), (64, 304), (8, 256)  # whole rows twice, tiles of several turns and of a short one
ADDED = ("none", "vector", "matrix")


def matrix(rows: int, columns: int, together: bool) -> Tensor:
    """With the numbers of a row together, or those of a column."""
    one = torch.zeros((rows, columns) if together else (columns, rows), dtype=torch.bfloat16)
    return one if together else one.t()


def cells() -> Iterator[dict[str, Any]]:
    """Forward (weights lie across), gradients of inputs, both with planes of tokens too, and sums over tokens."""
    for (inner, columns), planes, across in product(SIDES, (False, True), (False, True)):
        for added in ADDED if not planes else ADDED[:1]:
            yield {"kind": "tall", "inner": inner, "columns": columns, "planes": planes, "b": across, "added": added}
    for (rows, columns), a, b in product(SIDES, (False, True), (False, True)):
        yield {"kind": "sum", "rows": rows, "columns": columns, "a": a, "b": b, "added": "none"}


def launch(cell: dict[str, Any]) -> None:
    if cell["kind"] == "sum":
        token_sum(matrix(cell["rows"], TOKENS, cell["a"]), matrix(TOKENS, cell["columns"], cell["b"]), torch.bfloat16)
        return
    inner, columns, rows_lie = cell["inner"], cell["columns"], not cell["planes"]
    out = matrix(TOKENS, columns, rows_lie)
    added = {"none": None, "vector": torch.zeros(columns, dtype=torch.bfloat16), "matrix": out}[cell["added"]]
    tall_matmul(matrix(TOKENS, inner, rows_lie), matrix(inner, columns, not cell["b"]), out, added)


def examined(kernel: Any, text: str) -> dict[str, Any]:
    """Resources, waits, and asynchronous loads of fewer than 16 bytes."""
    loads = re.findall(r"\b(?:LDGSTS|LDG)\.\S*", text)
    return {
        **facts(kernel, text),
        "registers": register_count(text),
        "warps": kernel.metadata.num_warps,
        "waits": waits_a_product(text),
        "short_loads": sum("128" not in load for load in loads),
        "loads": len(loads),
    }


def main() -> None:
    compiled = pretend()
    found: list[tuple[dict[str, Any], Any]] = []
    seen: set[str] = set()
    for cell in cells():
        compiled.clear()
        launch(cell)
        for key, (name, kernel) in compiled.items():
            if name != "sum_parts_kernel" and key not in seen:
                seen.add(key)
                found.append(({"kernel": name, **cell}, kernel))
    tell(found, examined)


if __name__ == "__main__":
    main()
