"""The files of a results folder: how one appears whole or not at all, and which ones a reader may see.

Files are written as `basedbench.atomic` says, and never changed afterwards.
"""

import errno
import os
import re
import secrets
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from basedbench import atomic
from basedbench.atomic import HIDDEN
from basedbench.errors import UNREAD, UserError, check_text

SUFFIX = ".parquet"
COMPACTED = "compacted-"
_DATED = re.compile(r"\d{8}T\d{6}\.\d{6}Z(?=-)")
_STALE_S = 24 * 3600.0


def part_name(case_id: str, created_at: datetime) -> str:
    """A name no other process or machine will choose, in order of time: `20260102T030405.678901Z-<case>-<random>`."""
    if not re.fullmatch(r"[A-Za-z0-9._+-]+", case_id):
        raise ValueError(f"case_id {case_id!r} cannot be part of a file name")
    return f"{_stamp(created_at)}-{case_id}-{secrets.token_hex(4)}"


def dated_before(path: Path, moment: datetime) -> bool:
    """Whether this is by its name the file of a row of before; of other files nothing is told."""
    found = _DATED.match(path.name)
    return found is not None and found[0] <= _stamp(moment)


def compacted_name() -> str:
    """The name of a merged file."""
    return f"{COMPACTED}{_stamp(datetime.now(UTC))}-{secrets.token_hex(4)}{SUFFIX}"


def visible(folder: Path) -> list[Path]:
    """The files that hold the rows, at one instant.

    A folder is not listed in one instant: a merge that ends meanwhile could hide both a row's old file and its new
    one. Nothing is missed once a second look finds all that the first one found and no new merged file.
    """
    first = _names(folder)
    while True:
        second = _names(folder)
        gone, merged = first - second, {name for name in second - first if name.startswith(COMPACTED)}
        if not gone and not merged:
            return [folder / name for name in sorted(second)]
        first = second


def for_pyarrow(path: Path) -> str:
    """A path that pyarrow takes for one: `run-12:30` would be a URI, and a first `~` somebody's home.

    Raises UserError for one that is not text.
    """
    _check_name(path)
    return os.path.abspath(path)


GOES_ON = "run the same command again, without --fresh: it goes on from there"


def store_bytes(path: Path, content: bytes | memoryview, what: str, then: str = GOES_ON) -> None:
    """Make `path` appear with this content, durably, or not at all.

    Raises UserError that names `what` was not stored, and what to do `then`, if the disk is full or the folder cannot
    be written.
    """
    try:
        atomic.write(path, content)
    except OSError as error:
        raise UserError(_not_stored(error, path.parent, what, then)) from error


def check_writable(root: Path) -> None:
    """Write and remove a hidden file. Raises UserError if the folder cannot be made or written, or its name read."""
    _check_name(root)
    probe = root / f"{HIDDEN}probe-{secrets.token_hex(4)}"
    try:
        atomic.write(probe, b"basedbench")
    except OSError as error:
        raise UserError(
            f"cannot write results to {str(root)!r}: {atomic.cause(error)}; choose another folder with --out."
        ) from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def free(path: Path) -> Path:
    """This path, or one with a random name before it if there is something already."""
    return path.with_name(f"{secrets.token_hex(4)}-{path.name}") if os.path.lexists(path) else path


# Names of unfinished files, as `check_writable` and `atomic.write` give them: a user may have others in the folder.
_OWN = re.compile(re.escape(HIDDEN) + r"(probe-[0-9a-f]{8}|[0-9a-f]{16})")


def remove_stale(folder: Path) -> None:
    """Remove what killed writers left behind more than a day ago; a write takes milliseconds."""
    for path in folder.glob(f"{HIDDEN}*"):
        if not _OWN.fullmatch(path.name):
            continue
        with suppress(OSError):  # gone meanwhile, or somebody else's
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()


def _check_name(path: Path) -> None:
    """Raises UserError for one that is not UTF-8."""
    check_text("results folder", str(path), UNREAD)


def _names(folder: Path) -> set[str]:
    """Nothing where there is no such folder. Raises UserError if there is one that cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.name.endswith(SUFFIX) and entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise UserError(
            f"the results folder {str(folder)!r} cannot be read: {atomic.cause(error)}; make it readable, "
            "or choose another one."
        ) from error


def _not_stored(error: OSError, folder: Path, what: str, then: str) -> str:
    mend = "free some space" if error.errno in atomic.FULL else "make the folder writable"
    mend = "lift that limit" if error.errno == errno.EFBIG else mend
    return (
        f"{atomic.cause(error)}: {what} was not stored in {str(folder)!r}. All rows stored before are safe; "
        f"{mend} and {then}."
    )


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
