"""What a kernel does in order to be a dependent; the rules stand in dependents.py."""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # an older Triton, in which nothing is launched as a dependent
    gdc_launch_dependents = gdc_wait = None


@triton.jit
def follow(EARLY: tl.constexpr):
    """Let the kernel behind be launched, wait for the one in front; before this only weights and states are read."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
