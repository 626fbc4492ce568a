"""Steps recorded as CUDA graphs, and results fetched without making the host wait.

A run replays each kind of step thousands of times. Recording it once removes the host's work for every kernel of it.
On a CPU `Recorder` calls the step itself, so that the trainer is one piece of code.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

# A step of a run: a method, and the two numbers that say which kind of it (segment or slice, batch size).
Step = Callable[[int, int], None]
Call = tuple[Step, int, int]


class Fetch:
    """A small tensor on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        self._event = torch.cuda.Event() if tensor.is_cuda else None
        if self._event is None:
            self._host = tensor.clone()
        else:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event.record()

    def ready(self) -> bool:
        """Whether `values` can be had without waiting."""
        return self._event is None or self._event.query()

    def values(self) -> list[float]:
        """The numbers; call it once `ready` is true."""
        return self._host.tolist()


class Recorder:
    """The recorded steps of one run, all in one memory pool, since a run's steps never overlap."""

    def __init__(self, device: torch.device, generator: torch.Generator) -> None:
        self.device, self.generator = device, generator
        self._graphs: dict[tuple[str, int, int], torch.cuda.CUDAGraph] = {}
        self._aranges: dict[int, Tensor] = {}
        self._constants: dict[tuple[float, int, torch.dtype], Tensor] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def arange(self, size: int) -> Tensor:
        """0 ... size-1 on the device, made once."""
        if size not in self._aranges:
            self._aranges[size] = torch.arange(size, device=self.device)
        return self._aranges[size]

    def constant(self, value: float, size: int, dtype: torch.dtype) -> Tensor:
        """`size` times `value` on the device, made once."""
        key = (value, size, dtype)
        if key not in self._constants:
            self._constants[key] = torch.full((size,), value, dtype=dtype, device=self.device)
        return self._constants[key]

    def play(self, step: Step, part: int, size: int) -> None:
        """Replay the recorded step; call it where nothing is recorded (CPU)."""
        graph = self._graphs.get((step.__name__, part, size))
        if graph is None:
            step(part, size)
        else:
            graph.replay()

    def fetch(self, tensor: Tensor) -> Fetch:
        """Start copying a small tensor to the host."""
        return Fetch(tensor)

    def record(
        self, steps: Sequence[Call], changed: Sequence[Tensor], before: Callable[[Step, int, int], None] | None = None
    ) -> Iterator[None]:
        """Record every step as a graph on the current stream. `changed` is all that the steps alter.

        `before` is called with each step that runs for real, and may alter the same.

        Each step runs once for real first, since libraries set themselves up on first use and that must not be
        recorded; what it altered is put back afterwards. A model's first steps load its kernels, or compile them:
        whoever drives this may do something else after each of them.
        """
        if self.device.type != "cuda":
            return
        saved = [tensor.detach().clone() for tensor in changed]
        state = self.generator.get_state()
        for step, part, size in steps:
            if before is not None:
                before(step, part, size)
            step(part, size)
            yield
        with torch.no_grad():
            torch._foreach_copy_([tensor.detach() for tensor in changed], saved)
        self.generator.set_state(state)
        for step, part, size in steps:
            with _without_collections():
                self._graphs[step.__name__, part, size] = self._recorded(step, part, size)
            yield

    def _recorded(self, step: Step, part: int, size: int) -> torch.cuda.CUDAGraph:
        """The step as a graph. PyTorch gives back what it only keeps for later, but in a recording not by itself."""
        with suppress(torch.OutOfMemoryError):
            return self._attempt(step, part, size)
        torch.cuda.empty_cache()
        return self._attempt(step, part, size)

    def _attempt(self, step: Step, part: int, size: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        # torch.cuda.graph() would synchronise the device and so stop the runs beside this one.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            step(part, size)
        except BaseException:
            with suppress(RuntimeError):  # "capture invalidated" would hide that memory ran out
                graph.capture_end()
            raise
        graph.capture_end()
        return graph


@contextmanager
def _without_collections() -> Iterator[None]:
    """A garbage collection inside a recording could free another pool's memory into it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
