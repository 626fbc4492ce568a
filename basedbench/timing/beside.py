"""The kernels of a call, compiled beside each other: a backward pass has several, and each takes up to a second.

The call is made once with launches that only note what they were given: what it computes then is garbage, but what it
would launch is known. Threads compile that, one kernel each, and load it. Triton's compiler and the tools that it calls
leave Python to the others meanwhile.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from basedbench.config.throughput import AnyCase
from basedbench.timing.subject import Subject
from basedbench.timing.timeline import noted

Launch = Callable[[], Any]
MOST_THREADS = 8


def compile_ahead(subject: Subject, case: AnyCase, device: str) -> None:
    """What a case launches, if its kernels are ours and compiled at all; to be called as `start` would be."""
    if device == "cpu" or case.contender != "ours":
        return

    def first() -> None:
        with subject.context():
            subject.load()
            subject.start()

    compile_beside(first, device)


def compile_beside(call: Callable[[], object], device: str) -> None:
    """Compile what a call to kernels of ours launches; what fails here fails again when it is really launched.

    Not for kernels that are tuned: nothing runs that could be timed.
    """
    found = _launches_of(call)
    if sum(map(len, found)) < 2:
        return
    with (
        noted(f"{len(found)} kernels"),
        ThreadPoolExecutor(MOST_THREADS, initializer=partial(_enter, device)) as threads,
    ):
        list(threads.map(_compile, found))


def _launches_of(call: Callable[[], object]) -> list[list[Launch]]:
    """What would be launched, as compilations to be made, by kernel."""
    from triton.runtime.jit import JITFunction

    launch, found = JITFunction.run, dict[int, list[Launch]]()

    def keep(self: Any, *arguments: Any, **options: Any) -> None:
        found.setdefault(id(self), []).append(partial(launch, self, *arguments, **options | {"warmup": True}))

    JITFunction.run = keep  # type: ignore[method-assign]
    try:
        with suppress(Exception):
            call()
    finally:
        JITFunction.run = launch  # type: ignore[method-assign]
    return list(found.values())


def _enter(device: str) -> None:
    """A thread has a current device of its own."""
    import torch

    if device != "cpu":
        torch.cuda.set_device(device)


def _compile(launches: list[Launch]) -> None:
    """All variants of one kernel, and what launches each."""
    for launch in launches:
        with suppress(Exception):
            _ = launch().run
