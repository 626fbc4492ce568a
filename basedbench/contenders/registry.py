"""The registered contenders: those of this package, then those of the user's plugins."""

from collections.abc import Callable, Mapping
from typing import Any

from basedbench.config.throughput import OPERATOR_AXES, Case
from basedbench.contenders.base import Call, Contender
from basedbench.contenders.operators import bind
from basedbench.errors import OWN, UserError, check_name, nearest, text_of
from basedbench.sources import source_of

_REGISTERED: dict[str, Contender] = {}


def register(contender: Contender) -> Contender:
    """Add a contender. Raises UserError if its name is taken, or no word, or what it says of itself is no use."""
    if not isinstance(contender, Contender):
        raise UserError(
            f"register takes an instance of a class derived from Contender, not {contender!r}{_call(contender)}"
        )
    name = getattr(contender, "name", None)
    if not isinstance(name, str):
        raise UserError(f"contender class {type(contender).__qualname__} needs a class attribute `name`, a text.")
    check_name("contender", name)
    if name in _REGISTERED:
        raise UserError(f"two contenders are called {name!r}; rename one.")
    _check(contender)
    source_of(type(contender))
    _REGISTERED[contender.name] = contender
    return contender


def _call(given: Any) -> str:
    """The end of a sentence about something that is no contender."""
    return f"; write register({given.__name__}())." if isinstance(given, type) else "."


def _check(contender: Contender) -> None:
    """UserError unless what is asked of a contender outside a case has an answer of the right kind."""
    operators = getattr(contender, "operators", None)
    if not isinstance(operators, tuple | list):
        raise UserError(f"contender {contender.name!r}: operators is a tuple of names, not {operators!r}.")
    for operator in operators:
        if operator not in OPERATOR_AXES:
            near = nearest(str(operator), OPERATOR_AXES)
            raise UserError(f"contender {contender.name!r}: no operator is called {operator!r}; {near}")
    for what in ("package", "version", "unavailable"):
        try:
            value = getattr(contender, what)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # properties of the user's own
            raise UserError(f"contender {contender.name!r}: {what} raises {text_of(error)}.") from error
        if not isinstance(value, str | None):
            raise UserError(f"contender {contender.name!r}: {what} is a text or None, not {value!r}.")


def all_contenders() -> list[Contender]:
    """Every contender in the order of registration, those that cannot run here included."""
    return list(_REGISTERED.values())


def get_contender(name: str) -> Contender:
    """The contender of this name. Raises UserError that names the nearest one."""
    if name not in _REGISTERED:
        raise UserError(f"no contender is called {name!r}; {nearest(name, _REGISTERED)} {OWN}")
    return _REGISTERED[name]


class _Function(Contender):
    """A user's function with the signature of an operator."""

    def __init__(self, name: str, operator: str, function: Callable[..., Any], modes: tuple[str, ...]) -> None:
        self.name, self.operators, self.function, self.modes = name, (operator,), function, modes
        self.source = source_of(function)

    @property
    def version(self) -> str | None:
        return self.source

    def limits(self, case: Case) -> str | None:
        return None if case.mode in self.modes else f"registered for {', '.join(self.modes)} only"

    def build(self, case: Case) -> Call:
        return bind(self.function, case)


def contender(
    operator: str, *, name: str | None = None, modes: tuple[str, ...] = ("fwd", "fwd_bwd")
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a contender for an operator; it takes what `basedbench.kernels.<operator>` takes.

    `modes` says what it can do: give ("decode",) for a function with the signature of `<operator>_step`.
    Raises UserError for an operator or mode that does not exist, or a name that is taken.
    """
    if callable(operator):
        raise UserError('contender takes the name of an operator: write @contender("attention").')
    if operator not in OPERATOR_AXES:
        raise UserError(f"no operator is called {operator!r}; {nearest(operator, OPERATOR_AXES)}")
    if isinstance(modes, str):
        raise UserError(f"modes is a tuple: write modes=({modes!r},).")
    valid = Case.model_fields["mode"].annotation.__args__  # type: ignore[union-attr]
    for mode in modes:
        if mode not in valid:
            raise UserError(f"no mode is called {mode!r}; {nearest(mode, valid)}")

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        register(_Function(name or function.__name__, operator, function, modes))
        return function

    return add


def registered() -> dict[str, Contender]:
    """What is registered by now, by name; `restore` goes back to it."""
    return dict(_REGISTERED)


def restore(before: Mapping[str, Contender]) -> None:
    """Forget whatever has been registered since."""
    _REGISTERED.clear()
    _REGISTERED.update(before)
