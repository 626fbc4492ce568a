"""Which version of the user's own code a row is of: the file that defines a mixer or contender, and a hash.

The hash is of that file and of those of its folder that it imports.
"""

import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from basedbench.siblings import siblings

DIGITS = 8
PLUGIN_MODULES = "basedbench_plugin_"  # how the names of modules begin that --plugin files become
ENTRY_POINTS = "basedbench.mixers"  # the group in which installed packages offer mixers
COLUMNS = {"recall": "mixer_source", "throughput": "contender_version"}  # where the rows of a kind name files
AGAIN = "--retry outdated takes the older ones again."


def source_of(thing: Any) -> str | None:
    """`mine.py 3f2a91c0` for a class or function of the user's own; None for one of ours."""
    name = thing.__module__
    module = sys.modules.get(name)
    return None if module is None or name.partition(".")[0] == "basedbench" else _of_module(module)


@cache
def _of_module(module: ModuleType) -> str | None:
    """Of the file as it was when this was first asked, which registering does: what is running, whatever is edited.

    The hash is that of the file; or, where it imports others of its folder, of all these.
    """
    file = Path(getattr(module, "__file__", None) or "")
    if not file.is_file():
        return None
    version = sha256(file.read_bytes())
    for beside in siblings(module):
        version.update(f"\n{beside.name} {sha256(beside.read_bytes()).hexdigest()}".encode())
    return f"{file.name} {version.hexdigest()[:DIGITS]}"


def files_of(sources: Iterable[str]) -> list[str]:
    """`mine.py 3f2a91c0` for each version of each of the user's files among them."""
    found = dict.fromkeys(one for source in sources for one in _files(source))
    return [f"{file} {version}" for file, version in found]


def _files(sources: str) -> list[tuple[str, str]]:
    """The user's files in a row's `mixer_source` or `contender_version`, each with its hash."""
    named = (re.fullmatch(rf"(.+\.py) ([0-9a-f]{{{DIGITS}}})", one) for one in sources.split(", "))
    return [(one[1], one[2]) for one in named if one]


def versions_note(sources: Iterable[str]) -> str:
    """A sentence for each file of which there are rows of several versions."""
    found: dict[str, dict[str, None]] = {}
    for file, version in dict.fromkeys(one for source in sources for one in _files(source)):
        found.setdefault(file, {})[version] = None
    told = (
        f"Rows of {len(hashes)} versions of {file} ({', '.join(hashes)}) are among these."
        for file, hashes in found.items()
        if len(hashes) > 1
    )
    return " ".join(told)


def versions_in(rows: Iterable[Mapping[str, Any]], kind: str) -> str:
    """The same of rows of a kind of result, and what to do about it; nothing where each file has one version."""
    told = versions_note(sources_in(rows, kind))
    return f"{told} {AGAIN}" if told else ""


def sources_in(rows: Iterable[Mapping[str, Any]], kind: str) -> list[str]:
    """What the rows of a kind of result say of files."""
    column = COLUMNS.get(kind)
    return [row[column] for row in rows if row.get(column)] if column else []


def plugin_options(sources: str | None, mixers: Iterable[str] = ()) -> str:
    """` --plugin mine.py` for each file that a row names so: what its command needs besides.

    Nothing for files of installed packages, which offer one of the row's `mixers`: they are found without.
    """
    if not {entry.name for entry in entry_points(group=ENTRY_POINTS)}.isdisjoint(mixers):
        return ""
    return "".join(f" --plugin {shlex.quote(file)}" for file, _ in _files(sources or ""))
