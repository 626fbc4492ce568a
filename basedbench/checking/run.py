"""All problems on one device, in worker processes: a lost CUDA context or a crash costs one row, not the table.

Most of the time on a GPU is compilation. Problems that share kernels (one operator, dtype and shape, over modes and
lengths) go to one worker, so that no two compile the same at once.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

from basedbench.checking.problems import Problem
from basedbench.config.throughput import MeasureSection
from basedbench.timing.failures import classify
from basedbench.timing.worker import Failure, Worker

Row = dict[str, Any]
Listener = Callable[[Row], None]
Numbered = list[tuple[int, Problem]]
LIMIT_S = 300.0  # for one problem, compilation included
_BLANK: Row = {"implementation": None, "error": None, "bound": None, "verdict": "failed", "reason": None}
FAILURES = ("WRONG", "failed")


class Attempt:
    """One problem inside a worker process."""

    def __init__(self, problem: Problem, device: str) -> None:
        self.problem, self.device = problem, device

    def prepare(self) -> Row:
        """The row's verdict. Whatever the implementation raises is a verdict too; `lost` if the device went with it."""
        from basedbench.checking.contender import check_contender
        from basedbench.checking.kernel import check_kernel

        try:
            return (check_contender if self.problem.contender else check_kernel)(self.problem, self.device)
        except BaseException as error:
            status, reason = classify(error)
            row = {"verdict": "failed", "reason": f"{status}: {reason}"}
        return row | {"lost": not _alive(self.device)}


def set_up(device: str, plugins: Sequence[str]) -> Callable[..., Attempt]:
    """What a worker does first: one thread each on a CPU, the device, the user's contenders."""
    import torch

    from basedbench.engines.kernel_keys import make_alike
    from basedbench.plugins import load_plugins

    if device == "cpu":
        torch.set_num_threads(1)
    else:
        make_alike()
        torch.cuda.set_device(device)
    load_plugins(plugins)
    return lambda problem, _: Attempt(problem, device)


def run_checks(
    problems: Sequence[Problem], device: str, plugins: Sequence[str], jobs: int, listener: Listener
) -> list[Row]:
    """A row for every problem, in their order. Workers take the next problems as they get free.

    KeyboardInterrupt ends the workers; the listener was told of every row there is by then, and is of no other.
    """
    rows: dict[int, Row] = {}
    hung: set[str] = set()  # contenders of the user's that did not answer; each further problem would take as long
    waiting, stopped = deque(kin(problems)), Event()
    while waiting:  # a worker that is lost leaves its thread; the rest goes on, and new ones start here
        workers = [Worker(device, plugins, set_up) for _ in range(min(jobs, len(waiting)))]
        with ThreadPoolExecutor(len(workers)) as pool:
            try:
                for done in [pool.submit(_work, worker, waiting, rows, hung, listener, stopped) for worker in workers]:
                    done.result()
            except BaseException:
                stopped.set()  # a worker that is ended now says nothing of its problem
                raise
            finally:
                for worker in workers:
                    worker.stop()
    return [rows[index] for index in range(len(problems))]


def kin(problems: Sequence[Problem]) -> list[Numbered]:
    """The problems with their numbers, those that share kernels together; the most first, to end at the same time."""
    found: dict[tuple[Any, ...], Numbered] = {}
    for index, one in enumerate(problems):
        found.setdefault((one.operator, one.contender, one.dtype, one.shape), []).append((index, one))
    return sorted(found.values(), key=len, reverse=True)


def _work(
    worker: Worker,
    waiting: "deque[Numbered]",
    rows: dict[int, Row],
    hung: set[str],
    listener: Listener,
    stopped: Event,
) -> None:
    while not stopped.is_set():
        try:
            todo = waiting.popleft()
        except IndexError:
            return
        for done, (index, problem) in enumerate(todo, 1):
            row, lost = _checked(worker, problem, hung)
            if stopped.is_set():
                return
            rows[index] = row
            listener(row)
            if lost:
                if left := todo[done:]:
                    waiting.appendleft(left)
                return


def _checked(worker: Worker, problem: Problem, hung: set[str]) -> tuple[Row, bool]:
    """A problem's row, and whether the worker is lost."""
    if problem.contender in hung:
        reason = f"{problem.contender} gave no answer to another problem within {LIMIT_S:g} s"
        return _BLANK | _facts(problem) | {"verdict": "skipped", "reason": reason, "seconds": 0.0}, False
    started = time.monotonic()
    answer = worker.prepare(problem, MeasureSection(timeout=LIMIT_S))
    found = {"reason": f"{answer.status}: {answer.reason}"} if isinstance(answer, Failure) else dict(answer)
    if isinstance(answer, Failure) and answer.status == "timeout" and problem.contender:
        hung.add(problem.contender)
    lost = bool(found.pop("lost", isinstance(answer, Failure)))
    return _BLANK | _facts(problem) | found | {"seconds": time.monotonic() - started}, lost


def _facts(problem: Problem) -> Row:
    return {
        "label": problem.label,
        "operator": problem.operator,
        "implementation": problem.contender,
        "mode": problem.mode,
        "dtype": problem.dtype,
        "length": problem.length,
        "shape": problem.shape,
    }


def _alive(device: str) -> bool:
    """Whether the device still computes: after an illegal access everything in this process fails."""
    import torch

    try:
        return float(torch.ones(1, device=device).sum()) == 1.0
    except RuntimeError:
        return False
