"""Compiling kernels for the runs to come, in processes beside the one that trains.

Triton keeps what it compiled on disk, for every process. A worker that trains compiles one kernel after the other while
its device waits; these processes take one run of every model through each kind of step once, on the machine's other
cores, each with threads that compile a step's kernels side by side. Of the first model, which a worker begins with at
once, they thus have most kernels before the worker comes to them. What fails here fails again in the run itself, which
then says so.
"""

import os
import signal
from collections.abc import Sequence
from functools import partial
from itertools import chain, zip_longest
from multiprocessing.process import BaseProcess
from typing import Any

from basedbench.forking import start_training
from basedbench.training.cases import RecallCase

MOST_PROCESSES = 12
NICE = 10  # the worker's turn to enqueue comes first
READ_BY_PYTORCH = ("take_batch_kernel",)  # its tokens and positions index tables
MEMORY_EACH = 6 * 2**30  # bytes of the device: a CUDA context, the data, and the activations of the widest steps


def distinct_models(cases: Sequence[RecallCase]) -> list[RecallCase]:
    """The first case of every model: learning rates and seeds need no kernels of their own."""
    models: dict[str, RecallCase] = {}
    for case in cases:
        meaning = {name: value for name, value in case.meaning().items() if name not in ("learning_rate", "seed")}
        models.setdefault(repr(meaning), case)
    return list(models.values())


def most_processes(device: str, cores: int) -> int:
    """How many processes may compile side by side: two cores are left, and the device's free memory is shared."""
    return max(0, min(cores - 2, MOST_PROCESSES, _free_memory(device) // MEMORY_EACH))


def seats(devices: Sequence[str], cores: int) -> list[str]:
    """The device of each process: one after the other, while it has memory; a core is left to each one's worker."""
    rooms = [[device] * most_processes(device, cores) for device in devices]
    in_turn = [device for device in chain.from_iterable(zip_longest(*rooms)) if device]
    return in_turn[: max(0, cores - 1 - len(devices))]


def compile_ahead(
    cases: Sequence[RecallCase], devices: Sequence[str], cores: int, plugins: Sequence[str] = ()
) -> list[BaseProcess]:
    """Start the processes for all models. Not for CPUs."""
    models = distinct_models(cases)
    places = seats(devices, cores)[: len(models)]
    return [
        start_training(device, rehearse, (models[index :: len(places)], device, tuple(plugins)))
        for index, device in enumerate(places)
    ]


def rehearse(cases: Sequence[RecallCase], device: str, plugins: Sequence[str]) -> None:
    """The body of such a process: every kind of step of every case once."""
    import torch

    from basedbench.engines import determinism, kernel_keys
    from basedbench.engines.worker import set_precision
    from basedbench.plugins import load_plugins
    from basedbench.timing.beside import compile_beside
    from basedbench.timing.waking import open_device
    from basedbench.training.data import recall_data
    from basedbench.training.run import RecallRun

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    determinism.obey()
    if device != "cpu":
        if hasattr(os, "nice"):
            os.nice(NICE)
        kernel_keys.make_alike()
        open_device(device)
    load_plugins(plugins)
    before = (partial(compile_beside, device=device, launched=READ_BY_PYTORCH),) if device != "cpu" else ()
    for case in cases:
        set_precision(case.train.precision)
        try:
            RecallRun(case, recall_data(case, device), device).rehearse(*before)
        except Exception:
            continue


def _free_memory(device: str) -> int:
    """Bytes, asked of the driver: PyTorch would make a CUDA context in this process. 0 where nothing answers."""
    import pynvml

    index = int(device.partition(":")[2] or 0)
    shown = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    name = shown[index] if index < len(shown) else str(index)  # NVML counts the cards that are hidden from us, too
    by_name = pynvml.nvmlDeviceGetHandleByUUID
    try:
        pynvml.nvmlInit()
        handle: Any = pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else by_name(name)
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
    except pynvml.NVMLError:
        return 0
