"""Compiling a run's kernels side by side, on a GPU: none is missing, and what computes with garbage harms nothing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from basedbench.config import load_suite
from basedbench.engines.compile_ahead import READ_BY_PYTORCH, distinct_models, few_examples
from basedbench.engines.worker import device_answers, set_precision
from basedbench.timing.beside import compile_beside
from basedbench.training.cases import RecallCase, recall_cases
from basedbench.training.data import recall_data
from basedbench.training.run import RecallRun

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
triton = pytest.importorskip("triton")
SUITES = ("figure2-full", "modern")
DEVICE = "cuda:0"


def narrowest() -> dict[str, RecallCase]:
    """A case of every mixer in the suites for GPUs."""
    found: dict[str, RecallCase] = {}
    for suite in SUITES:
        for case in distinct_models(recall_cases(load_suite(suite))):
            if case.mixer not in found or case.d_model < found[case.mixer].d_model:
                found[case.mixer] = case
    return found


CASES = narrowest()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("mixer", CASES)
def test_every_step_of_a_run_is_compiled_for_nothing_first(
    mixer: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(CASES[mixer], train=CASES[mixer].train.model_copy(update={"precision": precision}))
    set_precision(precision)
    few, missing = few_examples(case), list[str]()

    def before(steps: Callable[[], Any]) -> None:
        compile_beside(steps, DEVICE, READ_BY_PYTORCH)
        monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", lambda **asked: missing.append(asked["repr"]))

    RecallRun(few, recall_data(few, DEVICE), DEVICE).rehearse(before)
    RecallRun(case, recall_data(case, DEVICE), DEVICE).rehearse()
    torch.cuda.synchronize()
    assert device_answers(DEVICE)
    assert not missing
