"""What went wrong, as a status and one sentence, so that a failure is a row like any other."""

import re
from itertools import pairwise

from basedbench.errors import printable, sentence, text_of
from basedbench.timing.oom_kills import oom_kills

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "std::bad_alloc", "cannot allocate memory")
UNSUPPORTED = (
    "no available kernel",
    "not implemented for",
    "not supported",
    "does not support",
    "unsupported",
    "is not installed",
    "no execution plans",
)
COMPILER_MODULES = ("triton.compiler", "triton.runtime.errors", "torch._inductor", "torch._dynamo", "torch._functorch")
NOT_CAPTURED = "cannot be captured in a CUDA graph"
INACCURATE = 0.1  # relative error, whole tensors
LONGEST_REASON = 300


def out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory or the machine's did not suffice."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # PyTorch's, by its name
        return True
    return any(mark in text_of(error).lower() for mark in OUT_OF_MEMORY)


def classify(error: BaseException) -> tuple[str, str]:
    """(status, reason) of an exception in a worker."""
    text = text_of(error).lower()
    chain = [error, *_causes(error)]
    if out_of_memory(error):
        return "oom", _sentence(error)
    if isinstance(error, NotImplementedError | ImportError):
        return "unsupported", _sentence(error)
    if any(type(one).__module__.startswith(COMPILER_MODULES) for one in chain):
        return "compile_error", _sentence(error)
    # Python says "unsupported operand" of a mistake.
    if isinstance(error, RuntimeError | ValueError) and any(mark in text for mark in UNSUPPORTED):
        return "unsupported", _sentence(error)
    return "runtime_error", _sentence(error)


def harmless(status: str, reason: str, error: float | None = None) -> bool:
    """Whether the worker is as good as before: it was refused, and neither a capture nor the device went wrong.

    Or what it computed was incorrect by so little that it was nothing but inaccurate: it has written where it should.
    """
    if status == "incorrect":
        return error is not None and error <= INACCURATE
    return status == "unsupported" and NOT_CAPTURED not in reason and "CUDA error" not in reason


# Lines that libraries log below the level of errors, as torch (glog), Python's logging and its warnings write them; the
# last of these are followed by the line of code.
_BELOW = r"(DEBUG|INFO|WARN(ING)?)"
_LOGGED = re.compile(
    rf"(\[rank\d+\]: ?)?(\[?[IWVD]\d{{4}}[ \d]|\[?{_BELOW}[]: |-]|[\w.]+ - {_BELOW} - "
    rf"|\[?(\d{{4}}-\d\d-\d\d|\d\d:\d\d:\d\d)((?!\b(ERROR|CRITICAL|FATAL)\b).){{0,60}}?\b{_BELOW}\b)"
)
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_WARNED = re.compile(r"\S+:\d+: \w*Warning: ")


def last_words(text: str) -> str:
    """The last line that a process printed, but for mere logging."""
    lines = [line for line in _COLOUR.sub("", text).splitlines() if line.strip()]
    for before, line in reversed(list(pairwise(["", *lines]))):
        of_a_warning = _WARNED.match(line) or (line.startswith("  ") and _WARNED.match(before))
        if not (of_a_warning or _LOGGED.match(line.strip())):
            return line.strip()
    return ""


def crash(exit_code: int | None, said: str, kills_before: int | None = None) -> tuple[str, str]:
    """(status, reason) of a worker that is gone.

    `said` is the end of what it printed; `kills_before` what `oom_kills` said when it began.
    """
    code = exit_code if exit_code is not None else 0
    if code == -9:
        kills = oom_kills()
        if kills is not None and kills_before is not None and kills > kills_before:
            return "oom", "the worker was killed (signal 9) by the system's out-of-memory killer"
        return "crashed", "the worker was killed (signal 9); the system's out-of-memory killer tells of no victim"
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return "crashed", shorten(f"the worker died with {how}{': ' + said if said else ''}")


def _causes(error: BaseException) -> list[BaseException]:
    found = []
    while (error := error.__cause__ or error.__context__) is not None:  # type: ignore[assignment]
        found.append(error)
    return found


def _sentence(error: BaseException) -> str:
    return shorten(sentence(error))


def shorten(text: str) -> str:
    """In one line, of a length that a table can show."""
    text = printable(text)
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."
