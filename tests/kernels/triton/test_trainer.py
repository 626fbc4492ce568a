"""A run's own steps through the kernels, guarded: whole batches, tails, the last of an epoch, and evaluation.

The batch is small; what decides masks, strides and tiles (lengths, widths, states, windows, odd numbers of rows) is the
recipe's.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from basedbench import kernels
from basedbench.config import RecallSuite
from basedbench.kernels import ssd_plan
from basedbench.kernels.embedding import sorted_places
from basedbench.models.recall import packs
from basedbench.training.cases import recall_cases
from basedbench.training.data import recall_data, split_sizes
from basedbench.training.packed import token_blocks
from basedbench.training.run import RecallRun, Weights
from tests.kernels.triton.conftest import interpreted

pytestmark = pytest.mark.skipif(not interpreted, reason="only interpreted kernels are guarded")

BATCH, TAIL = 3, 2
KERNELS = str(Path(kernels.__file__).parent)
ALONE = {"mamba", "mamba2", "hyena", "h3"}
QUICK = [
    ("attention", {"d_model": 32}),
    ("based", {"d_model": 48, "feature_dim": 16}),
    ("sliding_window", {"d_model": 32, "window": 8}),
    pytest.param("mamba", {"d_model": 16, "d_state": 8}, marks=pytest.mark.slow),
    pytest.param("mamba2", {"d_model": 64, "d_state": 8}, marks=pytest.mark.slow),
    pytest.param("hyena", {"d_model": 32}, marks=pytest.mark.slow),
    pytest.param("h3", {"d_model": 32}, marks=pytest.mark.slow),
]
RECIPE = [
    *(("attention", {"d_model": d}) for d in (64, 128)),
    *(("based", {"d_model": d, "feature_dim": f}) for d, f in ((48, 8), (64, 16), (128, 24))),
    *(("sliding_window", {"d_model": 128, "window": w}) for w in (8, 16, 32, 64, 128, 256, 512, 1024)),
    *(("mamba", {"d_model": d, "d_state": n}) for d, n in ((64, 8), (128, 16), (256, 24))),
    *(("mamba2", {"d_model": d, "d_state": n}) for d, n in ((64, 8), (128, 16), (256, 24))),
    *((mixer, {"d_model": d}) for mixer in ("hyena", "h3") for d in (64, 256)),
]


def suite(mixer: str, options: dict[str, Any], shapes: list[tuple[int, int]], vocab_size: int) -> RecallSuite:
    segments = [{"length": length, "pairs": pairs, "examples": 2 * BATCH + TAIL} for length, pairs in shapes]
    train = {"segments": segments, "batch_size": BATCH, "epochs": 1, "learning_rates": [0.01], "weight_decay": 0.1}
    test = {"segments": [{"length": length, "pairs": pairs} for length, pairs in shapes], "examples": TAIL}
    layers = [mixer, mixer] if mixer in ALONE else ["base_conv", mixer]
    model = {"mixer": mixer, "layers": layers, "grid": options}
    return RecallSuite.model_validate(
        {"kind": "recall", "name": "guarded", "task": {"vocab_size": vocab_size}, "train": train, "test": test}
        | {"models": [model]}
    )


def runs(chosen: RecallSuite) -> tuple[RecallRun, RecallRun]:
    """The suite's run twice, without dropout: its optimizer, places and packed batches as on a GPU, and as on a CPU."""
    (case,) = recall_cases(chosen)
    case = replace(case, train=case.train.model_copy(update={"embed_dropout": 0.0}))
    packed = packs(case.d_model, case.layers)
    ours, reference = (RecallRun(case, recall_data(case, "cpu", packed=one), "cpu") for one in (packed, False))
    ours.optimizer._moments = ours.optimizer._flat(None)
    ours.weights = Weights(ours.model, ours.optimizer)
    sizes, words = split_sizes(2 * BATCH + TAIL, BATCH), chosen.task.vocab_size
    train = [
        replace(part, places=sorted_places(token_blocks(part.tokens_NL, sizes, part.packed), words))
        for part in ours.data.train
    ]
    ours.data = replace(ours.data, train=tuple(train))
    return ours, reference


@pytest.fixture
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Call something with every operator taking its kernels."""

    def call(function: Callable[[], None]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "is_cuda", property(chooses_kernels))
            function()

    return call


def chooses_kernels(tensor: torch.Tensor) -> bool:
    """True where an operator chooses its implementation, and nowhere else."""
    path = Path(sys._getframe(1).f_code.co_filename)
    return str(path.parent) == KERNELS and not any(word in path.name for word in ("triton", "gluon"))


def play(run: RecallRun) -> None:
    """What `_record` and `_epoch` do, without a graph: every kind of step once, back to the start, and the epoch."""
    changed = [*run.optimizer.tensors(), run.loss, run.hits, run.test_losses, *run.cursors, *run.test_cursors]
    saved = [tensor.detach().clone() for tensor in changed]
    run.rehearse()
    with torch.no_grad():
        torch._foreach_copy_([tensor.detach() for tensor in changed], saved)
    for _ in run._epoch(0):
        pass


@pytest.mark.parametrize(("mixer", "options"), QUICK)
def test_an_epoch_stays_in_its_tensors(mixer, options, by_kernels):
    """Whole batches have twice as many tokens as there are words, the tail has not."""
    ours, reference = runs(suite(mixer, options, [(32, 3)], 40))
    play(reference)
    by_kernels(lambda: play(ours))
    assert ours.progress.losses == pytest.approx(reference.progress.losses, rel=1e-3)
    assert [int(cursor) for cursor in ours.cursors] == [part.count for part in ours.data.train]


@pytest.mark.slow
def test_an_epoch_of_walks_stays_in_its_tensors(by_kernels, monkeypatch):
    """SSD as with so many sequences that a warp each fills the device."""
    monkeypatch.setattr(ssd_plan, "WALKS", 1)
    test_an_epoch_stays_in_its_tensors("mamba2", {"d_model": 64, "d_state": 8}, by_kernels)


@pytest.mark.slow
@pytest.mark.parametrize(("mixer", "options"), RECIPE)
def test_steps_of_the_recipe_stay_in_their_tensors(mixer, options, by_kernels):
    """Whole batch, tail and evaluation at the recipe's longest training length."""
    ours, _ = runs(suite(mixer, options, [(256, 16)], 700))
    by_kernels(ours.rehearse)
    assert all(parameter.isfinite().all() for parameter in ours.model.parameters())
