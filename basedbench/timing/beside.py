"""The kernels of a call, compiled beside each other: a backward pass has several, and each takes up to a second.

The call is made once with launches that only note what they were given: what it computes then is garbage, but what it
would launch is known. Threads compile that, one kernel each, and load it; of a kernel that is tuned each takes one of
its dozens of configurations. Triton's compiler and the tools that it calls leave Python to the others meanwhile. What a
kernel was given is not held until then, only what Triton asks of it. A kernel that another process is compiling waits
until the others are done.

Garbage goes nowhere: the call has a subject of its own, with inputs and states that nobody else sees. So what is done
between kernels must not depend on what those wrote: no index is read from it (PyTorch would stop the device where one
is out of range), nothing waits for it, and nothing of it is kept in a module.
"""

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from functools import partial
from itertools import chain
from typing import Any, TypeGuard

import torch
from torch.utils._pytree import tree_map

from basedbench.config.models import ModelCase
from basedbench.config.throughput import AnyCase, Case
from basedbench.contenders.costs import bytes_of
from basedbench.locks import TakenError
from basedbench.timing.claims import claiming
from basedbench.timing.subject import subject_of
from basedbench.timing.timeline import noted
from basedbench.timing.tuning import every_choice

Launch = Callable[[], Any]
LAUNCHES_ALONE = ("ours", "fla-chunk", "fla-parallel", "fla-fused-chunk")  # of these contenders that is so
MOST_THREADS = 8
MOST_BYTES = 2**31  # that a call moves
SHORT = 1024  # tokens, from which on peers launch what they launch for longer ones


def compile_ahead(case: AnyCase, device: str) -> None:
    """What a case launches, if its kernels are compiled at all and nothing else is; what goes wrong is no matter.

    Not of large cases, for the processes that call ahead share the device's memory. A peer's are shortened: it has
    hundreds of configurations, chosen by widths alone, which would be compiled one after the other.
    """
    if device == "cpu" or not only_launches(case):
        return
    case = _shortened(case)
    if bytes_of(case) > MOST_BYTES:
        return

    def first() -> None:
        subject = subject_of(case, device)
        with torch.set_grad_enabled(subject.grad), subject.context():
            subject.load()
            subject.start()

    with suppress(Exception):
        compile_beside(first, device)


def only_launches(case: AnyCase) -> TypeGuard[Case]:
    """Whether all that a case needs compiled shows in a call for nothing. Not whole models: their loading checks."""
    return not isinstance(case, ModelCase) and case.contender in LAUNCHES_ALONE


def _shortened(case: Case) -> Case:
    while case.contender != "ours" and bytes_of(case) > MOST_BYTES and case.length >= 2 * SHORT:
        case = case.model_copy(update={"length": case.length // 2})
    return case


def compile_beside(call: Callable[[], object], device: str, launched: Collection[str] = ()) -> None:
    """Compile what a call launches; what fails here fails again when it is really launched.

    Kernels with the names `launched` are launched even so: those that write the indices that PyTorch reads.
    """
    found = _launches_of(call, launched)
    if not found:
        return
    if device != "cpu":
        _wake_driver()
    with (
        noted(f"{len(found)} kernels"),
        ThreadPoolExecutor(MOST_THREADS, initializer=partial(_enter, device)) as threads,
    ):
        elsewhere = chain.from_iterable(threads.map(_compile, found))
        list(threads.map(_compile_at_last, list(elsewhere)))


def _launches_of(call: Callable[[], object], launched: Collection[str]) -> list[list[Launch]]:
    """What would be launched, as compilations to be made, by kernel and configuration."""
    from triton.runtime.jit import JITFunction

    launch, found = JITFunction.run, dict[tuple[int, str], list[Launch]]()
    tuned: set[int] = set()

    def keep(self: Any, *arguments: Any, **options: Any) -> None:
        if getattr(self, "__name__", "") in launched:
            launch(self, *arguments, **options)
            return
        if choice.name:
            tuned.add(id(self))
        elif id(self) in tuned:
            return  # what was chosen is one of the configurations
        arguments, options = tree_map(_shadow, (arguments, options))
        one = partial(launch, self, *arguments, **options | {"warmup": True})
        found.setdefault((id(self), choice.name), []).append(one)

    JITFunction.run = keep  # type: ignore[method-assign]
    try:
        with every_choice() as choice, suppress(Exception):
            call()
    finally:
        JITFunction.run = launch  # type: ignore[method-assign]
    return list(found.values())


class Shadow:
    """What a kernel's variant depends on of a tensor that it is given, without holding its memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype, self._pointer = tensor.dtype, tensor.data_ptr()

    def data_ptr(self) -> int:
        """Where the tensor was; Triton asks whether that is a multiple of 16 bytes."""
        return self._pointer


def _shadow(given: Any) -> Any:
    """Tensors by their shadows, and those that descriptors describe."""
    if isinstance(given, torch.Tensor):
        return Shadow(given)
    if isinstance(getattr(given, "base", None), torch.Tensor):
        given = copy(given)
        given.base = Shadow(given.base)
    return given


def _wake_driver() -> None:
    """Triton makes its driver at first use; threads would make several."""
    from triton.runtime.driver import driver

    driver.active.get_current_device()


def _enter(device: str) -> None:
    """A thread has a current device of its own."""
    if device != "cpu":
        torch.cuda.set_device(device)


def _compile(launches: list[Launch]) -> list[Launch]:
    """All variants of one kernel, and what launches each; returned are those that other processes are compiling."""
    elsewhere: list[Launch] = []
    with claiming(patient=False):
        for launch in launches:
            try:
                _load(launch())
            except TakenError:
                elsewhere.append(launch)
            except Exception:
                pass
    return elsewhere


def _compile_at_last(launch: Launch) -> None:
    """A kernel that another process had in hand: found on disk, or compiled here if that process failed."""
    with suppress(Exception), claiming(patient=True):
        _load(launch())


def _load(kernel: Any) -> None:
    """Load a compiled kernel; one that cannot be has its launcher, but would be launched without its code."""
    try:
        _ = kernel.run
    except Exception:
        kernel._run = None
        raise
