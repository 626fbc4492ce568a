"""What a worker process tells the engine."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Epoch:
    """A run has finished an epoch (counted from 1)."""

    case_id: str
    epoch: int
    accuracy: float


@dataclass(frozen=True)
class Finished:
    """A run has ended and its row is stored."""

    case_id: str
    row: dict[str, Any]


@dataclass(frozen=True)
class Deferred:
    """A run did not fit beside the others; `fitting` runs are left on the device."""

    case_id: str
    fitting: int


@dataclass(frozen=True)
class Fatal:
    """The worker cannot go on (a full disk, say)."""

    message: str


@dataclass(frozen=True)
class Broken:
    """The device answers no call of this process any more, since a run did what is said; the process ends."""

    error: str


@dataclass(frozen=True)
class Notice:
    """Something that a user has to know; the worker goes on."""

    text: str


Message = Epoch | Finished | Deferred | Fatal | Broken | Notice
