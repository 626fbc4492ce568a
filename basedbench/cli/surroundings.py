"""What a command cannot do without: errors of the machine and of the environment, as sentences."""

import errno
import sys
import traceback

from basedbench import atomic
from basedbench.errors import text_of
from basedbench.timing.failures import shorten

SAFE = "Rows stored before are safe; the same command, without --fresh, goes on from there."


def explained(error: Exception) -> str | None:
    """What is lacking, where and what to do; None for an error that is not of this kind."""
    if library := _not_imported(error):
        said = shorten(text_of(_first(error))).removesuffix(".")
        return (
            f"{library} cannot be imported: {said}. Mend what that speaks of: an environment variable, a limit "
            "(ulimit -v), or the installation."
        )
    if isinstance(error, EOFError | ConnectionResetError | ConnectionRefusedError):
        return f"a process that this command had started was ended from outside. {SAFE}"
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return f"the memory of this machine, or what `ulimit -v` leaves of it, does not suffice. {SAFE}"
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":  # Python's own
        return f"no thread can be started: memory (`ulimit -v`) or processes (`ulimit -u`) do not suffice. {SAFE}"
    return _of_system(error) if isinstance(error, OSError) else None


def _of_system(error: OSError) -> str | None:
    """Wherever it was: a temporary file, a library's cache."""
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return f"{str(error.filename)[:60]!r}...: {atomic.cause(error)}; give another path."
    if error.errno in atomic.FULL:
        return f"{atomic.cause(error)}. {SAFE}"
    if error.errno == errno.ENOENT and "temporary directory" in str(error):  # Python's tempfile
        return "there is no folder for temporary files that can be written; set the variable TMPDIR to one."
    return None


def _not_imported(error: Exception) -> str | None:
    """The library in whose import it was raised: it is not there afterwards."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    names = (frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames)
    return next((name for name in names if name and name not in sys.modules), None)


def _first(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
