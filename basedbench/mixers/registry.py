"""The registry of mixers: built-in ones, those of installed packages, and those of a user's file.

A package offers a mixer through the entry-point group `basedbench.mixers` (the value names the class, or a module that
registers it); a file through `load_plugin`. Suites name registered mixers only; they never import.
"""

import importlib.util
import sys
import traceback
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from basedbench.errors import UserError, nearest
from basedbench.mixers.base import Mixer

ENTRY_POINTS = "basedbench.mixers"
MixerClass = TypeVar("MixerClass", bound=type[Mixer])

_mixers: dict[str, type[Mixer]] = {}
_plugins: dict[Path, list[str]] = {}


def register(cls: MixerClass) -> MixerClass:
    """Class decorator: make a Mixer available under its `name`. UserError if that is missing or taken."""
    if not (isinstance(cls, type) and issubclass(cls, Mixer)):
        raise UserError(f"@register expects a class derived from basedbench.mixers.Mixer, not {cls!r}.")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name:
        raise UserError(f"mixer class {cls.__qualname__} needs a class attribute `name`, a non-empty string.")
    taken = _mixers.get(name)
    if taken and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise UserError(
            f"mixer name {name!r} of {cls.__module__}.{cls.__qualname__} is taken by "
            f"{taken.__module__}.{taken.__qualname__}; choose another."
        )
    cls.family = cls.family or name
    _mixers[name] = cls
    return cls


def get_mixer(name: str) -> type[Mixer]:
    """The mixer class registered under `name`. UserError with the nearest name if there is none."""
    broken = _load_entry_points()
    if name in _mixers:
        return _mixers[name]
    if name in broken:
        raise UserError(f"mixer {name!r} could not be loaded: {broken[name]}; mend or uninstall its package.")
    raise UserError(f"unknown mixer {name!r}: {nearest(str(name), mixer_names())}")


def mixer_names() -> list[str]:
    """Every registered name, sorted."""
    _load_entry_points()
    return sorted(_mixers)


def check_options(name: str, d_model: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of mixer `name` with defaults filled in, without building it. UserError if they are not valid."""
    return get_mixer(name).resolve(d_model, options).model_dump()


def load_plugin(path: Path | str) -> list[str]:
    """Import a Python file and return the names of the mixers it registers. Loading a file again does nothing.

    UserError names the file, and the line where it fails; nothing of a failed file stays registered.
    """
    path = Path(path).resolve()
    if path not in _plugins:
        if not path.is_file() or path.suffix != ".py":
            raise UserError(f"plugin {path}: no such Python file; give the path of a .py file that registers mixers.")
        _plugins[path] = _import_plugin(path)
    return _plugins[path]


def _import_plugin(path: Path) -> list[str]:
    module_name = f"basedbench_plugin_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    before = dict(_mixers)
    try:
        _execute(path, module_name)
    except Exception as error:
        _mixers.clear()
        _mixers.update(before)
        sys.modules.pop(module_name, None)
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, UserError) else str(error)
        raise UserError(f"plugin {path}, line {_line(error, path)}: {reason}") from error
    names = sorted(_mixers.keys() - before.keys())
    if not names:
        raise UserError(f"plugin {path} registers no mixer; decorate a Mixer class with @register.")
    return names


def _execute(path: Path, module_name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None  # the suffix is .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # where pydantic and pickle look its classes up
    spec.loader.exec_module(module)
    return module


def _line(error: Exception, path: Path) -> int:
    """The last line of the file that was running, or the line that does not parse."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 1
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return (lines[-1] if lines else None) or 1


@cache
def _load_entry_points() -> dict[str, str]:
    """Load what installed packages offer, once. Returns the reason for each one that fails: the rest still works."""
    broken = {}
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            loaded = entry.load()
            if isinstance(loaded, type) and loaded not in _mixers.values():
                register(loaded)
        except Exception as error:
            broken[entry.name] = f"{type(error).__name__}: {error}"
    return broken
