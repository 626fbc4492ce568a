"""What a result depends on besides the case: hardware, drivers, library versions, code, environment variables.

Times may be compared if the fingerprints are equal but for the code (`basedbench`, `commit`, `dirty`). There are no
user names, host names or paths in it: rows are meant to be shared.
"""

import os
import platform
import re
import socket
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from basedbench import __version__
from basedbench.errors import UserError

PEERS = ("flash-linear-attention", "mamba_ssm", "causal-conv1d", "flash-attn")
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUBLAS_WORKSPACE_CONFIG",
    "BASEDBENCH_DETERMINISTIC",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "KMP_AFFINITY",
)
PREFIXES = ("TRITON_", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_")
_CODE = ("basedbench", "kernels", "suites", "pyproject.toml")


def fingerprint(device: str = "cpu") -> dict[str, Any]:
    """The machine, the software and the code as plain JSON values. Raises UserError for a device that is not there."""
    import torch

    commit, dirty = _commit()
    return {
        "basedbench": __version__,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "cpu_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **_gpu(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": _installed("triton"),
        "peers": {name: _installed(name) for name in PEERS},
        "environment": environment(os.environ),
    }


def device_name(device: str) -> str:
    """The product's name, "NVIDIA H200" or that of the CPU. Raises UserError for a device that is not there."""
    return _gpu(device)["gpu"] or cpu_model()


@cache
def code_version() -> str:
    """The version of basedbench, with the commit if it runs from a checkout: `0.1.0+g<commit>`, `.dirty` if edited."""
    commit, dirty = _commit()
    if commit is None:
        return __version__
    return f"{__version__}+g{commit}{'.dirty' if dirty else ''}"


@cache
def cpu_model() -> str:
    """The CPU's product name, or its architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    if platform.system() == "Darwin":
        names = [_output("sysctl", "-n", "machdep.cpu.brand_string")]
    return " ".join(names[0].split()) if names and names[0] else platform.machine()


def environment(variables: "os._Environ[str] | dict[str, str]") -> dict[str, str]:
    """The variables that change what is measured. A value that may say where or who is only said to be set."""
    matter = sorted(name for name in variables if name in VARIABLES or name.startswith(PREFIXES))
    return {name: _anonymous(variables[name], variables) for name in matter}


def _anonymous(value: str, variables: "os._Environ[str] | dict[str, str]") -> str:
    names = {variables.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "HOSTNAME")}
    names |= {socket.gethostname(), socket.gethostname().split(".")[0]}
    private = any(len(name) > 2 and name.lower() in value.lower() for name in names)
    return value if re.fullmatch(r"[\w.,:;=+ \[\]-]*", value) and not private else "(set)"


def _gpu(device: str) -> dict[str, Any]:
    """The GPU of a device; all null for the CPU."""
    fields = ("gpu", "gpu_memory_bytes", "gpu_processors", "compute_capability", "driver")
    if device == "cpu":
        return dict.fromkeys(fields)
    import torch

    try:
        properties = torch.cuda.get_device_properties(torch.device(device))
    except (RuntimeError, AssertionError, ValueError) as error:
        count = torch.cuda.device_count()
        there = ", ".join(["cpu", *(f"cuda:{index}" for index in range(count))])
        raise UserError(f"there is no device {device!r} on this machine; there are: {there}.") from error
    capability = f"{properties.major}.{properties.minor}"
    values = (properties.name, properties.total_memory, properties.multi_processor_count, capability, _driver())
    return dict(zip(fields, values, strict=True))


@cache
def _driver() -> str | None:
    """The version of the NVIDIA driver, if NVML can be asked."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except (ImportError, OSError, RuntimeError):
        return None
    except pynvml.NVMLError:
        return None
    answer = pynvml.nvmlSystemGetDriverVersion()
    pynvml.nvmlShutdown()
    return answer.decode() if isinstance(answer, bytes) else answer


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _commit() -> tuple[str | None, bool]:
    """The commit of the checkout this runs from and whether its code was edited; (None, False) outside of one.

    A copy of the code without its history (in a container, say) can be told its commit in BASEDBENCH_COMMIT.
    """
    if told := re.fullmatch(r"([0-9a-f]{7,40})(\.dirty)?", os.environ.get("BASEDBENCH_COMMIT", "")):
        return told[1][:12], told[2] is not None
    here = Path(__file__).resolve()
    # An installed package may lie inside somebody else's repository: only one that tracks this file counts.
    if not _output("git", "-C", str(here.parent), "ls-files", here.name):
        return None, False
    commit = _output("git", "-C", str(here.parent), "rev-parse", "--short=12", "HEAD")
    root = here.parents[2]
    edited = _output("git", "-C", str(root), "status", "--porcelain", "--", *_CODE)
    return (commit, bool(edited)) if commit else (None, False)


def _output(*command: str) -> str:
    """What a command prints; nothing if it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
