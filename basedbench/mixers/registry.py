"""The registry of mixers: built-in ones, those of installed packages, and those of a user's file.

A package offers a mixer through the entry-point group `basedbench.mixers` (the value names the class, or a module that
registers it); a file through `basedbench.plugins`. Suites name registered mixers only; they never import.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from basedbench.errors import OWN, UserError, check_name, nearest, sentence, text_of
from basedbench.mixers.base import Mixer, MixerOptions
from basedbench.sources import ENTRY_POINTS, PLUGIN_MODULES, source_of
from basedbench.streams import stdout_to_stderr

MixerClass = TypeVar("MixerClass", bound=type[Mixer])

_mixers: dict[str, type[Mixer]] = {}


def register(cls: MixerClass) -> MixerClass:
    """Class decorator: make a Mixer available under its `name`. UserError if that is missing or taken."""
    if not (isinstance(cls, type) and issubclass(cls, Mixer)):
        raise UserError(f"@register expects a class derived from basedbench.mixers.Mixer, not {cls!r}.")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name:
        raise UserError(f"mixer class {cls.__qualname__} needs a class attribute `name`, a non-empty string.")
    check_name("mixer", name)
    if not (isinstance(cls.Options, type) and issubclass(cls.Options, MixerOptions)):
        raise UserError(
            f"mixer {name!r}: Options is a class derived from basedbench.mixers.MixerOptions, not {cls.Options!r}."
        )
    taken = _mixers.get(name, cls)
    if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise UserError(
            f"mixer name {name!r} of {cls.__module__}.{cls.__qualname__} is taken by "
            f"{taken.__module__}.{taken.__qualname__}; choose another."
        )
    # A cell of a notebook may run again; a plugin's file runs once.
    if taken is not cls and cls.__module__.startswith(PLUGIN_MODULES):
        raise UserError(f"two mixers are called {name!r}, both by a class {cls.__qualname__}; rename one.")
    cls.family = cls.family or name
    source_of(cls)
    _mixers[name] = cls
    return cls


def get_mixer(name: str) -> type[Mixer]:
    """The mixer class registered under `name`. UserError with the nearest name if there is none."""
    broken = _load_entry_points()
    if name in _mixers:
        return _mixers[name]
    if name in broken:
        raise UserError(f"mixer {name!r} could not be loaded: {broken[name]}; mend or uninstall its package.")
    raise UserError(f"unknown mixer {name!r}: {nearest(str(name), mixer_names())} {OWN}")


def mixer_names() -> list[str]:
    """Every registered name, sorted."""
    _load_entry_points()
    return sorted(_mixers)


def check_options(name: str, d_model: int, options: Mapping[str, Any], length: int = 0) -> dict[str, Any]:
    """The options of mixer `name` with defaults filled in, without building it.

    UserError if they are not valid, or not with sequences of this `length`.
    """
    mixer = get_mixer(name)
    try:
        resolved = mixer.resolve(d_model, options)
        mixer.check_length(resolved, length)
        settled = resolved.model_dump()
        json.dumps(settled, allow_nan=False)  # as rows have them
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # of the user's mixer
        raise UserError(f"mixer {name!r} fails at its options: {sentence(error)}.") from error
    return settled


def registered() -> dict[str, type[Mixer]]:
    """What is registered by now, by name; `restore` goes back to it."""
    return dict(_mixers)


def restore(before: Mapping[str, type[Mixer]]) -> None:
    """Forget whatever has been registered since."""
    _mixers.clear()
    _mixers.update(before)


@cache
def _load_entry_points() -> dict[str, str]:
    """Load what installed packages offer, once. Returns the reason for each one that fails: the rest still works."""
    broken = {}
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            with stdout_to_stderr():
                loaded = entry.load()
            if isinstance(loaded, type) and loaded not in _mixers.values():
                register(loaded)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            broken[entry.name] = text_of(error)
    return broken
