"""The calls that the documentation promises, as it writes them."""

from pathlib import Path

import pytest
import torch

import basedbench
from basedbench.engines import LocalEngine, Place
from basedbench.store.schema import PROMISED
from basedbench.training.cases import recall_cases
from tests.engines.conftest import Memory
from tests.training.conftest import tiny_suite


def test_results_and_frontier(tmp_path: Path) -> None:
    cases = recall_cases(tiny_suite([{"mixer": "based", "grid": {"d_model": 16, "feature_dim": [2, 4]}}], epochs=1))
    LocalEngine([Place("cpu", slots=2)], str(tmp_path / "results"), Memory()).run(cases)
    frame = basedbench.load(str(tmp_path / "results"), "recall")
    assert set(PROMISED["recall"]) <= set(frame.columns)
    assert len(frame) == 2
    front = basedbench.pareto_front(frame, x="state_bytes", y="accuracy")
    assert front["state_bytes"].is_monotonic_increasing
    assert frame["accuracy"].max() == front["accuracy"].max()


def test_errors_of_users() -> None:
    from basedbench.errors import UserError

    assert basedbench.UserError is UserError


def test_the_task() -> None:
    from basedbench.tasks.mqar import MQAR

    tokens, positions, targets = MQAR(vocab_size=8192, length=256, pairs=64).examples(
        seed=0, split="test", start=0, count=10, device="cpu"
    )
    assert (tokens.shape, positions.shape, targets.shape) == ((10, 256), (10, 64), (10, 64))


def test_the_mixers() -> None:
    from basedbench.mixers import get_mixer, mixer_names

    assert {"attention", "based", "mamba", "mamba2", "sliding_window", "linear_attention", "base_conv"} <= set(
        mixer_names()
    )
    mixer = get_mixer("based")(d_model=64, feature_dim=16)
    assert isinstance(mixer, torch.nn.Module)
    assert mixer(torch.randn(2, 5, 64)).shape == (2, 5, 64)


def test_the_kernels() -> None:
    from basedbench.kernels import (
        linear_cross_entropy,
        selective_scan,
        short_conv,
        sliding_window,
        ssd,
        taylor_attention,
    )

    q_BLHK, k_BLHK, v_BLHV = torch.randn(2, 7, 3, 16), torch.randn(2, 7, 3, 16), torch.randn(2, 7, 3, 64)
    y = taylor_attention(q_BLHK, k_BLHK, v_BLHV)
    assert y.shape == v_BLHV.shape
    assert all(map(callable, (linear_cross_entropy, selective_scan, short_conv, sliding_window, ssd)))


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        basedbench.lod  # noqa: B018
