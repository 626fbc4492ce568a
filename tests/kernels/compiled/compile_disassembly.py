"""Compile some kernels for an H200 and disassemble them one by one, as their own files, and together; a line for each.

python -m tests.kernels.compiled.compile_disassembly
"""

import re
from typing import Any

import torch

from basedbench.kernels import row_argmax, token_shift
from basedbench.kernels.partial_sums_triton import add_up
from tests.kernels.compiled.disassembly import run, tell, with_file
from tests.kernels.compiled.target import pretend

_TARGET = re.compile(r"\b(BRA|BSSY|CALL|RET)\b(.*?)\b0x[0-9a-f]+")


def instructions(text: str) -> list[str]:
    """Without addresses, and without those where a branch goes."""
    found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", text)
    return [_TARGET.sub(r"\1\2", one) for one in found]


def examined(kernel: Any, text: str) -> dict[str, Any]:
    """Whether both ways found the same."""
    with with_file(kernel.asm["cubin"]) as path:
        alone = instructions(run("cuobjdump", "-sass", path))
    return {"instructions": len(alone), "same": instructions(text) == alone}


def main() -> None:
    compiled = pretend()
    add_up([(torch.zeros(16, 4096), torch.zeros(4096))])
    row_argmax(torch.zeros(4, 50_264))
    token_shift(torch.zeros(2, 40, 64), torch.zeros(3, 64))
    tell((({"kernel": name}, kernel) for name, kernel in compiled.values()), examined)


if __name__ == "__main__":
    main()
