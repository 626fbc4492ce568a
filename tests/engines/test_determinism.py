"""Two runs of a case are equal to the last bit on a CPU; what `--deterministic` asks of workers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from basedbench.engines import LocalEngine, Place, determinism
from basedbench.mixers import mixer_names
from basedbench.store import load
from basedbench.training.cases import recall_cases
from tests.engines.conftest import Memory
from tests.training.conftest import tiny_suite, trained

BITS = ["accuracy_by_epoch", "loss_by_epoch", "accuracy_by_slice_by_epoch", "accuracy", "data_hash"]
SDP = ("flash", "mem_efficient", "cudnn")


def rows(root: Path, slots: int) -> pd.DataFrame:
    models = [{"mixer": name, "grid": {"d_model": 16}} for name in ("based", "attention", "mamba")]
    LocalEngine([Place("cpu", slots=slots)], str(root), Memory()).run(recall_cases(tiny_suite(models)))
    return load(root, "recall").set_index("case_id").sort_index()


def test_two_sweeps_give_equal_rows(tmp_path: Path) -> None:
    first, second, beside = rows(tmp_path / "1", 1), rows(tmp_path / "2", 1), rows(tmp_path / "3", 3)
    assert first[BITS].to_dict() == second[BITS].to_dict() == beside[BITS].to_dict()


@pytest.mark.parametrize("name", mixer_names())
def test_every_mixer_is_trained_to_the_same_bits(name: str) -> None:
    case = recall_cases(tiny_suite([{"mixer": name, "layers": [name], "grid": {"d_model": 64}}], epochs=1))[0]
    first, second = trained(case), trained(case)
    assert first.progress == second.progress
    assert all(map(torch.equal, first.model.parameters(), second.model.parameters()))


@pytest.fixture
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (determinism.VARIABLE, determinism.WORKSPACE[0]):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    enabled = {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in SDP}
    yield
    for name, value in enabled.items():
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(value)


@pytest.mark.usefixtures("as_before")
def test_only_where_asked_attention_is_plain() -> None:
    def fused() -> list[bool]:
        return [getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in SDP]

    before = fused()
    determinism.obey()
    assert fused() == before
    determinism.ask()
    determinism.obey()
    assert fused() == [False] * 3
    assert torch.backends.cuda.math_sdp_enabled()


@pytest.mark.usefixtures("as_before")
def test_rows_say_that_it_was_asked_for(tmp_path: Path) -> None:
    determinism.ask()
    for fingerprint in rows(tmp_path, 3)["fingerprint"]:
        assert json.loads(fingerprint)["environment"].items() >= {
            ("BASEDBENCH_DETERMINISTIC", "1"),
            ("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),
        }
