"""How a sweep goes, for a person: live bars in a terminal, elsewhere a plain line per finished run and half minute."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from basedbench.engines import Listener
from basedbench.training.cases import RecallCase

SHOWN_RUNS = 12
EVERY_S = 30.0  # where there is no terminal: runs side by side may end minutes apart


@contextmanager
def watch(todo: Sequence[RecallCase], ready: int, quiet: bool) -> Iterator[Listener]:
    """A listener that shows the sweep while the block runs."""
    console = Console(stderr=True)
    if quiet or not todo:
        if ready and not quiet:
            console.print(f"Runs to do: 0; already done: {ready}", highlight=False)
        yield Tally(todo)
    elif console.is_terminal:
        live = LiveView(todo, ready)
        with Live(live.render(), console=console, refresh_per_second=4, get_renderable=live.render):
            yield live
    else:
        precision = todo[0].train.precision
        console.print(f"Runs to do: {len(todo)}; already done: {ready}; precision: {precision}", highlight=False)
        view = PlainView(todo, console)
        with repeated(view.report, EVERY_S):
            yield view


@contextmanager
def repeated(call: Callable[[], None], seconds: float) -> Iterator[None]:
    """Calls again and again while the block runs, from a thread of its own."""
    over = threading.Event()

    def loop() -> None:
        while not over.wait(seconds):
            call()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Tally:
    """What every view knows: how many runs are done, how fast, and the best of each family."""

    def __init__(self, todo: Sequence[RecallCase]) -> None:
        self.total, self.done = len(todo), 0
        self.began = time.monotonic()
        self.best: dict[str, float] = {}
        self.epochs_left = sum(case.train.epochs for case in todo)
        self.epochs_done = 0
        self.seen: dict[str, int] = {}

    def started(self, case: RecallCase) -> None:
        self.epochs_done -= self.seen.get(case.case_id, 0)  # of an attempt that was lost
        self.seen[case.case_id] = 0

    def epoch(self, case: RecallCase, epoch: int, accuracy: float) -> None:
        self.seen[case.case_id] = epoch
        self.epochs_done += 1

    def finished(self, case: RecallCase, row: dict[str, Any]) -> None:
        self.done += 1
        self.epochs_left -= case.train.epochs - self.seen.pop(case.case_id, 0)
        if row["status"] == "ok":
            self.best[case.mixer] = max(self.best.get(case.mixer, 0.0), row["accuracy"])

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    @property
    def runs_per_minute(self) -> float:
        return 60 * self.done / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def remaining_s(self) -> float | None:
        """By epochs rather than runs: early stops and long first runs mislead less."""
        if not self.epochs_done:
            return None
        return self.elapsed_s * max(0, self.epochs_left - self.epochs_done) / self.epochs_done

    @property
    def pace(self) -> str:
        """`2.5 runs/min  3 min 20 s left`."""
        left = f"{clock(self.remaining_s)} left" if self.remaining_s is not None else ""
        return f"{self.runs_per_minute:.1f} runs/min  {left}"

    @property
    def leaders(self) -> str:
        """`best so far: based 0.912  mamba 0.730`, empty before the first run is done."""
        best = "  ".join(f"{mixer} {accuracy:.3f}" for mixer, accuracy in sorted(self.best.items()))
        return f"best so far: {best}" if best else ""


class PlainView(Tally):
    """One line per finished run; `report` gives one in between."""

    def __init__(self, todo: Sequence[RecallCase], console: Console) -> None:
        super().__init__(todo)
        self.console = console

    def finished(self, case: RecallCase, row: dict[str, Any]) -> None:
        super().finished(case, row)
        left = f"about {clock(self.remaining_s)} left" if self.done < self.total and self.remaining_s else ""
        text = f"[{self.done}/{self.total}] {case.label}: {outcome(row)}  {row['train_s']:.1f} s  {left}".rstrip()
        self._say(text)

    def report(self) -> None:
        """How far it is: by runs, and by epochs, which go on while no run is done."""
        epochs = f"{self.epochs_done} of {self.epochs_left} epochs"
        runs = f"{self.done} of {self.total} runs done, {self.total - self.done} left ({epochs})"
        self._say("  ".join(part for part in (runs, self.pace, self.leaders) if part).rstrip())

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class LiveView(Tally):
    """Bars, the runs under way, and the best accuracy of each family."""

    def __init__(self, todo: Sequence[RecallCase], ready: int) -> None:
        super().__init__(todo)
        self.running: dict[str, tuple[RecallCase, int, float]] = {}
        self.ready = ready
        self.bar = Progress(
            TextColumn("runs"),
            BarColumn(40),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.task = self.bar.add_task("runs", total=self.total, note="")

    def started(self, case: RecallCase) -> None:
        super().started(case)
        self.running[case.case_id] = (case, 0, 0.0)

    def epoch(self, case: RecallCase, epoch: int, accuracy: float) -> None:
        super().epoch(case, epoch, accuracy)
        self.running[case.case_id] = (case, epoch, accuracy)

    def finished(self, case: RecallCase, row: dict[str, Any]) -> None:
        super().finished(case, row)
        self.running.pop(case.case_id, None)

    def render(self) -> Group:
        note = self.pace + (f"  ({self.ready} done before)" if self.ready else "")
        self.bar.update(self.task, completed=self.done, note=note)
        runs = Table.grid(padding=(0, 2))
        for case, epoch, accuracy in list(self.running.values())[:SHOWN_RUNS]:
            shown = f"accuracy {accuracy:.3f}" if epoch else "starting"
            runs.add_row(Text(case.label, style="cyan"), f"epoch {epoch}/{case.train.epochs}", shown)
        return Group(self.bar, runs, Text(self.leaders))


def outcome(row: dict[str, Any]) -> str:
    """`accuracy 0.912`, and what is to be known of it; or the status and its reason."""
    if row["status"] == "ok":
        but = f" ({row['reason']})" if row["reason"] else ""
        return f"accuracy {row['accuracy']:.3f}{but}"
    return f"{row['status']} ({row['reason'] or row['stop_reason']})"


def clock(seconds: float | None) -> str:
    """`42 s`, `3 min 20 s` or `2 h 5 min`."""
    whole = round(seconds or 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
