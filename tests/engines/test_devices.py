import pytest
import torch

from basedbench.cli.recall_input import settle_precision
from basedbench.config import load_suite
from basedbench.engines import resolve_devices
from basedbench.engines.devices import default_precision
from basedbench.errors import UserError
from basedbench.training.cases import recall_cases


def test_the_cpu_is_always_there() -> None:
    assert resolve_devices("cpu") == ["cpu"]


def test_auto_takes_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_devices("auto") == resolve_devices("cuda") == ["cuda:0", "cuda:1"]
    assert resolve_devices("cuda:1") == ["cuda:1"]
    with pytest.raises(UserError, match=r"no device 'cuda:2'.*cuda:0, cuda:1"):
        resolve_devices("cuda:2")


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_devices("auto") == ["cpu"]
    with pytest.raises(UserError, match="no CUDA GPU"):
        resolve_devices("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "tpu:0", ""])
def test_unknown_names(name: str) -> None:
    with pytest.raises(UserError, match="unknown device"):
        resolve_devices(name)


@pytest.mark.parametrize(
    ("devices", "precision"),
    [
        (["cpu"], "fp32"),
        (["cuda:0"], "bf16"),
        (["cuda:0", "cuda:2"], "bf16"),
        (["cuda:1"], "fp32"),
        (["cuda:0", "cuda:1"], "fp32"),
    ],
)
def test_the_fastest_precision_that_all_devices_have(
    devices: list[str], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    capability = {"cuda:0": (9, 0), "cuda:1": (7, 5), "cuda:2": (8, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability.__getitem__)
    assert default_precision(devices) == precision


def test_a_suite_that_leaves_its_precision_open_is_another_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the ids of runs that name the precision, and of no other runs than those without a device."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    suite = load_suite("figure2", "recall")
    named = {
        precision: suite.model_copy(update={"train": suite.train.model_copy(update={"precision": precision})})
        for precision in ("fp32", "bf16")
    }
    ids = {precision: [case.case_id for case in recall_cases(one)] for precision, one in named.items()}
    assert ids["fp32"] != ids["bf16"]
    assert [case.case_id for case in recall_cases(suite)] == ids["fp32"]
    assert [case.case_id for case in recall_cases(settle_precision(suite, ["cpu"]))] == ids["fp32"]
    assert [case.case_id for case in recall_cases(settle_precision(suite, ["cuda:0"]))] == ids["bf16"]
    assert settle_precision(named["fp32"], ["cuda:0"]) == named["fp32"]
