"""Every memory access of an interpreted Triton kernel, checked.

Triton's interpreter runs a launch's programs one after another on the host's memory, so that a kernel may read beyond
its tensors, or see what another program has just written, without any sign of it; on a GPU the first is an illegal
access, one day, and the second a race. While `guarded()` is open each access must

- lie within a tensor that the launch was given, from the first to the last element of that view;
- not touch what another program of the same launch has written, nor write what another one has read.

Atomic operations are exempt from the second rule against each other, and order what stands before and behind them: a
program may read what another one wrote that has done one earlier. `torch.empty` and its like hold NaN (integers:
their largest value), so that what a kernel reads before anything wrote it shows.
"""

# mypy: allow-untyped-defs

import contextlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor
from triton.runtime import interpreter

NOBODY, SEVERAL = -1, -2
# What two programs may not do to one place, in either order.
CLASHES = {"read": {"write"}, "atomic": {"read", "write"}, "write": {"read", "write", "atomic"}}
# Those told of each launch, program and access, and of waits for the kernel in front (watched_dependents.py).
watchers: list[Any] = []
WATCHER = str(Path(__file__).with_name("watched_dependents.py"))
PASSED_OVER = (__file__, WATCHER, str(Path(triton.__file__).parent))  # where no line of a kernel stands


class Region:
    """The bytes of one tensor or of several that overlap, and which programs of the launch have touched them."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self._owners: dict[str, np.ndarray] = {}

    def note(self, offsets: np.ndarray, program: int, kind: str, before: set[int]) -> tuple[int, str] | None:
        """Remember who did `kind` to the elements at `offsets`; the program and its deed that this clashes with.

        What programs in `before` did is over.
        """
        for other in CLASHES[kind] & self._owners.keys():
            met = self._owners[other][offsets]
            met = met[(met != NOBODY) & (met != program) & ~np.isin(met, list(before))]
            if met.size:
                return int(met[0]), other
        owners = self._owners.setdefault(kind, np.full(self.stop - self.start, NOBODY, np.int32))
        known = owners[offsets]
        owners[offsets] = np.where((known == NOBODY) | (known == program), program, SEVERAL)
        return None


class Launch:
    """A launch under way: what it may touch, and what has been touched so far."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.regions: list[Region] = []
        for start, stop in sorted(extent(tensor) for tensor in tensors if tensor.numel()):
            if self.regions and start < self.regions[-1].stop:
                self.regions[-1].stop = max(stop, self.regions[-1].stop)
            else:
                self.regions.append(Region(start, stop))
        self.starts = np.array([region.start for region in self.regions], np.int64)
        self.program = 0
        self.ordered: dict[int, set[int]] = {}  # programs that have done an atomic operation: those that did before

    def access(self, pointers: np.ndarray, mask: np.ndarray, size: int, kind: str) -> None:
        """Check the places where `mask` is true, `size` bytes each, and note who was there."""
        if kind == "atomic":
            self.ordered[self.program] = set(self.ordered) - {self.program}
        before = self.ordered.get(self.program, set())
        places = np.unique(np.broadcast_to(pointers, np.broadcast(pointers, mask).shape)[mask != 0].astype(np.int64))
        for watcher in watchers:
            watcher.touched(places, kind)
        while places.size:
            index = int(np.searchsorted(self.starts, places[0], side="right")) - 1
            count = 0
            if index >= 0:
                region = self.regions[index]
                count = int(np.searchsorted(places, region.stop - size, side="right"))
            if not count:
                raise AssertionError(f"{where()}: {kind} of {size} bytes {self._beyond(int(places[0]))}")
            clash = region.note(places[:count] - region.start, self.program, kind, before)
            if clash is not None:
                other = "several programs" if clash[0] == SEVERAL else f"program {clash[0]}"
                raise AssertionError(f"{where()}: {kind} by program {self.program} of what {other} did a {clash[1]} to")
            places = places[count:]

    def _beyond(self, place: int) -> str:
        if not self.regions:
            return "in a launch without tensors"
        nearest = min(self.regions, key=lambda region: max(region.start - place, place - region.stop))
        side = f"{nearest.start - place} before" if place < nearest.start else f"{place - nearest.start} from the start"
        return f"out of bounds, {side} of a tensor of {nearest.stop - nearest.start} bytes (program {self.program})"


def extent(tensor: Tensor) -> tuple[int, int]:
    """The addresses from the first to behind the last element of a view."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def where() -> str:
    """The kernel's line that is being interpreted."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PASSED_OVER):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"


def tensors_of(arguments: Any) -> Iterator[Tensor]:
    """All tensors among a launch's arguments, tuples opened."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, tuple):
            yield from tensors_of(argument)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Check every launch inside. Only where Triton interprets (TRITON_INTERPRET=1)."""
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    launches: list[Launch] = [Launch([])]
    was_deterministic = torch.are_deterministic_algorithms_enabled()

    def hosted(self, arguments, options):
        found = original["hosted"](self, arguments, options)
        launches[0] = Launch(tensors_of([*found[0], *found[1].values()]))
        for watcher in watchers:
            watcher.launched(early=found[1].get("EARLY", False))
        return found

    def at(self, x, y, z):
        _, ny, nz = self.grid_dim
        launches[0].program = (x * ny + y) * nz + z
        for watcher in watchers:
            watcher.began(launches[0].program)
        return original["at"](self, x, y, z)

    def load(self, pointers, mask, *rest):
        launches[0].access(pointers.data, mask.data, width(pointers), "read")
        return original["load"](self, pointers, mask, *rest)

    def store(self, pointers, value, mask, *rest):
        launches[0].access(pointers.data, mask.data, width(pointers), "write")
        return original["store"](self, pointers, value, mask, *rest)

    def update(self, operation, pointers, value, mask, *rest):
        launches[0].access(pointers.data, mask.data, width(pointers), "atomic")
        return original["update"](self, operation, pointers, value, mask, *rest)

    def exchange(self, pointers, *rest):
        launches[0].access(pointers.data, np.ones_like(pointers.data, bool), width(pointers), "atomic")
        return original["exchange"](self, pointers, *rest)

    places = {
        "hosted": (executor, "_init_args_hst", hosted), "at": (builder, "set_grid_idx", at),
        "load": (builder, "create_masked_load", load), "store": (builder, "create_masked_store", store),
        "update": (builder, "create_atomic_rmw", update), "exchange": (builder, "create_atomic_cas", exchange),
    }  # fmt: skip
    original = {key: getattr(owner, name) for key, (owner, name, _) in places.items()}
    for owner, name, replacement in places.values():
        setattr(owner, name, replacement)
    torch.use_deterministic_algorithms(True, warn_only=True)  # new tensors are filled
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
        for key, (owner, name, _) in places.items():
            setattr(owner, name, original[key])


def width(pointers) -> int:
    """Bytes of an element behind pointers."""
    return max(1, pointers.get_element_ty().primitive_bitwidth // 8)
