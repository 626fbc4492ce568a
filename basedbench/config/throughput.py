"""A throughput suite as typed data: which operators are timed, at which shapes, by whom, against which baseline.

A case is one contender at one shape, and becomes one row. Every shape has the same axes; what they are for each
operator:

    attention, taylor_attention,    heads H, key_dim K, value_dim V; decode: `length` is the context already read
    linear_attention, sliding_window
    delta_rule,                     heads H, key_dim K, value_dim V
    gated_linear_attention
    ssd                             heads H, key_dim = states N, value_dim = head width P
    selective_scan                  key_dim = states N, value_dim = channels D
    wkv4, short_conv                value_dim = channels D
    linear_cross_entropy            key_dim = model width D, value_dim = vocabulary V; batch x length positions

An axis that an operator does not have is 1. Whole models stand in a section of their own: see `models`.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from basedbench.config.models import MODELS, ModelCase, ModelsSection
from basedbench.config.section import MOST, Count, Real, Section, Suite
from basedbench.config.timed import Cache, Timed, expand_grids, refused
from basedbench.errors import nearest

Mode = Literal["fwd", "fwd_bwd", "decode"]

# Per operator: the axes it has besides batch and length, and its options with their defaults.
OPERATOR_AXES: dict[str, tuple[str, ...]] = {
    "attention": ("heads", "key_dim", "value_dim"),
    "taylor_attention": ("heads", "key_dim", "value_dim"),
    "linear_attention": ("heads", "key_dim", "value_dim"),
    "sliding_window": ("heads", "key_dim", "value_dim"),
    "selective_scan": ("key_dim", "value_dim"),
    "ssd": ("heads", "key_dim", "value_dim"),
    "delta_rule": ("heads", "key_dim", "value_dim"),
    "gated_linear_attention": ("heads", "key_dim", "value_dim"),
    "wkv4": ("value_dim",),
    "short_conv": ("value_dim",),
    "linear_cross_entropy": ("key_dim", "value_dim"),
}
_DECAYS = ("none", "head", "channel")
OPERATOR_OPTIONS: dict[str, dict[str, Any]] = {
    "sliding_window": {"window": 64},
    "ssd": {"groups": 1},
    "delta_rule": {"decay": "none"},
    "short_conv": {"width": 4, "activation": "silu"},
}
_COMMON_AXES = ("mode", "dtype", "batch", "length")
_GRID = {*_COMMON_AXES, *chain(*OPERATOR_AXES.values()), *chain(*OPERATOR_OPTIONS.values())}
_COUNTS = {"window", "groups", "width"}
_COLUMNS = ("operator", "contender", "mode", "dtype", "batch", "length", "heads", "key_dim", "value_dim", "config")


class Case(Timed):
    """One contender of an operator at one shape."""

    operator: str
    mode: Mode = "fwd"
    heads: Count = 1
    key_dim: Count = 1
    value_dim: Count = 1
    config: dict[str, Any] = {}

    @model_validator(mode="after")
    def _possible(self) -> "Case":
        if self.mode == "decode" and self.operator == "linear_cross_entropy":
            raise ValueError("linear_cross_entropy has no decode step; its modes: fwd, fwd_bwd")
        for name in _COUNTS & set(self.config):
            value = self.config[name]
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
                raise ValueError(f"{name} takes whole numbers from 1 to {MOST}, got {value!r}")
        if self.config.get("activation") not in (None, "silu"):
            raise ValueError(f"activation is silu or null, got {self.config['activation']!r}")
        if self.config.get("decay", "none") not in _DECAYS:
            raise ValueError(f"decay is {', '.join(_DECAYS[:-1])} or {_DECAYS[-1]}, got {self.config['decay']!r}")
        if self.heads % self.config.get("groups", 1):
            raise ValueError(f"{self.config['groups']} groups do not divide {self.heads} heads")
        return self

    @property
    def subject(self) -> str:
        return self.operator

    @property
    def place(self) -> tuple[Any, ...]:
        return (self.mode, self.dtype, self.batch, self.length, self.heads, self.cache, self.baseline_key)

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.key_dim, self.value_dim, self.config

    @property
    def columns(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _COLUMNS}

    @property
    def label(self) -> str:
        """What `--filter` matches: `taylor_attention/ours fwd bf16 16x2048 heads=16 key_dim=16 value_dim=64`."""
        axes = [f"{name}={getattr(self, name)}" for name in OPERATOR_AXES[self.operator]]
        options = [f"{name}={value}" for name, value in self.config.items()]
        shape = f"{self.batch}x{self.length}"
        return " ".join([f"{self.operator}/{self.contender}", self.mode, self.dtype, shape, *axes, *options])

    @property
    def tokens(self) -> int:
        """Tokens that one call processes: a decode step makes one for each sequence."""
        return self.batch if self.mode == "decode" else self.batch * self.length


AnyCase = Case | ModelCase


class CaseSection(Section):
    """One operator over a grid (or several grids) of shapes.

    A grid's keys are the axes and the operator's options, each a value, a list or a series. `baseline` names a
    contender of the same operator, or `operator/contender` to compare across operators of the same batch, length and
    heads.
    """

    MAPPINGS: ClassVar[Mapping[str, Collection[str]]] = {"grid": _GRID}

    operator: str
    contenders: Annotated[list[str], Field(min_length=1)]
    baseline: str
    grid: dict[str, Any] | list[dict[str, Any]]

    @field_validator("operator")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in OPERATOR_AXES:
            raise ValueError(f"no operator is called {value!r}; {nearest(value, OPERATOR_AXES)}")
        return value

    @model_validator(mode="after")
    def _complete(self) -> "CaseSection":
        base = self.baseline.rpartition("/")[0]
        if base and base not in OPERATOR_AXES:
            raise ValueError(f"baseline: no operator is called {base!r}; {nearest(base, OPERATOR_AXES)}")
        for grid in self.grid if isinstance(self.grid, list) else [self.grid]:
            self._check_keys(grid)
        for shape in self.shapes():
            refused(partial(Case, contender="any", **shape))
        return self

    def shapes(self) -> Iterator[dict[str, Any]]:
        """Every shape as keyword arguments of `Case`."""
        yield from map(self._split, expand_grids(self.grid))

    def _check_keys(self, grid: dict[str, Any]) -> None:
        required = ("length", *OPERATOR_AXES[self.operator])
        known = {*_COMMON_AXES, *required, *OPERATOR_OPTIONS.get(self.operator, {})}
        for name in grid:
            if name not in known:
                raise ValueError(f"grid: {self.operator} has no {name!r}; {nearest(name, known)}")
        for name in required:
            if name not in grid:
                raise ValueError(f"grid: {self.operator} needs {name}; add e.g. {name}: 64")

    def _split(self, shape: dict[str, Any]) -> dict[str, Any]:
        """A shape as keyword arguments of `Case`: the operator's options go under `config`."""
        defaults = OPERATOR_OPTIONS.get(self.operator, {})
        axes = {name: value for name, value in shape.items() if name not in defaults}
        options = {name: shape.get(name, default) for name, default in defaults.items()}
        return {**axes, "operator": self.operator, "config": options, "baseline": self.baseline}


Duration = Annotated[Real, Field(gt=0, allow_inf_nan=False)]


class MeasureSection(Section):
    """How long and how carefully each case is timed.

    Sampling stops once the 95 % interval of the median is within `precision` of it (relative), after at least
    `min_rounds` rounds, or after `seconds` of sampling, or after `max_rounds`. `timeout` bounds one step of a worker
    (building, checking and first call together, or one round). `threads` are those of a CPU, torch's default if null.
    `cross_check` times each cold case on a GPU with other tools too.
    """

    precision: Annotated[float, Field(gt=0, lt=1)] = 0.005
    min_rounds: Annotated[int, Field(ge=3)] = 7
    max_rounds: Count = 40
    round_ms: Duration = 25.0
    seconds: Duration = 3.0
    timeout: Duration = 300.0
    cache: Cache = "cold"
    threads: Count | None = None
    cross_check: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "MeasureSection":
        if self.max_rounds < self.min_rounds:
            raise ValueError(f"max_rounds {self.max_rounds} is below min_rounds {self.min_rounds}")
        return self

    def at_least(self, rounds: int) -> "MeasureSection":
        """The same care over so many rounds or more, however long they take."""
        most = max(rounds, self.max_rounds)
        return self.model_copy(update={"min_rounds": rounds, "max_rounds": most, "seconds": math.inf})


class ThroughputSuite(Suite):
    """A whole throughput sweep: operators x shapes x contenders, whole models x shapes x contenders, or both."""

    kind: Literal["throughput"]
    measure: MeasureSection = MeasureSection()
    cases: list[CaseSection] = []
    models: list[ModelsSection] = []

    @model_validator(mode="after")
    def _not_empty(self) -> "ThroughputSuite":
        if not self.cases and not self.models:
            raise ValueError("a throughput suite has cases, models or both; see suites/kernels.yaml")
        return self

    def expand(self, device: str, contenders: Sequence[tuple[str, str]] = ()) -> list[AnyCase]:
        """Every case on a kind of device, in the order of the file.

        `contenders` adds (operator, contender) pairs, such as a plugin's, to the sections of their operators, and
        (MODELS, contender) pairs to those of whole models. Only a GPU has a cache to flush: cases on a CPU are hot.
        Decode steps are always hot: that is how they run.
        """
        found: dict[str, AnyCase] = {}
        cases: list[AnyCase] = [*self._operators(device, contenders), *self._models(device, contenders)]
        for case in cases:
            found.setdefault(case.id, case)
        return list(found.values())

    def _operators(self, device: str, contenders: Sequence[tuple[str, str]]) -> Iterator[Case]:
        for section in self.cases:
            extra = [name for operator, name in contenders if operator == section.operator]
            for shape in section.shapes():
                place = self._place(device, step=shape.get("mode") == "decode")
                for name in dict.fromkeys([*section.contenders, *extra]):
                    yield Case.model_validate({**shape, **place, "contender": name})

    def _models(self, device: str, contenders: Sequence[tuple[str, str]]) -> Iterator[ModelCase]:
        extra = [name for operator, name in contenders if operator == MODELS]
        for section in self.models:
            for shape in section.shapes():
                place = self._place(device, step=shape["mode"] == "generation")
                for name in dict.fromkeys([*section.contenders, *extra]):
                    yield ModelCase.model_validate({**shape, **place, "contender": name})

    def _place(self, device: str, step: bool) -> dict[str, Any]:
        """Where a case runs, and whether with a cold cache."""
        cold = device == "cuda" and not step
        threads = self.measure.threads if device == "cpu" else None
        return {"cache": self.measure.cache if cold else "hot", "device": device, "threads": threads}
