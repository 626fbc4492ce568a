"""Compile the decode step's kernels as a model launches them, with a weight to ask for; print what their code does.

    python -m tests.kernels.compiled.compile_ahead

A JSON line for each: the kernel, how it is launched, its stack, what is suspicious about it, and the positions of its
first request, wait and access to global memory.
"""

import json
import re
import subprocess
import tempfile
from typing import Any

import torch

from basedbench import kernels
from basedbench.kernels import row_linear_triton
from tests.kernels.compiled.compile_variants import TOOL, pretend
from tests.kernels.compiled.sass import stack_bytes, unwritten_reads

BATCH, WIDTH = 2, 512


def calls() -> None:
    """Each kernel once, in bf16."""
    ahead = _of(WIDTH, WIDTH)
    kernels.add_layer_norm(_of(BATCH, WIDTH), _wide(BATCH, WIDTH), _of(WIDTH), center=False, ahead=ahead)
    kernels.swiglu(_of(BATCH, 2 * WIDTH), ahead=ahead)
    kernels.conv_gate_step(_of(BATCH, 2 * WIDTH), _of(WIDTH, 3), None, _of(BATCH, WIDTH, 2), ahead=ahead)
    kernels.short_conv_step(_of(BATCH, WIDTH), _of(WIDTH, 4), _of(WIDTH), _of(BATCH, WIDTH, 3), ahead=ahead)
    qkv = _of(BATCH, 8, 16), _of(BATCH, 8, 16), _of(BATCH, 8, 64)
    kernels.taylor_attention_step(*qkv, _wide(BATCH, 8, 153, 65), ahead=ahead)
    cache = _of(BATCH, 128, 8, 112), _of(BATCH, 128, 8, 112), torch.zeros(BATCH, dtype=torch.int32)
    head = _of(BATCH, 8, 112)
    kernels.sliding_window_step(head, head, head, *cache, count=False, ahead=ahead)
    kernels.attention_decode(head, head, head, *cache, ahead=ahead)
    inputs, kept = (_of(BATCH, WIDTH), _of(BATCH, WIDTH), _wide(WIDTH, 16)), _wide(BATCH, WIDTH, 16)
    kernels.selective_scan_step(*inputs, _of(BATCH, 16), _of(BATCH, 16), kept, ahead=ahead)
    group = _of(BATCH, 1, 128)
    kernels.ssd_step(_of(BATCH, 8, 64), _of(BATCH, 8), _wide(8), group, group, _wide(BATCH, 8, 64, 128), ahead=ahead)
    for gated, tiles in ((True, {}), (False, {"outputs": 128, "split": 2, "warps": 8}), (False, {"outputs": 32})):
        row_linear_triton.row_linear(_of(128, WIDTH), ahead, None, gated, ahead=ahead, **tiles)


def _of(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def _wide(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def examined(name: str, kernel: Any) -> dict[str, Any]:
    """What the machine code says."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [TOOL, "-res-usage", "-sass", file.name]
        dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    first = {word: re.search(rf"\b(?:{pattern})\b", dump) for word, pattern in PATTERNS.items()}
    return {
        "kernel": name,
        "early": kernel.metadata.launch_pdl,
        "stack": stack_bytes(dump),
        "suspicions": [str(one) for one in unwritten_reads(dump)],
        **{word: match and match.start() for word, match in first.items()},
    }


PATTERNS = {"request": "UBLKPF", "wait": "ACQBULK", "access": "LDG|STG|LDGSTS|ATOMG|RED|UTMALDG"}

if __name__ == "__main__":
    compiled = pretend()
    torch.set_num_threads(1)
    with torch.no_grad():
        calls()
    for found in compiled.values():
        print(json.dumps(examined(*found)), flush=True)
