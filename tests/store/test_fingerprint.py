"""The fingerprint: what it names, and whom it does not."""

import importlib.util
import json
import re
import shutil
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from basedbench import __version__
from basedbench.errors import UserError
from basedbench.store import code_version, device_name, fingerprint

SOURCE = importlib.util.find_spec("basedbench.store.fingerprint").origin
KEYS = {"basedbench", "commit", "dirty", "python", "platform", "cpu", "cpu_count", "cpu_usable", "gpu", "driver"}
KEYS |= {"gpu_memory_bytes", "gpu_processors", "compute_capability", "torch", "cuda", "cudnn", "triton"}
KEYS |= {"peers", "environment"}


def test_it_names_everything_that_matters_as_json():
    found = fingerprint("cpu")
    assert set(found) == KEYS
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["basedbench"] == __version__
    assert found["torch"]
    assert found["cpu_count"] >= found["cpu_usable"] >= 1
    assert found["gpu"] is None
    assert set(found["peers"]) == {"flash-linear-attention", "mamba_ssm", "causal-conv1d", "flash-attn"}


def test_it_is_the_same_twice():
    assert fingerprint("cpu") == fingerprint("cpu")


def test_environment_variables_that_change_results_are_in_it(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.setenv("TRITON_PRINT_AUTOTUNING", "1")
    monkeypatch.setenv("EDITOR", "ed")
    found = fingerprint("cpu")["environment"]
    assert found["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert found["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert found["TRITON_PRINT_AUTOTUNING"] == "1"
    assert "EDITOR" not in found


def test_it_tells_no_user_host_or_path(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "node17.cluster.example")
    monkeypatch.setenv("USER", "alice")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/home/alice/.triton")
    monkeypatch.setenv("TRITON_CACHE_MANAGER", "alice_tools:Cache")
    monkeypatch.setenv("TORCH_STORE", "Node17:29500")
    monkeypatch.setenv("TORCH_HOME", r"C:\torch")
    found = fingerprint("cpu")
    text = json.dumps(found).lower()
    for secret in ("alice", "node17", "example", str(Path.home()).lower(), str(Path.cwd()).lower()):
        assert secret not in text
    assert not re.search(r'"[~/\\]', text)
    hidden = ("TRITON_CACHE_DIR", "TRITON_CACHE_MANAGER", "TORCH_STORE", "TORCH_HOME")
    assert {found["environment"][name] for name in hidden} == {"(set)"}


def test_the_code_version_names_the_commit():
    assert re.fullmatch(re.escape(__version__) + r"(\+g[0-9a-f]{12}(\.dirty)?)?", code_version())


def test_a_package_outside_a_checkout_has_no_commit(tmp_path):
    assert fresh_copy(tmp_path).code_version() == __version__


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_somebody_elses_repository_is_not_our_commit(tmp_path):
    git(tmp_path, "init")
    copied = fresh_copy(tmp_path / ".venv" / "site-packages")
    assert copied.code_version() == __version__


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_checkout_names_its_commit_and_whether_the_code_was_edited(tmp_path):
    copied = fresh_copy(tmp_path)
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "--message", "x")
    commit = git(tmp_path, "rev-parse", "--short=12", "HEAD")
    (tmp_path / "notes.txt").write_text("not code")
    assert copied.code_version() == f"{__version__}+g{commit}"
    (tmp_path / "basedbench" / "new_mixer.py").write_text("code")
    assert fresh_copy(tmp_path).code_version() == f"{__version__}+g{commit}.dirty"


def test_the_cpu_has_a_name():
    assert device_name("cpu") == fingerprint("cpu")["cpu"]
    assert device_name("cpu").strip()


def test_a_gpu_has_its_product_name(monkeypatch):
    import torch

    h200 = SimpleNamespace(
        name="NVIDIA H200", total_memory=150_000_000_000, multi_processor_count=132, major=9, minor=0
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: h200)
    found = fingerprint("cuda:0")
    assert device_name("cuda:0") == found["gpu"] == "NVIDIA H200"
    assert (found["compute_capability"], found["gpu_processors"]) == ("9.0", 132)
    assert found["gpu_memory_bytes"] == 150_000_000_000


@pytest.mark.parametrize("device", ["cuda:99", "tpu"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device):
    with pytest.raises(UserError, match=rf"no device '{device}' on this machine; there are: cpu"):
        device_name(device)


@pytest.mark.gpu
def test_the_fingerprint_of_a_real_gpu():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    found = fingerprint("cuda:0")
    assert found["gpu"] == torch.cuda.get_device_name(0)
    assert found["cuda"]
    assert re.fullmatch(r"[\d.]+", found["driver"])


def fresh_copy(root: Path):
    """The fingerprint module as if the package lay under `root`."""
    path = root / "basedbench" / "store" / "fingerprint.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(SOURCE, path)
    spec = importlib.util.spec_from_file_location("copied_fingerprint", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("told", "version"),
    [("0123456789abcdef", "+g0123456789ab"), ("0123456.dirty", "+g0123456.dirty"), ("not-a-commit", "")],
)
def test_a_copy_without_history_can_be_told_its_commit(tmp_path, monkeypatch, told, version):
    monkeypatch.setenv("BASEDBENCH_COMMIT", told)
    assert fresh_copy(tmp_path).code_version() == f"{__version__}{version}"
