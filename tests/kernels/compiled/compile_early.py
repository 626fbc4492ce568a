"""Compile the kernels of a decode step as a model launches them; print what their code does.

    python -m tests.kernels.compiled.compile_early

A JSON line for each: the kernel, how it is launched, its stack, what is suspicious about it, and the positions of its
first bulk copy, its wait for the kernel before it, and its first other access to global memory.
"""

import json
import re
import subprocess
import tempfile
from typing import Any

import torch

from basedbench import kernels
from basedbench.kernels import row_linear_launch
from basedbench.kernels.dependent_launch import dependent_launches
from tests.kernels.compiled.compile_variants import TOOL, pretend
from tests.kernels.compiled.sass import stack_bytes, unwritten_reads

BATCH, WIDTH = 2, 512
PRODUCTS = [(True, False, 128, 2), (True, False, 64, 1), (False, True, 128, 8), (False, False, 64, 3)]
PATTERNS = {"copy": "UTMALDG", "wait": "ACQBULK", "access": "LDG|STG|LDGSTS|ATOMG|RED"}


def calls() -> None:
    """Each kernel once, in bf16."""
    kernels.add_layer_norm(_of(BATCH, WIDTH), _wide(BATCH, WIDTH), _of(WIDTH), center=False)
    kernels.add_norm_of_parts(_wide(8, BATCH, WIDTH), _wide(BATCH, WIDTH), _of(WIDTH), dtype=torch.bfloat16)
    kernels.swiglu(_of(BATCH, 2 * WIDTH))
    kernels.row_argmax(_of(BATCH, 50264))
    kernels.conv_gate_step(_of(BATCH, 2 * WIDTH), _of(WIDTH, 3), None, _of(BATCH, WIDTH, 2))
    kernels.short_conv_step(_of(BATCH, WIDTH), _of(WIDTH, 4), _of(WIDTH), _of(BATCH, WIDTH, 3))
    qkv = _of(BATCH, 8, 16), _of(BATCH, 8, 16), _of(BATCH, 8, 64)
    kernels.taylor_attention_step(*qkv, _wide(BATCH, 8, 153, 65))
    cache = _of(BATCH, 128, 8, 112), _of(BATCH, 128, 8, 112), torch.zeros(BATCH, dtype=torch.int32)
    head = _of(BATCH, 8, 112)
    kernels.sliding_window_step(head, head, head, *cache, count=False)
    kernels.attention_decode(head, head, head, *cache)
    kernels.cache_append(head, head, head, *cache)
    inputs, kept = (_of(BATCH, WIDTH), _of(BATCH, WIDTH), _wide(WIDTH, 16)), _wide(BATCH, WIDTH, 16)
    kernels.selective_scan_step(*inputs, _of(BATCH, 16), _of(BATCH, 16), kept)
    group = _of(BATCH, 1, 128)
    kernels.ssd_step(_of(BATCH, 8, 64), _of(BATCH, 8), _wide(8), group, group, _wide(BATCH, 8, 64, 128))
    for rows in (1, 128):
        for gated, parts, tile, split in PRODUCTS:
            bias = None if gated else _of(WIDTH)
            row_linear_launch.operator(_of(rows, WIDTH), _of(WIDTH, WIDTH), bias, gated, parts, tile, split, 4)


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


if __name__ == "__main__":
    compiled = pretend()
    torch.set_num_threads(1)
    with torch.no_grad(), dependent_launches():
        calls()
    for found in compiled.values():
        print(json.dumps(examined(*found)), flush=True)
