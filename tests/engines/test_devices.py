import pytest
import torch

from basedbench.engines import resolve_devices
from basedbench.errors import UserError


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
