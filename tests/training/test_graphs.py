from typing import Any

import pytest
import torch

from basedbench.training.graphs import Recorder


class InvalidatedGraph:
    """A CUDA graph whose recording was broken off."""

    def register_generator_state(self, generator: torch.Generator) -> None: ...

    def capture_begin(self, **options: Any) -> None: ...

    def capture_end(self) -> None:
        raise RuntimeError("operation failed due to a previous error during capture")


def test_memory_that_runs_out_in_a_recording_is_said_to_be_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker hands such a run back to be tried with fewer beside it; any other error ends it."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", InvalidatedGraph)
    recorder = Recorder(torch.device("cpu"), torch.Generator())

    def step(part: int, size: int) -> None:
        raise torch.OutOfMemoryError("no memory left")

    with pytest.raises(torch.OutOfMemoryError):
        recorder._recorded(step, 0, 1)
