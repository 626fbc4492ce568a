"""What has been rehearsed on this machine: the next sweep need not call it once more to find its kernels compiled.

A list of case ids stands in Triton's own cache, and goes when that is emptied. There is one for each origin: device,
versions and the source of every kernel and contender, edited or not.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import basedbench
from basedbench import contenders, kernels
from basedbench.config import case_id
from basedbench.config.throughput import AnyCase
from basedbench.engines import kernel_keys

_TOLD = ("gpu", "compute_capability", "driver", "python", "torch", "cuda", "cudnn", "triton", "peers", "environment")


class Rehearsed:
    """The cases of one origin, in `folder` if it can be written."""

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], plugins: Sequence[str]) -> None:
        sources = [*map(Path, plugins), *_sources()]
        origin = {name: fingerprint[name] for name in _TOLD} | {"source": _digest(sources)}
        self.file = folder / f"basedbench-rehearsed-{case_id(origin)}"

    def new(self, cases: Iterable[AnyCase]) -> list[AnyCase]:
        """Those of them that were not rehearsed before."""
        try:
            known = set(self.file.read_text(errors="replace").split())
        except OSError:
            known = set()
        return [case for case in cases if case.id not in known]

    def add(self, cases: Iterable[AnyCase]) -> None:
        """Remember them. What failed is among them: it fails in its own worker, too."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as file:
                file.write("".join(f"{case.id}\n" for case in cases))
        except OSError:
            pass  # they are rehearsed once more


def cache_folder() -> Path:
    """Where Triton keeps what it compiled."""
    home = Path(os.environ.get("TRITON_HOME") or Path.home())
    return Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")


def _sources() -> list[Path]:
    """Every file that a kernel may come from, or the key by which it is found."""
    folders = [Path(next(iter(package.__path__))) for package in (kernels, contenders)]
    single = [Path(str(module.__file__)) for module in (basedbench, kernel_keys)]
    return [*single, *(path for folder in folders for path in sorted(folder.rglob("*.py")))]


def _digest(files: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for path in files:
        found.update(path.read_bytes())
    return found.hexdigest()
