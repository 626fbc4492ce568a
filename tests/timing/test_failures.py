"""Exceptions and deaths as statuses."""

from pathlib import Path

import pytest
import torch

from basedbench.timing import failures
from basedbench.timing.failures import LONGEST_REASON, classify, crash, last_words
from basedbench.timing.oom_kills import oom_kills


class InnerError(Exception):
    """An error of a compiler."""


InnerError.__module__ = "triton.compiler.errors"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), "oom"),
        (torch.OutOfMemoryError("no memory left"), "oom"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "oom"),
        (MemoryError(), "oom"),
        (NotImplementedError("cannot be captured"), "unsupported"),
        (ImportError("No module named 'tilelang'"), "unsupported"),
        (RuntimeError("No available kernel. Aborting execution."), "unsupported"),
        (RuntimeError("\"baddbmm\" not implemented for 'Half'"), "unsupported"),
        (InnerError("at 5:3: unsupported operand"), "compile_error"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "runtime_error"),
        (TypeError("missing argument"), "runtime_error"),
        (TypeError("unsupported operand type(s) for *: 'NoneType' and 'int'"), "runtime_error"),
        (ValueError("head_dim 48 is not supported"), "unsupported"),
    ],
)
def test_exceptions(error: Exception, status: str) -> None:
    found, reason = classify(error)
    assert found == status
    assert type(error).__name__ in reason


def test_a_reason_can_be_stored_and_shown_whatever_an_error_says() -> None:
    _, reason = classify(ValueError("r\u00e9sum\u00e9 \udcff of\n\ta file \x1b[31m"))
    assert reason == "ValueError: r\u00e9sum\u00e9 ? of a file ?[31m"
    assert reason.encode("utf-8")
    assert crash(1, "\x07\ud800 gone")[1].endswith("exit code 1: ?? gone")


def test_an_error_whose_text_fails_is_called_by_its_name() -> None:
    class SilentError(Exception):
        def __str__(self) -> str:
            raise KeyError("no text")

    assert classify(SilentError()) == ("runtime_error", "SilentError")


def test_a_wrapped_compiler_error_is_one() -> None:
    error = RuntimeError("launch failed")
    error.__cause__ = InnerError("bad")
    assert classify(error)[0] == "compile_error"


def test_reasons_are_one_short_line() -> None:
    _, reason = classify(RuntimeError("first line\n  second   line\n" + "x" * 1000))
    assert reason.startswith("RuntimeError: first line second line x")
    assert len(reason) == LONGEST_REASON


@pytest.mark.parametrize(
    ("code", "words", "expected"),
    [
        (-11, "", ("crashed", "the worker died with signal 11")),
        (3, "last words", ("crashed", "the worker died with exit code 3: last words")),
    ],
)
def test_deaths(code: int, words: str, expected: tuple[str, str]) -> None:
    assert crash(code, words) == expected


LOGGED = (
    "[W1129 05:42:06.123456789 socket.cpp:755] Warning: no IPv6 here (function connect)",
    "W1129 05:42:06.123000 4711 torch/_inductor/utils.py:1250] [0/0] Not enough SMs to use max_autotune_gemm mode",
    "I0102 03:04:05.678901 12 file.cc:3] ready",
    "INFO:mylib:loaded",
    "WARNING: no such cache",
    "2026-11-29 05:42:06,123 - mylib - INFO - loaded 3 tables",
    "2026-11-29 05:42:06 WARNING mylib: slow",
    "05:42:06,123 | WARNING | slow",
    "[05:42:06] INFO loaded",
    "mylib.tables - INFO - loaded",
    "\x1b[33mWARNING\x1b[0m mylib: slow",
    "[rank0]:[W1129 05:42:06.123456789 socket.cpp:755] Warning: no IPv6 here",
    "[2026-11-29 05:42:06,123] [INFO] [real_accelerator.py:254] Setting accelerator",
    "/a/mine.py:12: UserWarning: this is slow",
    "/a/mine.py:12: UserWarning: this is slow\n  warnings.warn('this is slow')",
)


@pytest.mark.parametrize("logged", LOGGED)
def test_mere_logging_is_no_last_word(logged: str) -> None:
    assert last_words(f"terminate called\n{logged}\n\n") == "terminate called"
    assert last_words(f"{logged}\n") == ""


@pytest.mark.parametrize(
    "told",
    [
        "E1129 05:42:06.123000 4711 torch/x.py:1] it failed",
        "ERROR:mylib:it failed",
        "2026-11-29 05:42:06,123 - mylib - ERROR - no INFO in this table",
        "05:42:06 CRITICAL after a WARNING: it failed",
        "mylib - ERROR - after a WARNING: it failed",
        "RuntimeError: INFORMATION lost",
        "double free or corruption (out)",
        "warning level exceeded: aborting",
        "Error: INFO is no name",
    ],
)
def test_errors_are_last_words(told: str) -> None:
    assert last_words(f"before\n{told}\n{LOGGED[0]}\n") == told


@pytest.mark.parametrize(("before", "after", "status"), [(2, 3, "oom"), (2, 2, "crashed"), (None, None, "crashed")])
def test_signal_9_is_a_lack_of_memory_where_the_system_says_so(
    before: int | None, after: int | None, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "oom_kills", lambda: after)
    found, reason = crash(-9, "", before)
    assert found == status
    assert "signal 9" in reason


EVENTS = "low 0\nhigh 0\nmax 7\noom 3\noom_kill {}\noom_group_kill 0\n"


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({}, None),
        ({"proc/vmstat": "pgfault 9\noom_kill 2\n"}, 2),
        ({"proc/vmstat": "oom_kill 2\n", "sys/fs/cgroup/memory.events": EVENTS.format(1)}, 1),
        (
            {
                "proc/self/cgroup": "0::/user.slice/job\n",
                "sys/fs/cgroup/memory.events": EVENTS.format(1),
                "sys/fs/cgroup/user.slice/job/memory.events": EVENTS.format(4),
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "9:pids:/a\n4:memory:/job\n0::/\n",
                "sys/fs/cgroup/memory/job/memory.oom_control": "under_oom 0\noom_kill 5\n",
            },
            5,
        ),
    ],
)
def test_kills_are_counted_where_this_process_is(tmp_path: Path, files: dict[str, str], kills: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert oom_kills(tmp_path) == kills


CUDA = """CUDA error: {}
Search for `cudaErrorThis' in https://docs.nvidia.com/cuda for more information.
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
"""


def by_a_user(text: str) -> RuntimeError:
    """Such an error with a line of a file of the user's own in its traceback."""
    own = compile(f"raise RuntimeError({CUDA.format(text)!r})", "mine.py", "exec")
    with pytest.raises(RuntimeError) as caught:
        exec(own, {"__name__": "mine"})
    return caught.value


def test_an_error_of_the_device_is_its_first_line_and_where_it_was_met() -> None:
    """The driver tells of an error at a later call."""
    said = classify(by_a_user("an illegal memory access was encountered"))[1]
    assert said == "RuntimeError: CUDA error: an illegal memory access was encountered (mine.py line 1 or before)"


def test_what_cannot_be_recorded_is_said_with_its_usual_cause() -> None:
    said = classify(by_a_user("operation not permitted when stream is capturing"))[1]
    assert ".item()" in said
    assert said.endswith("(mine.py line 1)")
