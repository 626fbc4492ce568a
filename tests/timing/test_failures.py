"""Exceptions and deaths as statuses."""

import pytest
import torch

from basedbench.timing.failures import LONGEST_REASON, classify, crash


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
        (-9, "", ("oom", "the worker was killed (signal 9), most often by the system's out-of-memory killer")),
        (-11, "", ("crashed", "the worker died with signal 11")),
        (3, "last words", ("crashed", "the worker died with exit code 3: last words")),
    ],
)
def test_deaths(code: int, words: str, expected: tuple[str, str]) -> None:
    assert crash(code, words) == expected


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
