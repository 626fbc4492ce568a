"""Which cases are called before any is timed: by helpers, by kinds that may share a kernel, or by their own workers."""

from collections.abc import Iterable, Sequence
from typing import Any

from basedbench.config.models import ModelCase
from basedbench.config.throughput import AnyCase
from basedbench.contenders.costs import bytes_of, flops_of
from basedbench.contenders.sdpa import BACKENDS
from basedbench.timing.beside import only_launches

# Whole models are left out too: few and large.
NOTHING_TO_COMPILE = ("reference", "torch", *(backend.name for backend in BACKENDS if backend.name != "sdpa-cudnn"))
# What these call in company is what they call alone: nothing is tuned by timing, so nothing tuned is kept.
NOTHING_TO_TUNE = ("ours", "fla-parallel", "fla-fused-chunk", "sdpa-cudnn", *NOTHING_TO_COMPILE)
# cuDNN compiles for a second, once for all shapes of a kind, what the driver keeps on disk.
ONCE_A_KIND = ("sdpa-cudnn",)
# Larger cases are checked in their turn: the device is what they wait for, and their memory may not suffice for two.
MOST_FLOPS, MOST_BYTES = 1e12, 2**29
FEWEST = 3  # below that, starting the processes takes longer
# A helper takes about as long to come up as two kernels to compile. What workers may compile, who are there anyway and
# compile several at once, is worth fewer helpers.
KINDS_EACH, KINDS_EACH_BESIDE_OWN = 2, 16


def kinds(cases: Iterable[AnyCase]) -> list[list[AnyCase]]:
    """Cases that may share a compiled kernel, together and in their order: all but batch and length is the same.

    Where each kernel has dozens of configurations to be compiled, a backward pass and its forward are one kind, too.
    What takes longest to compile comes first: peers, which tune, and backward passes.
    """
    found: dict[str, list[AnyCase]] = {}
    for case in cases:
        mode = "" if only_compiled(case) else case.mode
        found.setdefault(repr((case.implementation, mode, case.dtype, case.shape)), []).append(case)
    return sorted(found.values(), key=lambda part: (not _tunes(part[0]), all(case.mode != "fwd_bwd" for case in part)))


def only_compiled(case: AnyCase) -> bool:
    """Whether a helper only compiles a case: a call would tune beside others, and that has to be done again alone."""
    return _tunes(case) and only_launches(case)


def to_rehearse(cases: Iterable[AnyCase]) -> list[AnyCase]:
    """The cases whose implementations may have something to compile, the largest last: they need the most memory."""
    found = [case for case in cases if not isinstance(case, ModelCase) and case.contender not in NOTHING_TO_COMPILE]
    found.sort(key=lambda case: case.batch * case.length)
    first = {part[0].id for part in kinds(found)}
    return [case for case in found if case.contender not in ONCE_A_KIND or case.id in first]


def by_their_own(cases: Iterable[AnyCase]) -> list[AnyCase]:
    """The cases that the workers that will time them may call and check beforehand."""
    return [case for case in cases if not _tunes(case) and _small(case)]


def first_of_modes(cases: Iterable[AnyCase]) -> list[AnyCase]:
    """An operator's case of every implementation and mode: what these import is the same for all of their cases."""
    first: dict[tuple[Any, ...], AnyCase] = {}
    for case in cases:
        if not isinstance(case, ModelCase):
            first.setdefault((case.implementation, case.mode), case)
    return list(first.values())


def processes_for(cases: Sequence[AnyCase], most: int) -> int:
    """How many helpers are worth starting for these cases."""
    shares = [1 / (KINDS_EACH if _takes_long(part[0]) else KINDS_EACH_BESIDE_OWN) for part in kinds(cases)]
    return min(most, -int(-sum(shares) // 1))


def _tunes(case: AnyCase) -> bool:
    return case.contender not in NOTHING_TO_TUNE


def _takes_long(case: AnyCase) -> bool:
    """Whether the worker that will time a case had better not call all of its kinds."""
    return _tunes(case) or case.contender in ONCE_A_KIND


def _small(case: AnyCase) -> bool:
    if isinstance(case, ModelCase):
        return False
    return flops_of(case) <= MOST_FLOPS and bytes_of(case) <= MOST_BYTES
