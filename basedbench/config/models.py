"""Whole language models in a throughput suite: presets x mode x batch x context x implementation.

A case is one model at one shape, and becomes one row:

    generation   one decode step of `batch` sequences, each the token number `length` of its sequence
    prefill      `batch` prompts of `length` tokens; `logits` are those of the last position, or of all

Presets and what may be overridden in them are the models' own (basedbench.models.language); they are looked up when
cases are chosen, not when a file is read.
"""

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from basedbench.config.grid import expand_grid
from basedbench.config.section import Section
from basedbench.config.timed import Timed, expand_grids, refused
from basedbench.errors import nearest

MODELS = "model"  # what stands in an operator's place in labels and pairs
ModelMode = Literal["generation", "prefill"]
Logits = Literal["last", "all"]
_AXES = ("mode", "dtype", "batch", "length", "logits")


class ModelCase(Timed):
    """One implementation of a model at one shape. `overrides` change the preset; only a prefill has `logits`.

    The weights are random, or those at `weights`, whose contents `checkpoint` stands for, wherever they lie.
    """

    model: str
    mode: ModelMode
    logits: Logits | None = None
    overrides: dict[str, Any] = {}
    checkpoint: str | None = None
    weights: Annotated[Path | None, Field(exclude=True)] = None

    def meaning(self, *without: str) -> dict[str, Any]:
        """As if there were no checkpoints where there is none: such cases have had their ids for long."""
        return super().meaning(*without, *(["checkpoint"] if self.checkpoint is None else []))

    @property
    def subject(self) -> str:
        return self.model

    @property
    def config(self) -> dict[str, Any]:
        """The preset and what is not as usual, as the row has it."""
        others = {"logits": self.logits, "checkpoint": self.checkpoint}
        return {"preset": self.model} | self.overrides | {name: value for name, value in others.items() if value}

    @property
    def place(self) -> tuple[Any, ...]:
        return (self.mode, self.dtype, self.batch, self.length, self.logits, self.cache, self.baseline_key)

    @property
    def shape(self) -> tuple[Any, ...]:
        return (self.overrides,)

    @property
    def columns(self) -> dict[str, Any]:
        names = ("model", "contender", "mode", "dtype", "batch", "length", "config")
        return {name: getattr(self, name) for name in names}

    @property
    def label(self) -> str:
        """`model/attention-1.3b generation bf16 128x1024 head_dim=64 by=sdpa-flash`; what is usual is left out."""
        name, *rest = model_words(self.model, self.config, self.contender)
        return " ".join([f"{MODELS}/{name}", self.mode, self.dtype, f"{self.batch}x{self.length}", *rest])

    @property
    def tokens(self) -> int:
        """A decode step makes one token for each sequence."""
        return self.batch if self.mode == "generation" else self.batch * self.length


class ModelsSection(Section):
    """Presets over a grid (or several grids) of shapes.

    A grid's keys are mode, dtype, batch, length and logits, those of `overrides` are options of the models; each a
    value, a list or a series. `baseline` names a contender of the same model, or `model/contender` of another one.
    """

    MAPPINGS: ClassVar[Mapping[str, Collection[str]]] = {"grid": _AXES}
    ELSE: ClassVar[str] = "options of the models belong under overrides"

    presets: Annotated[list[str], Field(min_length=1)]
    contenders: Annotated[list[str], Field(min_length=1)] = ["ours"]
    baseline: str
    grid: dict[str, Any] | list[dict[str, Any]]
    overrides: dict[str, Any] = {}

    @model_validator(mode="after")
    def _complete(self) -> "ModelsSection":
        for grid in self.grid if isinstance(self.grid, list) else [self.grid]:
            _check_keys(grid)
        for shape in self.shapes():
            refused(partial(ModelCase, contender="any", **shape))
        return self

    def shapes(self) -> Iterator[dict[str, Any]]:
        """Every shape of every preset as keyword arguments of `ModelCase`."""
        for name in self.presets:
            for overrides in expand_grid(self.overrides):
                for shape in expand_grids(self.grid):
                    logits = {"logits": shape.get("logits", "last") if shape["mode"] == "prefill" else None}
                    yield {**shape, **logits, "model": name, "overrides": overrides, "baseline": self.baseline}


def fields_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `config` of a row as fields of `ModelCase`."""
    own = ("logits", "checkpoint")
    overrides = {name: value for name, value in config.items() if name not in ("preset", *own)}
    return {name: config.get(name) for name in own} | {"overrides": overrides}


def model_words(model: str, config: Mapping[str, Any], contender: str) -> list[str]:
    """A model in words: its preset, what was changed in it, and who computes it unless that is `ours`."""
    return [model, *changes(config), *([] if contender == "ours" else [f"by={contender}"])]


def changes(config: Mapping[str, Any]) -> list[str]:
    """What is not as usual in a model's row or case: overrides of its preset, a checkpoint, all logits of a prompt."""
    changed = sorted(name for name in config if name not in ("preset", "logits"))
    words = [f"{name}={_text(config[name])}" for name in changed]
    return words + (["logits=all"] if config.get("logits") == "all" else [])


def _text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _check_keys(grid: dict[str, Any]) -> None:
    for name in grid:
        if name not in _AXES:
            raise ValueError(f"grid: models have no {name!r}; {nearest(name, _AXES)}")
    for name, example in (("mode", "|".join(get_args(ModelMode))), ("length", "1024")):
        if name not in grid:
            raise ValueError(f"grid: models need {name}; add e.g. {name}: {example.partition('|')[0]}")
