"""The laws of a mixer, looked at in a process apart: a mixer that ends it or never answers breaks a law, no more."""

from collections.abc import Callable, Iterator, Sequence

from basedbench.checking.laws import LAWS, Law, broken
from basedbench.checking.subject import Breach, Subject
from basedbench.plugins import load_plugins
from basedbench.timing.worker import Failure, Worker

LIMIT_S = 120.0  # for one law


class Attempt:
    """One law inside the process."""

    def __init__(self, law: Law, subject: Subject) -> None:
        self.law, self.subject = law, subject

    def prepare(self) -> list[Breach]:
        """Where the law is broken."""
        return broken(self.law, self.subject)


def set_up(device: str, plugins: Sequence[str]) -> Callable[[Law, Subject], Attempt]:
    """What the process does first."""
    load_plugins(plugins)
    return Attempt


def examine(subject: Subject, plugins: Sequence[str]) -> Iterator[tuple[Law, list[Breach]]]:
    """Each law with its breaches. After one that gets no answer within the limit no other is looked at."""
    worker = None
    try:
        for law in LAWS:
            worker = worker or Worker("cpu", plugins, set_up)
            answer = worker.ask("prepare", law, subject, limit_s=LIMIT_S)
            if not isinstance(answer, Failure):
                yield law, answer
                continue
            yield law, [Breach("the mixer", answer.reason, raised=True)]
            worker.stop()
            worker = None
            if answer.status == "timeout":
                return
    finally:
        if worker is not None:
            worker.stop()
