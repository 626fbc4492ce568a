"""Mixers that misbehave, as a user's plugin file, and a listener that remembers."""

from pathlib import Path
from typing import Any

import pytest

from basedbench.plugins import load_plugin
from basedbench.training.cases import RecallCase
from tests.timing.conftest import MockClock

PLUGIN = """
import os
import signal
import threading
import time
import torch
from basedbench.engines import worker
from basedbench.errors import UserError
from basedbench.mixers import Mixer, State, register


class Broken(Mixer):
    def init_state(self, batch_size, max_length, dtype=torch.float32, device=None) -> State:
        return {"x": torch.zeros(batch_size, 1, dtype=dtype, device=device)}


@register
class Poison(Broken):
    name = "poison"

    def forward(self, x_BLD):
        return x_BLD * float("nan")


@register
class Raises(Broken):
    name = "raises"

    def forward(self, x_BLD):
        raise RuntimeError("this mixer never works")


@register
class Unbuilt(Broken):
    name = "unbuilt"

    def __init__(self, d_model, **options):
        raise ValueError("no such width")


@register
class Stateless(Broken):
    name = "stateless"

    def forward(self, x_BLD):
        return x_BLD

    def init_state(self, batch_size, max_length):
        return {}


@register
class Refuses(Broken):
    name = "refuses"

    def forward(self, x_BLD):
        raise UserError("not with these numbers")


@register
class Kinless(Broken):
    name = "kinless"

    @classmethod
    def family_of(cls, options):
        raise KeyError("no family")


@register
class Numbered(Broken):
    name = "numbered"

    @classmethod
    def family_of(cls, options):
        return 5


@register
class Undecided(Broken):
    name = "undecided"

    @classmethod
    def init_matters(cls, options):
        raise KeyError("who knows")


@register
class Uncounted(Broken):
    name = "uncounted"

    def zoology_elements(self, length):
        return 2**63


@register
class Meddles(Broken):
    name = "meddles"

    def forward(self, x_BLD):
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        return x_BLD


@register
class Exhausts(Broken):
    name = "exhausts"

    def forward(self, x_BLD):
        raise torch.OutOfMemoryError("no memory left")


@register
class Hungry(Broken):
    name = "hungry"

    def forward(self, x_BLD):
        raise MemoryError


@register
class Starved(Broken):
    name = "starved"

    def forward(self, x_BLD):
        os.kill(os.getpid(), 9)


@register
class Greedy(Broken):
    name = "greedy"
    tried = 0

    def forward(self, x_BLD):
        Greedy.tried += 1
        if Greedy.tried == 1:
            raise torch.OutOfMemoryError("no memory left beside the others")
        return x_BLD


@register
class Breaks(Broken):
    name = "breaks"

    def forward(self, x_BLD):
        worker.device_answers = lambda device: False
        raise RuntimeError("an illegal memory access was encountered")


@register
class Sleeps(Broken):
    name = "sleeps"

    def forward(self, x_BLD):
        time.sleep(600)


@register
class Hangs(Broken):
    name = "hangs"

    def forward(self, x_BLD):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)


@register
class Dies(Broken):
    name = "dies"

    def forward(self, x_BLD):
        os._exit(7)


@register
class Unknown(Broken):
    name = "unknown"

    def forward(self, x_BLD):
        os._exit(255)


@register
class Cancels(Broken):
    name = "cancels"

    def forward(self, x_BLD):
        raise type("Cancelled", (BaseException,), {})("never mind")


@register
class Forks(Broken):
    name = "forks"

    def forward(self, x_BLD):
        os.fork()
        return x_BLD * 1


@register
class Threads(Broken):
    name = "threads"

    def forward(self, x_BLD):
        threading.Thread(target=time.sleep, args=(600,)).start()
        return x_BLD * 1
"""


@pytest.fixture
def clock() -> MockClock:
    return MockClock()


@pytest.fixture
def plugin(tmp_path: Path, own_registries: None) -> Path:
    """The file, loaded in this process too."""
    path = tmp_path / "misbehaving.py"
    path.write_text(PLUGIN)
    load_plugin(path)
    return path


class Memory:
    """What an engine reported."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.epochs: list[tuple[str, int]] = []
        self.rows: dict[str, dict[str, Any]] = {}

    def started(self, case: RecallCase) -> None:
        self.began.append(case.mixer)

    def epoch(self, case: RecallCase, epoch: int, accuracy: float) -> None:
        self.epochs.append((case.mixer, epoch))

    def finished(self, case: RecallCase, row: dict[str, Any]) -> None:
        self.rows[case.mixer] = row
