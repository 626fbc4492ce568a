"""A recall suite so small that a run takes a fraction of a second."""

from collections.abc import Callable
from typing import Any

import pytest

from basedbench.config import RecallSuite
from basedbench.training.cases import RecallCase, recall_cases
from basedbench.training.data import recall_data
from basedbench.training.run import RecallRun

MakeCase = Callable[..., RecallCase]


def tiny_suite(models: list[dict[str, Any]] | None = None, **train: Any) -> RecallSuite:
    """A suite on a vocabulary of 64; keyword arguments change the recipe."""
    recipe = {
        "segments": [{"length": 16, "pairs": 2, "examples": 40}, {"length": 32, "pairs": 4, "examples": 16}],
        "batch_size": 16,
        "epochs": 2,
        "learning_rates": [0.01],
        "weight_decay": 0.1,
    }
    return RecallSuite.model_validate(
        {
            "kind": "recall",
            "name": "tiny",
            "task": {"vocab_size": 64},
            "train": recipe | train,
            "test": {"segments": [{"length": 16, "pairs": 2}, {"length": 32, "pairs": 8}], "examples": 20},
            "models": models or [{"mixer": "based", "grid": {"d_model": 16, "feature_dim": 4}}],
        }
    )


@pytest.fixture
def make_case() -> MakeCase:
    """The first case of a tiny suite."""
    return lambda *arguments, **train: recall_cases(tiny_suite(*arguments, **train))[0]


def trained(case: RecallCase) -> RecallRun:
    """The case after training to its end on the CPU."""
    run = RecallRun(case, recall_data(case, "cpu"), "cpu")
    for _ in run.train():
        pass
    return run
