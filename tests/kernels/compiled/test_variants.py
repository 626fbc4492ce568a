"""Every Triton kernel in use, compiled for an H200 without one: no wrong code, no large spills."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from basedbench.checking.problems import COVERAGE

ROOT = Path(__file__).parents[3]
# Bytes of stack, where registers go that do not fit. A few beside a loop cost nothing that can be measured. Products in
# three parts of tf32, which fp32 and fp16 take, hold each operand three times: they are not what is timed.
STACK_LIMITS = {"bf16": 128, "fp16": 2048, "fp32": 2048}
SHARED_LIMIT = 232448  # bytes that one program can have on Hopper: beyond it the launch fails
# Kernels known to need more: work left to do (docs/log/ssd.md, docs/log/taylor_attention.md, docs/log/mixers.md). A
# larger number here is a regression unless it was measured to be faster.
KNOWN_STACKS = {
    ("ssd", "gradient_kernel", "bf16"): 632,
    ("ssd", "output_kernel", "bf16"): 216,
    ("ssd", "gradient_kernel", "fp32"): 9304,
    ("ssd", "output_kernel", "fp32"): 2672,
    ("delta_rule", "stacked_gradient_kernel", "bf16"): 496,  # decays of channels
    ("delta_rule", "scores_kernel", "bf16"): 248,  # this and the next: chunks with strong decays of channels, few
    ("delta_rule", "gradient_kernel", "bf16"): 608,
    ("shared_delta_rule", "stacked_gradient_kernel", "bf16"): 496,
    ("shared_delta_rule", "scores_kernel", "bf16"): 176,
    ("shared_delta_rule", "gradient_kernel", "bf16"): 656,
    ("layer_delta_rule", "channel_gradient_kernel", "bf16"): 488,
    ("layer_delta_rule", "strong_gradient_kernel", "bf16"): 256,  # as of delta_rule: few chunks
    ("implicit_filter", "network_gradient_kernel", "bf16"): 192,  # sines of large arguments have a table there
    ("linear_cross_entropy", "lce_bounded_kernel", "bf16"): 200,  # none in its loop: where it starts again
    ("linear_attention", "block_kernel", "bf16"): 144,  # the gradient of 256 features at once, its mean by its own sums
    ("sliding_window", "_key_value_gradient", "bf16"): 160,  # heads of 70, as 128 wide
}
# Sweeps whose products run beside each other and beside other work, at most one wait for four of them: one instruction
# too many and the assembler puts them all in series.
SWEEPS = {
    "taylor_attention": ("serial_kernel", "query_gradient_kernel", "key_gradient_kernel", "value_sweep_kernel"),
    "linear_cross_entropy": ("lce_pairs_kernel", "lce_slope_pairs_kernel"),
}
# Processes to compile in: each imports torch anew.
PARTS = 4
# All that there is takes as long as all other tests together: `make machine-code`, after a change of a kernel.
thoroughly = pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["usual", "every"]
)


def disassembler() -> Path | None:
    """Where Triton's wheel has the tools that read machine code."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "backends" / "nvidia" / "bin"
    return path if all((path / tool).exists() for tool in ("cuobjdump", "nvdisasm")) else None


def compiled(module: str, *arguments: str, every: bool = False) -> list[dict[str, Any]]:
    """What a module of this folder prints, run in a process of its own."""
    arguments += ("--every",) if every else ()
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(disassembler() is None, reason="this Triton comes without a disassembler")
@pytest.mark.parametrize("operators", [list(COVERAGE)[part::PARTS] for part in range(PARTS)], ids=" ".join)
@thoroughly
def test_machine_code(operators: list[str], every: bool) -> None:
    found = compiled("tests.kernels.compiled.compile_variants", *operators, every=every)
    failed = [f"{one['problem']}: {one['failed']}" for one in found if "failed" in one]
    assert not failed, "\n".join(failed)
    wrong = [f"{one['problem']}: {text}" for one in found for text in one["suspicions"]]
    assert not wrong, "the assembler made wrong code, these variants must not be used:\n" + "\n".join(wrong)
    large = [
        f"{one['problem']}: {one['kernel']} {one['shared']} bytes" for one in found if one["shared"] > SHARED_LIMIT
    ]
    assert not large, "more shared memory than there is:\n" + "\n".join(large)
    serial = [
        f"{one['problem']}: {one['kernel']}"
        for one in found
        if one["kernel"] in SWEEPS.get(one["problem"].partition(" ")[0], ()) and one["waits"] > 0.25
    ]
    assert not serial, "products in series:\n" + "\n".join(serial)
    spilling = [f"{one['problem']}: {one['kernel']} {one['stack']} bytes" for one in found if _spills(one)]
    assert not spilling, f"more stack than {STACK_LIMITS} bytes and {KNOWN_STACKS}:\n" + "\n".join(spilling)


def _spills(one: dict[str, Any]) -> bool:
    operator = one["problem"].partition(" ")[0]
    known = KNOWN_STACKS.get((operator, one["kernel"], one["dtype"]), 0)
    return bool(one["stack"] > max(known, STACK_LIMITS[one["dtype"]]))
