"""The first statement of a kernel that may be launched as a dependent of the one before it (dependent_launch.py)."""

# mypy: allow-untyped-defs

import triton
import triton.language as tl
from triton.language.extra import cuda as tl_cuda


@triton.jit
def depend(EARLY: tl.constexpr):
    """Let the next kernel start, and wait for the one before."""
    if EARLY:
        tl_cuda.gdc_launch_dependents()
        tl_cuda.gdc_wait()
