"""The user's own code and the standard streams."""

import sys

import pytest

from basedbench.streams import stdout_to_stderr


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_is_none_to_keep_apart(monkeypatch: pytest.MonkeyPatch, closed: str) -> None:
    monkeypatch.setattr(sys, closed, None)
    with stdout_to_stderr():
        assert getattr(sys, closed) is None
