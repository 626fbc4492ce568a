"""Processes forked from a server that has imported what they need and done nothing else: they start at once.

A GPU's context does not survive a fork, so the server has none, and each process makes its own.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver, get_all_start_methods, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from basedbench.signals import terminals_ignored

# What the server imports, and with it all that processes need: those that time, and those that train.
TIMING = ("basedbench.forked_timing",)
TRAINING = ("basedbench.forked_training",)
GRACE_S = 3.0  # from being told to end to being killed: a mixer's library may mind SIGTERM, or ignore it


def server_context(preloaded: Sequence[str]) -> Any:
    """How processes are started; the server that they are forked from is running when this returns.

    A terminal sends its signals to all processes: the server must not see them even while it imports torch, so it is
    started with these ignored. Ending workers is the near end's business.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    if threading.current_thread() is not threading.main_thread():
        return context  # the server runs: the first process was started from the main thread
    context.set_forkserver_preload(list(preloaded))
    with terminals_ignored():
        forkserver.ensure_running()
    return context


def start_server(preloaded: Sequence[str]) -> None:
    """Let the server import what workers need while this process does something else; not to be waited for."""
    server_context(preloaded)


def driver_is_there() -> bool:
    """Whether this machine may have a GPU, as far as can be told at once."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))


def training_forks(device: str) -> bool:
    """Whether processes that train on this device are forked; a CPU's libraries may mind that, but for Linux."""
    return sys.platform == "linux" if device == "cpu" else driver_is_there()


def start_training(device: str, target: Callable[..., object], arguments: Sequence[Any]) -> BaseProcess:
    """A process that trains, or helps to, started: by the server, or as a program of its own."""
    context = server_context(TRAINING) if training_forks(device) else get_context("spawn")
    process = context.Process(target=_enter, args=(dict(os.environ), target, tuple(arguments)), daemon=True)
    with terminals_ignored():
        process.start()
    return process  # type: ignore[no-any-return]


def _enter(environment: Mapping[str, str], target: Callable[..., object], arguments: Sequence[Any]) -> None:
    """A forked process has the environment of the time when the server began."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    end_with_parent()
    target(*arguments)


def end_with_parent() -> None:
    """From here on this process ends when the one that asked for it does, killed perhaps, whatever it is doing itself.

    Not by the system's signal for that: a forked process's own parent is the server.
    """
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def end(processes: Sequence[BaseProcess]) -> int:
    """End them all, by force if they do not in good time, or if this is interrupted; returns how many took force."""
    for process in processes:
        process.terminate()
    limit = time.monotonic() + GRACE_S
    try:
        for process in processes:
            process.join(max(0.0, limit - time.monotonic()))
    finally:
        stubborn = [process for process in processes if process.is_alive()]
        for process in stubborn:
            process.kill()
        for process in stubborn:
            process.join()
    return len(stubborn)
