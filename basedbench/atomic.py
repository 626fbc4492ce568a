"""A file appears whole or not at all: written under a name that starts with a dot, flushed to the disk, then renamed.

A kill or a full disk at any instant leaves what was there before, and at most a hidden file that nobody reads.
"""

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from basedbench.errors import UserError

HIDDEN = ".tmp-"
FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk is full for this user (quota exceeded)",
    errno.EFBIG: "the file would be larger than the system or the shell (ulimit -f) allows",
    errno.EIO: "the disk is full or failing (input/output error)",
}


def write(path: Path, content: bytes | memoryview) -> None:
    """Make `path` hold this content, durably, or raise OSError and leave what was there.

    A file that is there keeps its mode, a link stays one, and a device or a pipe is written to as it is. Folders on the
    way are made.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    before = _mode(target)
    if before is not None and not stat.S_ISREG(before):
        _write_through(target, content, os.O_WRONLY)
        return
    if before is not None and not os.access(target, os.W_OK):  # a rename would not mind
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    # Short, whatever the file's own name, and it does not end in .parquet: other readers of such folders pass it by.
    hidden = target.with_name(f"{HIDDEN}{secrets.token_hex(8)}")
    try:
        _write_through(hidden, content, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        if before is not None:
            os.chmod(hidden, stat.S_IMODE(before))
        os.replace(hidden, target)
        _flush_folder(target.parent)
    finally:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)


def write_out(path: Path, content: bytes | memoryview, what: str = "") -> None:
    """`write` to the file that a command was given with --out; `what` it holds. Raises UserError if it cannot."""
    try:
        write(path, content)
    except OSError as error:
        named = f"{what} {str(path)!r}".lstrip()
        raise UserError(f"cannot write {named}: {cause(error)}; choose another place with --out.") from error


def cause(error: OSError) -> str:
    """Why a file could not be read or written, in a few words."""
    if not error.errno:
        return str(error)
    return FULL.get(error.errno, os.strerror(error.errno).lower())  # pyarrow's own text would name the file again


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _write_through(path: Path, content: bytes | memoryview, flags: int) -> None:
    descriptor = os.open(path, flags, 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if flags & os.O_CREAT:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Make a rename durable. Some network file systems cannot, and say EINVAL: there is nothing more to do then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
