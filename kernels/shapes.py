"""What the names of an operator's arguments say of their shapes, compared with the tensors of a call.

`q_BLHK` has four dimensions, and L is one number in all arguments that have it; a digit is the size itself
(`state_B3D`), an x whatever stands in front (`q_xHK`). Other sizes would be broadcast, cut or padded without a word on
a CPU, and kernels would read past the ends of tensors. Only sizes and dtypes are looked at, by the host, and what was
found right is known again in a microsecond or two; nothing of it is in a compiled or a captured graph.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import wraps
from inspect import signature
from numbers import Number
from typing import Any, NamedTuple, ParamSpec, TypeVar

from torch import Tensor
from torch.compiler import is_compiling

P = ParamSpec("P")
R = TypeVar("R")

# Arguments that hold whole numbers or bits; all others are floating point.
WHOLE = {"count_B", "kept_xD", "length_B", "out", "position_B", "positions_BK", "target_N", "tokens_x"}
COUNTS = {"chunk", "window"}  # options that are whole numbers, at least 1
MOST_KNOWN = 1024  # calls that were right, of an operator
DIMENSIONS, DTYPE = ("dimensions", None), ("dtype", None)  # what may be wrong beside the size of a letter


class _Form(NamedTuple):
    """What one tensor should be."""

    name: str
    letters: str
    floating: bool


def checked_shapes(
    rules: Mapping[str, Callable[..., bool]] | None = None, **suffixes: str | tuple[str, ...]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Calls with wrong shapes or dtypes, or a chunk or window below 1, raise ValueError. None is skipped.

    suffixes: of arguments whose name has none or another; for several tensors in one argument a tuple of them; "V|HV"
    for two that may be.
    rules: by what they say, functions of the letters that they name: {"S = W - 1": lambda S, W: S == W - 1}. Those
    with a letter that no tensor has are skipped.
    """
    relations = [(text, tuple(signature(holds).parameters), holds) for text, holds in (rules or {}).items()]

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        names = list(signature(function).parameters)
        known = {name: found[1] for name in names if (found := re.search(r"_(x[A-Z0-9]*|[A-Z0-9]+)$", name))}
        known |= suffixes
        read = [(place, name, _forms(name, known[name])) for place, name in enumerate(names) if name in known]
        counts = [(place, name) for place, name in enumerate(names) if name in COUNTS]
        digits = {digit: int(digit) for *_, forms in read for form in forms for digit in form.letters if digit < "A"}
        places = [(place, name) for place, name, _ in read] + counts
        right: set[Any] = set()

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            if is_compiling():
                check(args, kwargs)
                return function(*args, **kwargs)
            last = len(args)
            call = tuple([_told(args[place] if place < last else kwargs.get(name)) for place, name in places])
            try:
                known = call in right
            except TypeError:  # sizes that are symbols
                known = False
            if not known:
                check(args, kwargs)
                _remember(right, call)
            return function(*args, **kwargs)

        def check(args: Any, kwargs: Any) -> None:
            given, sizes = _given(read, args, kwargs), digits.copy()
            for form, x in given:
                wrong = _wrong(form, x, sizes)
                if wrong is not None:
                    raise ValueError(_disagreement(form, x, wrong, sizes, given))
            for text, letters, holds in relations:
                if all(letter in sizes for letter in letters) and not holds(*[sizes[letter] for letter in letters]):
                    raise ValueError(_broken(text, letters, sizes, given))
            for place, name in counts:
                value: Any = args[place] if place < len(args) else kwargs.get(name, 1)
                if not _is_count(value):
                    raise ValueError(f"{name} must be at least 1 and a whole number, not {value!r}")

        # torch.compile counts by code object how often it compiled, up to eight: operators do not share one.
        checked.__code__ = checked.__code__.replace(co_name=function.__name__)  # type: ignore[attr-defined]
        return checked

    return decorate


def _is_count(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):  # also what torch.compile leaves open
        return value >= 1
    return not isinstance(value, bool | float) and hasattr(value, "__index__") and bool(value >= 1)


def _told(value: Any) -> Any:
    """All that is looked at of an argument."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, tuple | list):
        return tuple(map(_told, value))
    return (value, type(value)) if isinstance(value, Number | str) else None  # 2.0 is equal to 2


def _remember(right: set[Any], call: Any) -> None:
    if len(right) >= MOST_KNOWN:
        right.clear()
    with suppress(TypeError):
        right.add(call)


def _forms(name: str, suffix: str | tuple[str, ...]) -> tuple[_Form, ...]:
    if isinstance(suffix, tuple):
        return tuple(_forms(f"{name}[{place}]", one)[0] for place, one in enumerate(suffix))
    return (_Form(name, suffix, name not in WHOLE),)


def _given(read: Iterable[tuple[int, str, tuple[_Form, ...]]], args: Any, kwargs: Any) -> list[tuple[_Form, Tensor]]:
    """The tensors of a call; other things, such as None or draws still to be made, are left out."""
    given = []
    for place, name, forms in read:
        value = args[place] if place < len(args) else kwargs.get(name)
        if isinstance(value, Tensor):
            given.append((forms[0], value))
        elif isinstance(value, tuple | list):
            given += [(form, x) for form, x in zip(forms, value, strict=False) if isinstance(x, Tensor)]
    return given


def _wrong(form: _Form, x: Tensor, sizes: dict[str, Any]) -> tuple[str, Any] | None:
    """A letter with a size other than the known one, if there is one; what was not known is from now on."""
    _, letters, floating = form
    shape: Any = x.shape
    if "|" in letters:
        letters = next((one for one in letters.split("|") if len(one) == len(shape)), letters)
    if letters[0] == "x":  # its size is all those in front
        ahead = max(0, len(shape) - len(letters) + 1)
        shape = (tuple(shape[:ahead]), *shape[ahead:])
    if len(shape) != len(letters):
        return DIMENSIONS
    for letter, size in zip(letters, shape, strict=True):
        if sizes.setdefault(letter, size) != size:
            return letter, size
    return None if x.dtype.is_floating_point == floating else DTYPE


# The rest is for messages.


def _disagreement(
    form: _Form, x: Tensor, wrong: tuple[str, Any], sizes: dict[str, Any], given: list[tuple[_Form, Tensor]]
) -> str:
    if wrong == DTYPE:
        return f"{form.name} is {x.dtype}, not {'floating point' if form.floating else 'whole numbers'}"
    letter, size = wrong
    what = f"{form.name} is {tuple(x.shape)}"
    if wrong == DIMENSIONS or letter.isdigit():
        return (
            what + ", not " + " or ".join(f"({', '.join(one)})" for one in form.letters.split("|")).replace("x", "...")
        )
    return f"{what}: {letter} is {size}, but {_first(letter, given)[0].name} has {sizes[letter]}"


def _broken(text: str, letters: Iterable[str], sizes: dict[str, Any], given: list[tuple[_Form, Tensor]]) -> str:
    found = ((letter, *_first(letter, given)) for letter in letters)
    parts = (f"{form.name} is {tuple(x.shape)} with {a} = {sizes[a]}" for a, form, x in found)
    return f"{text} does not hold: {', '.join(parts)}"


def _first(letter: str, given: list[tuple[_Form, Tensor]]) -> tuple[_Form, Tensor]:
    """The argument that a letter's size is from."""
    return next((form, x) for form, x in given if letter in form.letters)
