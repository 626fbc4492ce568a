import gc
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


def test_memory_that_is_only_kept_for_later_is_given_back_for_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch frees its caches when memory runs out, but not while something is recorded."""
    noted: list[str] = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(noted))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: noted.append("empty"))

    def step(part: int, size: int) -> None:
        if "empty" not in noted:
            raise torch.OutOfMemoryError("no memory left")

    Recorder(torch.device("cpu"), torch.Generator())._recorded(step, 0, 1)
    assert noted == ["begin", "end", "empty", "begin", "end"]


class Graph:
    """A CUDA graph that records nothing."""

    def __init__(self, noted: list[str]) -> None:
        self.noted = noted

    def register_generator_state(self, generator: torch.Generator) -> None: ...

    def capture_begin(self, **options: Any) -> None:
        self.noted.append("begin")

    def capture_end(self) -> None:
        self.noted.append("end")


def test_recording_is_done_in_pieces_and_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[str] = []
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(noted))
    generator, weight = torch.Generator().manual_seed(3), torch.zeros(2)
    recorder, state = Recorder(torch.device("cuda"), generator), generator.get_state()

    def step(part: int, size: int) -> None:
        weight.add_(size)
        torch.rand(1, generator=generator)
        noted.append(f"step {part}, collecting {gc.isenabled()}")

    pieces = []
    for _ in recorder.record([(step, 0, 8), (step, 1, 4)], [weight]):
        pieces.append(noted.copy())
        noted.clear()
        assert gc.isenabled()
        if len(pieces) == 2:
            assert weight.tolist() == [12, 12]
    warm = [[f"step {part}, collecting True"] for part in (0, 1)]
    assert pieces == warm + [["begin", f"step {part}, collecting False", "end"] for part in (0, 1)]
    assert weight.tolist() == [12, 12]  # of the recordings, which on a GPU do nothing yet
    generator.set_state(state)
    assert set(recorder._graphs) == {("step", 0, 8), ("step", 1, 4)}
