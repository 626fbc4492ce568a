"""Where in a kind of suite a key belongs: what is said of one that stands somewhere else."""

from collections.abc import Iterator
from typing import Any, get_args

from basedbench.config.section import Section, Suite, UnknownKeyError


def unknown_key(suite: type[Suite], here: str, error: UnknownKeyError) -> str:
    """What is wrong with a key, and where it belongs if that can be told. `here` is its section's path, such as
    `train.segments`.
    """
    places = list(dict.fromkeys(_places(suite, here, error.key)))
    if not places:
        return str(error)
    inside = [f"under {place.removeprefix(here).lstrip('.')}" for place in places if _within(place, here) and place]
    *most, last = inside or [f"under {place}" if place else "at the top of the file" for place in places]
    where = f"{', '.join(most)} or {last}" if most else last
    named = any(error.key in keys for keys in error.section.MAPPINGS.values())
    hint = f"; {error.section.ELSE}" if error.section.ELSE and inside and not named else ""
    return f"unknown key {error.key!r}; it belongs {where}{hint}"


def sections(suite: type[Section], path: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Every section of a kind of suite, the suite itself first, with its path."""
    yield path, suite
    for name, field in suite.model_fields.items():
        for section in _sections_in(field.annotation):
            yield from sections(section, f"{path}.{name}".lstrip("."))


def _places(suite: type[Suite], here: str, key: str) -> Iterator[str]:
    """The paths of what has such a key. A mapping's own keys are told within its section, and of those around it."""
    for path, section in sections(suite):
        if key in section.model_fields:
            yield path
        if _within(path, here) or _within(here, path):
            yield from (f"{path}.{name}".lstrip(".") for name, keys in section.MAPPINGS.items() if key in keys)


def _within(path: str, outer: str) -> bool:
    return not outer or path == outer or path.startswith(f"{outer}.")


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)
