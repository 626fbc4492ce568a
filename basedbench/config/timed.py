"""What every timed case has, whether of one operator or of a whole model: who, how many, where, against whom."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

from pydantic import ValidationError

from basedbench.config.grid import expand_grid
from basedbench.config.identity import case_id
from basedbench.config.section import Count, Section
from basedbench.errors import plain, written

Dtype = Literal["fp32", "bf16", "fp16"]
Cache = Literal["cold", "hot"]


class Timed(Section):
    """One contender at one shape. `device` is the kind of device, not which one; no `threads` means torch's default."""

    contender: str
    dtype: Dtype = "fp32"
    batch: Count = 1
    length: Count
    cache: Cache = "hot"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: Count | None = None
    baseline: str

    @property
    def subject(self) -> str:
        """The operator or the model that is timed."""
        raise NotImplementedError

    @property
    def tokens(self) -> int:
        """Tokens that one call processes."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """What `--filter` matches."""
        raise NotImplementedError

    @property
    def place(self) -> tuple[Any, ...]:
        """Cases that are compared with each other have the same."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[Any, ...]:
        """What tells cases of one subject at one place apart, besides the contender."""
        raise NotImplementedError

    @property
    def columns(self) -> dict[str, Any]:
        """What the case is, as the columns of its row."""
        raise NotImplementedError

    @property
    def implementation(self) -> tuple[str, str]:
        """(subject, contender): what has a worker process of its own."""
        return self.subject, self.contender

    @property
    def id(self) -> str:
        """The case's stable identity. What it is compared with does not change what it is."""
        return case_id(self.meaning())

    @property
    def problem_id(self) -> str:
        """The same for every contender: what the inputs are drawn from."""
        return case_id(self.meaning("contender", "cache", "device", "threads"))

    def meaning(self, *without: str) -> dict[str, Any]:
        """What identities are made of: all but the baseline and these fields."""
        return self.model_dump(exclude={"baseline", *without})

    @property
    def baseline_key(self) -> tuple[str, str]:
        """(subject, contender) that this case is measured against."""
        subject, _, contender = self.baseline.rpartition("/")
        return subject or self.subject, contender


def expand_grids(grids: dict[str, Any] | list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The settings of one grid, or of several one after the other."""
    for grid in grids if isinstance(grids, list) else [grids]:
        yield from expand_grid(grid)


def refused(make: Callable[[], object]) -> None:
    """Make a case of a grid's values; ValueError with the first thing that is wrong with them, in a few words."""
    try:
        make()
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"{part}: " for part in first["loc"])
        given = "" if first["type"] == "value_error" else f", got {written(first['input'])}"
        raise ValueError(f"grid: {place}{plain(first)}{given}") from None
