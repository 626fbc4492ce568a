"""Compiling kernels for the runs to come, in processes beside the one that trains.

Triton keeps what it compiled on disk, for every process. A worker that trains compiles one kernel after the other while
its device waits; these processes take one run of every model through each kind of step once, on the machine's other
cores, each with threads that compile a step's kernels side by side. Models that come first have more of the processor.
A worker that comes to a model in hand here waits for it (`Rehearsed`): one thread of it would take longer, in which
the runs beside it had nothing to do. What fails here fails again in the run itself, which then says so.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain, count, zip_longest
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray

from basedbench.engines.memory import free_memory
from basedbench.forking import start_training
from basedbench.signals import ignore_terminals
from basedbench.training.cases import RecallCase

MOST_PROCESSES = 12
NICE, NICEST = 8, 19  # the worker's turn to enqueue comes first
READ_BY_PYTORCH = ("take_batch_kernel",)  # its tokens and positions index tables
MEMORY_EACH = 6 * 2**30  # bytes of the device: a CUDA context, the data, and the activations of the widest steps


TO_COME, IN_HAND, DONE = range(3)


def distinct_models(cases: Sequence[RecallCase]) -> list[RecallCase]:
    """The first case of every model."""
    models: dict[str, RecallCase] = {}
    for case in cases:
        models.setdefault(case.model_id, case)
    return list(models.values())


class Rehearsed:
    """How far each model is, for all processes: bytes in memory that they share."""

    def __init__(self, models: Sequence[RecallCase]) -> None:
        self._places = {case.model_id: place for place, case in enumerate(models)}
        self._states = RawArray("b", len(models))

    def set(self, case: RecallCase, state: int) -> None:
        """From here on."""
        self._states[self._places[case.model_id]] = state

    def awaited(self, case: RecallCase, *, busy: bool) -> bool:
        """Whether to wait for the kernels of a case; for a model that is still to come only with other runs `busy`."""
        place = self._places.get(case.model_id)
        return place is not None and self._states[place] in ((TO_COME, IN_HAND) if busy else (IN_HAND,))


class Ahead:
    """The processes for all models; none on CPUs, and where cores or memory do not suffice."""

    def __init__(
        self, cases: Sequence[RecallCase], devices: Sequence[str], cores: int, plugins: Sequence[str] = ()
    ) -> None:
        models = distinct_models(cases)
        self._places = seats(devices, cores)[: len(models)]
        self._plugins = tuple(plugins)
        self._shares = [models[index :: len(self._places)] for index in range(len(self._places))]
        self.rehearsed = Rehearsed(models if self._places else [])
        for own in self._shares:
            self.rehearsed.set(own[0], IN_HAND)
        self.processes: dict[BaseProcess, list[RecallCase]] = {}

    def start(self) -> None:
        """Begin; after the workers have, since the driver makes contexts one after the other, 0.3 s each.

        A model whose process cannot be started is compiled for by the worker itself.
        """
        for index, (device, own) in enumerate(zip(self._places, self._shares, strict=True)):
            arguments = (own, device, self._plugins, self.rehearsed, index, len(self._places))
            try:
                self.processes[start_training(device, rehearse, arguments)] = own
            except OSError:
                self._give_up(own)

    def settle(self) -> None:
        """What an ended process leaves nobody waits for."""
        for process in [process for process in self.processes if not process.is_alive()]:
            self._give_up(self.processes.pop(process))

    def _give_up(self, cases: Sequence[RecallCase]) -> None:
        for case in cases:
            self.rehearsed.set(case, DONE)


def most_processes(device: str, cores: int) -> int:
    """How many processes may compile side by side: two cores are left, and the device's free memory is shared."""
    return max(0, min(cores - 2, MOST_PROCESSES, (free_memory(device) or 0) // MEMORY_EACH))


def seats(devices: Sequence[str], cores: int) -> list[str]:
    """The device of each process: one after the other, while it has memory.

    A core is left to each device's worker, and each process has two: its threads keep them busy.
    """
    rooms = [[device] * most_processes(device, cores) for device in devices]
    in_turn = [device for device in chain.from_iterable(zip_longest(*rooms)) if device]
    return in_turn[: max(0, min(cores // 2, cores - 1 - len(devices)))]


def few_examples(case: RecallCase) -> RecallCase:
    """The case with one batch of each size that an epoch has: the same kinds of steps, and the same kernels.

    Kernels depend on whether a number is a multiple of 16, so the number of examples stays what it is beyond whole
    batches. A dozen processes that share a device would else make all of the data at the same time.
    """
    batch, segments = case.train.batch_size, case.train.segments
    few = [part.model_copy(update={"examples": _few(part.examples or 0, batch)}) for part in segments]
    return replace(case, train=case.train.model_copy(update={"segments": few}))


def _few(examples: int, batch: int) -> int:
    return min(examples, batch + examples % batch)


def rehearse(
    cases: Sequence[RecallCase],
    device: str,
    plugins: Sequence[str],
    rehearsed: Rehearsed | None = None,
    first: int = 0,
    apart: int = 1,
) -> None:
    """The body of such a process: every kind of step of every case once.

    `first` and `apart`: that many models come in the sweep before these, and from one of these to the next.
    """
    import torch

    from basedbench.engines import determinism, kernel_keys
    from basedbench.engines.worker import set_precision
    from basedbench.plugins import load_plugins
    from basedbench.timing.beside import compile_beside
    from basedbench.timing.timeline import noted
    from basedbench.timing.waking import open_device
    from basedbench.training.data import recall_data
    from basedbench.training.run import RecallRun

    ignore_terminals()
    torch.set_num_threads(1)
    determinism.obey()
    if device != "cpu":
        _yield_to_earlier(first)
        kernel_keys.make_alike()
        open_device(device)
    load_plugins(plugins)
    before = (partial(compile_beside, device=device, launched=READ_BY_PYTORCH),) if device != "cpu" else ()
    rehearsed = rehearsed or Rehearsed(cases)
    for case, rank in zip(cases, count(first, apart), strict=False):
        set_precision(case.train.precision)
        rehearsed.set(case, IN_HAND)
        if device != "cpu":
            _yield_to_earlier(rank)
        with noted(f"rehearsal of {case.label}"), suppress(BaseException):
            few = few_examples(case)
            RecallRun(few, recall_data(few, device), device).rehearse(*before)
        rehearsed.set(case, DONE)
        if device != "cpu":
            torch.cuda.empty_cache()  # the next model may be a small one


def _yield_to_earlier(rank: int) -> None:
    """Leave the processor to the worker, and to the models before this one."""
    if hasattr(os, "nice"):
        os.nice(max(0, min(NICEST, NICE + rank) - os.nice(0)))
