"""The contender contract: something that can compute an operator at a case's shape, or says why it cannot."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

from torch import Tensor

from basedbench.config.throughput import Case
from basedbench.config.timed import Timed
from basedbench.sources import source_of

# The tensors of a call by name, in the order of the operator's signature.
Tensors = dict[str, Tensor]
Call = Callable[[Tensors], Tensor | tuple[Tensor, ...]]


class Contender:
    """One implementation of one or several operators.

    A missing package makes it unavailable, with the reason, and is never an error: packages are imported in `build`.
    """

    name: str
    operators: tuple[str, ...]
    package: str | None = None  # the distribution it needs, as the package index calls it

    @property
    def version(self) -> str | None:
        """The version of the package behind it, and of the user's own file."""
        own = source_of(type(self))
        package = _version(self.package) if self.package else None
        return f"{own}, {self.package} {package}" if own and package else package if self.package else own

    @property
    def unavailable(self) -> str | None:
        """Why it cannot run on this machine at all, or None."""
        if self.package and self.version is None:
            return f"{self.package} is not installed"
        return None

    def supports(self, case: Case) -> str | None:
        """Why this case is beyond it, or None."""
        if case.operator not in self.operators:
            return f"{self.name} does not compute {case.operator}"
        reason = self.unavailable or self.limits(case)
        if not isinstance(reason, str | None):
            raise TypeError(f"limits of {self.name} gives {reason!r}, which is neither a text nor None")
        return reason or None

    def limits(self, case: Case) -> str | None:
        """Why a case of one of its operators is beyond it, or None."""
        return None

    def build(self, case: Case) -> Call:
        """What is timed: a call on the case's tensors that returns the operator's outputs, in the operator's layout.

        A decode step updates its states in place. Compilation may happen here or in the first call.
        """
        raise NotImplementedError

    def imports(self, case: Case) -> None:
        """Import what the first call will, where that takes long: no kernel runs, nothing is compiled."""

    def layout(self, case: Case, tensors: Tensors) -> Tensors:
        """The same tensors in the memory order that this implementation works on: conversions are not its work."""
        return tensors

    def context(self, case: Case) -> AbstractContextManager[object]:
        """Settings that hold while it runs."""
        return nullcontext()


def needs_cuda(case: Timed) -> str | None:
    """The reason of everything that runs on GPUs only."""
    return "needs a CUDA device" if case.device == "cpu" else None


def needs_half(case: Timed) -> str | None:
    """The reason of kernels for 16-bit inputs only."""
    return "takes bf16 and fp16 only" if case.dtype == "fp32" else None


@cache
def _version(package: str) -> str | None:
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return None
