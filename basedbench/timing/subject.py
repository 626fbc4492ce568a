"""What a session times, whatever it is: something that is loaded, started, checked, and then called again and again."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from basedbench.config.models import ModelCase
from basedbench.config.throughput import AnyCase
from basedbench.sources import source_of
from basedbench.timing.correctness import Verdict

if TYPE_CHECKING:
    from basedbench.timing.kept import Kept


class Subject(Protocol):
    """One case made ready. The session calls the methods in this order, on one device."""

    grad: bool  # whether it needs autograd

    def context(self) -> AbstractContextManager[object]:
        """Settings that hold while it runs."""

    def load(self) -> None:
        """Bring what is there before any implementation runs: inputs, weights, states."""

    def start(self) -> None:
        """Build it and run it once: compilation happens here."""

    def check(self) -> Verdict:
        """Whether its results are right."""

    def calls(self) -> list[Callable[[], object]]:
        """What samples call in turn, one for each set of inputs; each may be repeated for ever."""

    def replayed(self, capture: Callable[[Callable[[], object]], Callable[[], object]]) -> list[Callable[[], object]]:
        """The same calls with what they launch captured once by `capture`; none if they are timed as launched."""

    def facts(self) -> dict[str, Any]:
        """The columns that are known before any sample."""

    def capacity(self, peak_bytes: int) -> dict[str, Any]:
        """The columns that follow from what a call needs beyond what is held."""


def subject_of(case: AnyCase, device: str, kept: "Kept | None" = None) -> Subject:
    """What times a case; `kept` is what earlier cases left."""
    if isinstance(case, ModelCase):
        from basedbench.timing.language import LanguageSubject

        return LanguageSubject(case, device, kept)
    from basedbench.timing.operator import OperatorSubject

    return OperatorSubject(case, device)


def unsupported(case: AnyCase) -> str | None:
    """Why a case is beyond its contender, or None."""
    if isinstance(case, ModelCase):
        from basedbench.contenders.language import supports

        return supports(case)
    from basedbench.contenders import get_contender

    return get_contender(case.contender).supports(case)


def refused(case: AnyCase, reason: str) -> dict[str, Any]:
    """What the row of a case beyond its contender says: of a user's file also which version says so."""
    from basedbench.contenders import get_contender

    version = None if isinstance(case, ModelCase) else get_contender(case.contender).version
    return {"status": "unsupported", "reason": reason, "contender_version": version}


def users_own(case: AnyCase) -> bool:
    """Whether its contender is a class of the user's: its worker asks that for its limits, for they may do anything."""
    if isinstance(case, ModelCase):
        return False
    from basedbench.contenders import get_contender

    return source_of(type(get_contender(case.contender))) is not None
