"""The user's own Python files, given with `--plugin`: sequence mixers, contenders, or both in one file."""

import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

from basedbench.ambient import all_kept
from basedbench.contenders import Contender
from basedbench.contenders import registry as contenders
from basedbench.errors import UNREAD, UserError, check_text, text_of
from basedbench.mixers import registry as mixers
from basedbench.siblings import Mistaken, mistaken
from basedbench.sources import PLUGIN_MODULES
from basedbench.streams import stdout_to_stderr

_loaded: dict[Path, "Plugin"] = {}


@dataclass(frozen=True)
class Plugin:
    """What a file registered."""

    mixers: tuple[str, ...]
    contenders: tuple[Contender, ...]


def load_plugin(path: Path | str) -> Plugin:
    """Run a Python file that registers mixers or contenders. Loading a file again does nothing.

    It may import files of its own folder, then and later: that is looked at behind all other places, so that no file
    there stands before an installed package.
    UserError names the file, and the line where it fails; nothing of a failed file stays registered.
    """
    file = Path(path).resolve()
    if file not in _loaded:
        check_text("plugin", str(file), UNREAD)
        if not file.is_file() or file.suffix != ".py":
            raise UserError(f"plugin {path}: no such Python file; --plugin takes a .py file.")
        _loaded[file] = _run(file)
    return _loaded[file]


def load_plugins(paths: Sequence[Path | str]) -> list[Contender]:
    """Load several files; returns the contenders among what they register."""
    return [one for path in paths for one in load_plugin(path).contenders]


def _run(file: Path) -> Plugin:
    name = f"{PLUGIN_MODULES}{file.stem}_{sha256(str(file).encode()).hexdigest()[:8]}"
    before, contenders_before, path_before = mixers.registered(), contenders.registered(), list(sys.path)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        _execute(file, name)
        plugin = Plugin(
            tuple(sorted(mixers.registered().keys() - before.keys())),
            tuple(one for key, one in contenders.registered().items() if key not in contenders_before),
        )
        if not (plugin.mixers or plugin.contenders):
            raise UserError(
                "it registers neither a mixer nor a contender; docs/YOUR_MIXER.md and docs/PLUGINS.md show how."
            )
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # libraries have some of their own, such as pytest's of a skipped test
        mixers.restore(before)
        contenders.restore(contenders_before)
        sys.path[:] = path_before
        sys.modules.pop(name, None)
        reason = text_of(error)
        called = "os._exit" if isinstance(error, _ExitAtOnce) else "sys.exit"
        reason = f"it calls {called}; leave that out." if isinstance(error, SystemExit) else reason
        raise UserError(f"plugin {file}, line {_line(error, file)}: {reason}") from error
    return plugin


def _execute(file: Path, name: str) -> None:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # the suffix is .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where pydantic, dataclasses and pickle look its classes up
    here = os.getcwd()
    try:
        with stdout_to_stderr(), all_kept(), _exits_raised():
            spec.loader.exec_module(module)
    finally:
        os.chdir(here)  # of which the names of other files, and --out, are told
        if found := mistaken(module, {file.parent for file in _loaded}):
            raise _OthersError(found)  # also where it failed: for the want of what only its own has


class _OthersError(UserError):
    """A file beside another plugin was run, where one beside this was meant; `line` is where this one asked for it."""

    def __init__(self, found: Mistaken) -> None:
        other = getattr(sys.modules[found.name], "__file__", None)
        super().__init__(
            f"it imports {found.name}, and got {other}, which belongs to another plugin, instead of {found.meant}: "
            "Python has one module of a name. Rename one of the two files."
        )
        self.line = found.line


class _ExitAtOnce(SystemExit):
    """What `os._exit` raises."""


@contextmanager
def _exits_raised() -> Iterator[None]:
    """`os._exit` would end the command without a word. Not in what the file forks: that ends so."""
    leave, here = os._exit, os.getpid()

    def raised(status: int) -> NoReturn:
        if os.getpid() != here:
            leave(status)
        raise _ExitAtOnce(status)

    os._exit = raised
    try:
        yield
    finally:
        os._exit = leave


def _line(error: BaseException, file: Path) -> int:
    """The last line of the file that was running, or the line that does not parse."""
    if isinstance(error, _OthersError):
        return error.line
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return error.lineno or 1
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return (lines[-1] if lines else None) or 1
