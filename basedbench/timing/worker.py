"""Worker processes: one per implementation, so that a CUDA error, a crash or an endless compilation costs one case.

A worker prepares one case at a time and samples it round by round, as it is asked; between its rounds others have
theirs. The processes are forked from a server that has imported what they need and done nothing else: they start at
once, and each makes a GPU context of its own.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_all_start_methods, set_start_method
from pathlib import Path
from typing import Any

from basedbench.forking import TIMING, end_with_parent, server_context
from basedbench.signals import ignore_terminals, temporary_files
from basedbench.timing.failures import classify, crash, last_words
from basedbench.timing.oom_kills import oom_kills
from basedbench.timing.timeline import noted

START_LIMIT_S = 300.0
STOP_LIMIT_S = 2.0
LONGEST_WAIT_S = 1e6  # the system counts milliseconds in 32 bits
_LAST_WORDS = 2000


@dataclass(frozen=True)
class Failure:
    """Why a case has no time."""

    status: str
    reason: str


class Worker:
    """The near end of a worker process. Whether it is of further use after a failure, `failures.harmless` says.

    `set_up(device, plugins)`, called over there, gives what makes a session of `prepare`'s arguments.
    """

    def __init__(self, device: str, plugins: Sequence[str], set_up: Callable[..., Any] | None = None) -> None:
        context = server_context(TIMING)
        handle, self._log = tempfile.mkstemp(prefix="basedbench-worker-")
        os.close(handle)
        temporary_files.add(self._log)
        self._pipe, far = context.Pipe()
        self._kills_before = oom_kills()
        self._process = context.Process(
            target=serve, args=(far, device, tuple(plugins), self._log, set_up or _set_up), daemon=True
        )
        self._process.start()
        far.close()
        self._started = self._prepared = False
        self._refused: Failure | None = None  # the set-up over there

    def wait(self) -> Failure | None:
        """Until the process is up; why it is not, if so."""
        if not self._started and self._refused is None:
            greeting = self._answer(START_LIMIT_S)
            self._refused = greeting if isinstance(greeting, Failure) else None
            self._started = self._refused is None
        return self._refused

    def prepare(self, case: Any, measure: Any) -> dict[str, Any] | Failure:
        """`Session.prepare` over there."""
        self._prepared = True
        return self.ask("prepare", case, measure, limit_s=measure.timeout)

    def rehearse(self, case: Any, measure: Any) -> dict[str, Any] | Failure:
        """`Session.rehearse` over there."""
        return self.ask("rehearse", case, measure, limit_s=measure.timeout)

    def imports(self, case: Any) -> Failure | None:
        """`Session.imports` over there; what fails there fails again in the first call."""
        answer = self.ask("imports", case, None, limit_s=START_LIMIT_S)
        return answer if isinstance(answer, Failure) else None

    def round(self, limit_s: float) -> Any:
        """`Session.round` over there."""
        return self.ask("round", limit_s=limit_s)

    def close(self) -> dict[str, Any] | Failure:
        """`Session.close` over there: free the case's memory; the process stays for the next case."""
        return self.ask("close", limit_s=START_LIMIT_S) or {}

    def forget(self) -> Failure | None:
        """`Session.forget` over there, if there is anything to forget."""
        answer = self.ask("forget", limit_s=START_LIMIT_S) if self._prepared else None
        self._prepared = False
        return answer if isinstance(answer, Failure) else None

    def ceilings(self, request: "CeilingsRequest") -> list[dict[str, Any]] | Failure:
        """The rows of what the device can do, measured over there."""
        answer = self.ask("prepare", request, None, limit_s=START_LIMIT_S)
        return answer if isinstance(answer, Failure) else answer["rows"]

    def ask(self, what: str, *arguments: Any, limit_s: float) -> Any:
        """A method of the session over there: of the one of these arguments, or without any of the last one."""
        if refused := self.wait():
            return refused
        try:
            self._pipe.send((what, arguments))
        except OSError:
            return self._post_mortem()
        return self._answer(limit_s)

    def kill(self) -> None:
        """End the process, whatever it is doing; whoever waits for its answer gets a failure."""
        self._process.kill()

    def stop(self) -> None:
        """End the process and clean up behind it."""
        self.kill()
        self._process.join(STOP_LIMIT_S)
        self._pipe.close()
        Path(self._log).unlink(missing_ok=True)
        temporary_files.discard(self._log)

    def _answer(self, limit_s: float) -> Any:
        if not connection.wait([self._pipe, self._process.sentinel], min(limit_s, LONGEST_WAIT_S)):
            self._process.kill()
            return Failure("timeout", f"no answer within {limit_s:g} s")
        try:
            return self._pipe.recv() if self._pipe.poll() else self._post_mortem()
        except (EOFError, OSError):
            return self._post_mortem()

    def _post_mortem(self) -> Failure:
        self._process.join(STOP_LIMIT_S)
        text = Path(self._log).read_text(errors="replace")[-_LAST_WORDS:]
        return Failure(*crash(self._process.exitcode, last_words(text), self._kills_before))


def serve(pipe: Any, device: str, plugins: Sequence[str], log: str, set_up: Callable[..., Any]) -> None:
    """The far end: answers until the near end is gone, and then ends, whatever it is at."""
    ignore_terminals()
    end_with_parent()
    if "fork" in get_all_start_methods():
        # Locks that libraries make (tqdm, in torch's compiler) have no name then: an end by force leaves none behind.
        set_start_method("fork", force=True)
    with open(log, "wb", buffering=0) as file:
        for stream in (1, 2):  # what implementations print belongs into neither tables nor JSON
            os.dup2(file.fileno(), stream)
    session: Any = None
    try:
        with noted(f"set up by {set_up.__module__}"):
            make = set_up(device, plugins)
        pipe.send("ready")
        while True:
            what, arguments = pipe.recv()
            if arguments:  # a case begins
                session = make(*arguments)
            with noted(" ".join([what, *(getattr(one, "label", "") for one in arguments[:1])])):
                answer = _attempt(getattr(session, what))
            pipe.send(answer)
    except Exception as error:  # the near end is gone, or the set-up failed
        if not isinstance(error, EOFError | OSError):
            pipe.send(Failure(*classify(error)))


def _set_up(device: str, plugins: Sequence[str]) -> Any:
    import gc

    from basedbench.engines.kernel_keys import make_alike
    from basedbench.plugins import load_plugins
    from basedbench.timing.clock import WallClock
    from basedbench.timing.kept import Kept
    from basedbench.timing.session import Session
    from basedbench.timing.tuning import look_briefly_first
    from basedbench.timing.waking import open_device, wake

    if device != "cpu":
        make_alike()
        open_device(device)
    load_plugins(plugins)
    gc.freeze()  # what is imported is never collected: looking at it takes tenths of a second a case
    # What peers tune in here, with the device to themselves, need not be tuned again in the next process.
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
    if device != "cpu":
        look_briefly_first()
        wake(device)
    kept = Kept(device)

    def make(case: Any, measure: Any) -> Any:
        if isinstance(case, CeilingsRequest):
            return _Ceilings(case, device)
        return Session(case, measure, device, WallClock(), kept)

    return make


@dataclass(frozen=True)
class CeilingsRequest:
    """What `Worker.ceilings` asks for: about so many seconds for each of these, of all there are if none is named."""

    seconds: float
    names: tuple[str, ...] = ()
    origin: dict[str, Any] | None = None  # where the rows come from, if the near end knows


class _Ceilings:
    """What a worker prepares for such a request."""

    def __init__(self, request: CeilingsRequest, device: str) -> None:
        self.request, self.device = request, device

    def prepare(self) -> dict[str, Any]:
        from basedbench.timing.ceilings import calibrate

        request = self.request
        return {"rows": list(calibrate(self.device, request.seconds, names=request.names, origin=request.origin))}


def _attempt(action: Any) -> Any:
    try:
        return action()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an implementation may raise, or call, anything
        return Failure(*classify(error))


class Workers:
    """The worker processes of a sweep, one per operator (or model) and contender."""

    def __init__(self, device: str, plugins: Sequence[str]) -> None:
        self.device, self.plugins = device, plugins
        self._running: dict[tuple[str, str], Worker] = {}

    def __len__(self) -> int:
        return len(self._running)

    def start(self, cases: Sequence[Any], later: Sequence[Any] = ()) -> None:
        """Start what these cases need, all at once, and end what neither they nor `later` ones do."""
        needed = {case.implementation for case in (*cases, *later)}
        for key in set(self._running) - needed:
            self._running.pop(key).stop()
        for case in cases:
            self.of(case)

    def of(self, case: Any) -> Worker:
        """The worker of a case's contender, started if there is none."""
        key = case.implementation
        if key not in self._running:
            self._running[key] = Worker(self.device, self.plugins)
        return self._running[key]

    @property
    def running(self) -> dict[tuple[str, str], Worker]:
        """Those there are, by implementation."""
        return dict(self._running)

    def wait(self) -> None:
        """Until all that were started are up: none makes its context while something is measured."""
        for worker in self._running.values():
            worker.wait()

    def spare(self, cases: Sequence[Any]) -> None:
        """Free what the workers of other cases keep: these need the memory."""
        needed = {case.implementation for case in cases}
        for key in set(self._running) - needed:
            if self._running[key].forget() is not None:
                self._running.pop(key).stop()

    def discard(self, case: Any) -> None:
        """End the worker of a case's contender."""
        self._running.pop(case.implementation).stop()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._running.values():  # all at once: a context takes its time to go
            worker.kill()
        for key in list(self._running):
            self._running.pop(key).stop()
