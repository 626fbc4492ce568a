"""What only a GPU can show: recorded steps do what the called ones do, and runs beside each other do not meet."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from basedbench.config.recall import Precision
from basedbench.engines import LocalEngine, Place
from basedbench.kernels import tall_matmul
from basedbench.store import load
from basedbench.training.cases import RecallCase, recall_cases
from basedbench.training.data import recall_data
from basedbench.training.run import RecallRun, Weights
from tests.engines.conftest import Memory
from tests.training.conftest import tiny_suite

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

MIXERS = ["based", "attention", "sliding_window", "linear_attention"]


def cases() -> list[RecallCase]:
    return recall_cases(tiny_suite([{"mixer": name, "grid": {"d_model": 32}} for name in MIXERS]))


def trained_on_gpu(case: RecallCase, record: bool) -> RecallRun:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run = RecallRun(case, recall_data(case, "cuda:0"), "cuda:0")
        if not record:
            run._record = lambda: iter(())  # type: ignore[method-assign]
        for _ in run.train():
            pass
    return run


@pytest.mark.parametrize("index", range(len(MIXERS)))
def test_replayed_steps_are_the_called_ones(index: int) -> None:
    case = cases()[index]
    replayed, called = trained_on_gpu(case, True), trained_on_gpu(case, False)
    assert replayed.progress.losses == pytest.approx(called.progress.losses, rel=1e-5)
    for a, b in zip(replayed.model.parameters(), called.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_beside_others_a_run_is_the_run_alone(tmp_path: Path) -> None:
    frames = []
    for slots in (1, len(MIXERS)):
        root = tmp_path / str(slots)
        LocalEngine([Place("cuda:0", slots=slots)], str(root), Memory()).run(cases())
        frames.append(load(root, "recall").set_index("mixer").sort_index())
    alone, beside = frames
    assert alone["status"].tolist() == ["ok"] * len(MIXERS)
    assert alone["loss_by_epoch"].tolist() == beside["loss_by_epoch"].tolist()
    assert alone["accuracy_by_epoch"].tolist() == beside["accuracy_by_epoch"].tolist()


def gradients(case: RecallCase, device: str, copies: bool = True) -> list[torch.Tensor]:
    """Of the first step, by parameter."""
    run = RecallRun(case, recall_data(case, device), device)
    if not copies:
        run.optimizer.copies = []
        run.weights = Weights(run.model, run.optimizer)
    found: list[torch.Tensor] = []
    step = run.optimizer.step
    run.optimizer.step = lambda terms: found.extend(  # type: ignore[method-assign,assignment]
        sum(term.double() for term in part) for part in terms
    )
    run.train_batch(0, case.train.batch_size)
    run.optimizer.step = step  # type: ignore[method-assign]
    return [gradient.cpu() for gradient in found]


def without_dropout(case: RecallCase, precision: Precision) -> RecallCase:
    return replace(case, train=case.train.model_copy(update={"embed_dropout": 0.0, "precision": precision}))


@pytest.mark.parametrize("name", ["based", "sliding_window", "linear_attention", "mamba", "mamba2", "hyena", "h3"])
def test_a_step_is_the_cpus(name: str) -> None:
    """Every fused operator of the trainer against the references, through whole models."""
    case = without_dropout(recall_cases(tiny_suite([{"mixer": name, "grid": {"d_model": 32}}]))[0], "fp32")
    for mine, right in zip(gradients(case, "cuda:0"), gradients(case, "cpu"), strict=True):
        assert (mine - right).norm() <= 1e-5 * right.norm() + 1e-9


@pytest.mark.parametrize("name", ["based", "sliding_window", "mamba", "mamba2"])
def test_half_precision_copies_are_autocast(name: str) -> None:
    case = without_dropout(recall_cases(tiny_suite([{"mixer": name, "grid": {"d_model": 32}}]))[0], "bf16")
    for mine, other in zip(gradients(case, "cuda:0"), gradients(case, "cuda:0", copies=False), strict=True):
        assert (mine - other).norm() <= 1e-2 * other.norm() + 1e-9


@pytest.mark.parametrize("name", ["based", "sliding_window", "mamba", "mamba2", "hyena", "h3"])
def test_products_for_company_are_pytorchs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2,000 tokens and more."""
    segments = [{"length": 64, "pairs": 4, "examples": 128}]
    suite = tiny_suite([{"mixer": name, "grid": {"d_model": 64}}], batch_size=128, segments=segments)
    suite = suite.model_copy(update={"task": suite.task.model_copy(update={"vocab_size": 128})})
    case = without_dropout(recall_cases(suite)[0], "bf16")
    taken, make = list[str](), tall_matmul.make

    def noted(product: tall_matmul.Product) -> torch.Tensor | None:
        made = make(product)
        if made is not None:
            taken.append("sum" if product.a.shape[1] >= tall_matmul.MANY else "tall")
        return made

    monkeypatch.setattr(tall_matmul, "make", noted)
    ours = gradients(case, "cuda:0")
    assert taken.count("tall") >= 4  # there and back through two layers
    assert taken.count("sum") >= 2
    monkeypatch.setattr(tall_matmul, "make", lambda product: None)
    for mine, other in zip(ours, gradients(case, "cuda:0"), strict=True):
        assert (mine - other).norm() <= 1e-2 * other.norm() + 1e-9
