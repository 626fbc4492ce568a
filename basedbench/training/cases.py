"""Recall cases: one run of one model, with everything that decides its result, and nothing else."""

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from basedbench.config import RecallSuite, case_id, expand_grid
from basedbench.config.recall import LayerSection, ModelSection, TaskSection, TestSection, TrainSection
from basedbench.config.section import MOST
from basedbench.errors import UserError, passed_over, written
from basedbench.mixers import check_options, get_mixer
from basedbench.models.recall import LayerSpec
from basedbench.sources import source_of
from basedbench.tasks import MQAR


@dataclass(frozen=True)
class RecallCase:
    """One training run. `named` are the options as the suite spells them; `layers` carry all of them, resolved."""

    suite: str
    mixer: str
    d_model: int
    named: tuple[tuple[str, Any], ...]
    layers: tuple[LayerSpec, ...]
    learning_rate: float
    seed: int
    task: TaskSection
    train: TrainSection
    test: TestSection
    # Why its state bytes cannot be believed, if that was found; no part of what decides the result.
    state_doubt: str | None = field(default=None, compare=False)

    @property
    def case_id(self) -> str:
        """The hash of `meaning`: equal for equal runs, whatever suite they come from."""
        return case_id(self.meaning())

    @cached_property
    def model_id(self) -> str:
        """As `case_id`, without learning rate and seed: runs with the same kernels have the same."""
        return case_id({name: value for name, value in self.meaning().items() if name not in ("learning_rate", "seed")})

    @property
    def label(self) -> str:
        """What `--filter` searches and progress shows: `based d_model=64 feature_dim=16 lr=0.01 seed=0`."""
        return f"{self.model_label} lr={self.learning_rate:g} seed={self.seed}"

    @property
    def model_label(self) -> str:
        """The label without what differs between runs of one model."""
        options = "".join(f" {name}={value}" for name, value in (*self.named, *self.layer_options.items()))
        return f"{self.mixer} d_model={self.d_model}{options}"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved options of the layer that names the model: of its mixer, and those of the suite's grid first."""
        own = [dict(layer.options) for layer in reversed(self.layers) if layer.mixer == self.mixer]
        named = dict(self.named).items()
        return next((options for options in own if _whole(self.mixer, options).items() >= named), own[0] if own else {})

    @property
    def config_json(self) -> str:
        """`config` as the rows have it."""
        return json.dumps(self.config, sort_keys=True)

    @property
    def layer_mixers(self) -> str:
        """The mixers from the lowest layer up: `base_conv+based`."""
        return "+".join(layer.mixer for layer in self.layers)

    @property
    def layer_options(self) -> dict[str, Any]:
        """What layers have beyond `config` and their mixers' defaults, the lowest being the first: `layer1.window`."""
        found: dict[str, Any] = {}
        for number, layer in enumerate(self.layers, start=1):
            named = self.config if layer.mixer == self.mixer else _defaults(layer.mixer, self.d_model)
            usual, own = _whole(layer.mixer, named), _whole(layer.mixer, layer.options)
            found |= {f"layer{number}.{k}": v for k, v in own.items() if k not in usual or usual[k] != v}
        return found

    @property
    def layer_options_json(self) -> str | None:
        """`layer_options` as the rows have it: null for most models."""
        return json.dumps(self.layer_options, sort_keys=True) if self.layer_options else None

    @property
    def source(self) -> str | None:
        """The files of the user's own mixers in it, with their hashes; None if all are ours."""
        found = {source_of(get_mixer(layer.mixer)) for layer in self.layers}
        return ", ".join(sorted(one for one in found if one)) or None

    @property
    def longest(self) -> int:
        """The longest test length, at which state sizes are stated."""
        return max(segment.length for segment in self.test.segments)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch, tail batches included."""
        return sum(math.ceil((segment.examples or 0) / self.train.batch_size) for segment in self.train.segments)

    @property
    def positions_per_epoch(self) -> int:
        """Tokens read in training per epoch."""
        return sum((segment.examples or 0) * segment.length for segment in self.train.segments)

    def segment_task(self, length: int, pairs: int) -> MQAR:
        """The task of one segment; UserError if the numbers are impossible."""
        return MQAR(length=length, pairs=pairs, **self.task.model_dump())

    def meaning(self) -> dict[str, Any]:
        """Everything that decides the result, as plain data."""
        train = self.train.model_dump(exclude={"learning_rates", "seeds"}, mode="json")
        return {
            "kind": "recall",
            "task": self.task.model_dump(mode="json"),
            "train": train,
            "test": self.test.model_dump(mode="json"),
            "d_model": self.d_model,
            "layers": [{"mixer": layer.mixer, "options": dict(layer.options)} for layer in self.layers],
            "learning_rate": self.learning_rate,
            "seed": self.seed,
        }

    def task_json(self) -> str:
        """The task and its segments for the row."""
        meaning = self.meaning()
        segments = {"train": meaning["train"]["segments"], "test": meaning["test"]["segments"]}
        return json.dumps({**meaning["task"], **segments, "test_examples": self.test.examples}, sort_keys=True)


def recall_cases(suite: RecallSuite) -> list[RecallCase]:
    """Every run of a suite: models x learning rates x seeds; UserError names the first impossible one."""
    cases = [
        RecallCase(suite.name, section.mixer, d_model, named, layers, rate, seed, suite.task, train, suite.test)
        for section in suite.models
        for d_model, named, layers in _models(suite, section)
        for train in [_settled(suite.train, layers)]
        for rate in section.learning_rates or suite.train.learning_rates
        for seed in suite.train.seeds
    ]
    _check_segments(suite, cases[0])
    return list({case.case_id: case for case in cases}.values())


def _settled(train: TrainSection, layers: Iterable[LayerSpec]) -> TrainSection:
    """The recipe that a run goes by: one init for both where they are the same run, fp32 where no device has a say."""
    settled = {"precision": "fp32"} if train.precision == "auto" else {}
    with passed_over():  # of the user's mixer: its runs ask again, and fail by it
        if not init_matters(layers):
            settled["init"] = TrainSection.model_fields["init"].default
    return train.model_copy(update=settled)


def init_matters(layers: Iterable[LayerSpec]) -> bool:
    """Whether a model starts otherwise for the other init."""
    return any(get_mixer(layer.mixer).init_matters(layer.options) for layer in layers)


def _models(
    suite: RecallSuite, section: ModelSection
) -> list[tuple[int, tuple[tuple[str, Any], ...], tuple[LayerSpec, ...]]]:
    models = []
    longest = max(segment.length for segment in (*suite.train.segments, *suite.test.segments))
    for setting in expand_grid(section.grid):
        options = {name: value for name, value in setting.items() if name != "d_model"}
        d_model = setting["d_model"]
        where = f"suite {suite.name}, {section.mixer} with " + ", ".join(
            f"{name}={value if isinstance(value, str) else written(value)}" for name, value in setting.items()
        )
        if isinstance(d_model, bool) or not isinstance(d_model, int) or not 1 <= d_model <= MOST:
            raise UserError(f"{where}: d_model takes a whole number from 1 to {MOST}.")
        try:
            layers = tuple(
                _layer(entry, section.mixer, d_model, options, longest) for entry in section.layers or _stack(section)
            )
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if all(layer.mixer != section.mixer for layer in layers):
            raise UserError(f"{where}: its layers do not contain {section.mixer!r}; add it to `layers`.")
        if options and section.layers and section.mixer not in section.layers:
            raise UserError(
                f"{where}: {', '.join(options)} would be of no layer, since every {section.mixer} has options of its "
                f"own; write one of them as {section.mixer!r} alone, or leave that out of the grid."
            )
        models.append((d_model, tuple(options.items()), layers))
    return models


def _stack(section: ModelSection) -> list[str | LayerSection]:
    """Two layers, as in the paper: a BaseConv below the mixer."""
    return ["base_conv", section.mixer]


def _layer(entry: str | LayerSection, mixer: str, d_model: int, options: dict[str, Any], longest: int) -> LayerSpec:
    if isinstance(entry, LayerSection):
        return LayerSpec(entry.mixer, check_options(entry.mixer, d_model, entry.options, longest))
    return LayerSpec(entry, check_options(entry, d_model, options if entry == mixer else {}, longest))


def _whole(mixer: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that may leave some out, such as a default that one mixer does not spell out, with those."""
    fields = get_mixer(mixer).Options.model_fields
    return {name: field.get_default() for name, field in fields.items()} | dict(options)


def _defaults(mixer: str, d_model: int) -> dict[str, Any]:
    """A mixer's options where none is given; those that a layer has to give, or that do not fit d_model, included."""
    with suppress(UserError):
        return check_options(mixer, d_model, {})
    return _whole(mixer, {})


def _check_segments(suite: RecallSuite, case: RecallCase) -> None:
    for part, segments in (("train", suite.train.segments), ("test", suite.test.segments)):
        for index, segment in enumerate(segments):
            try:
                case.segment_task(segment.length, segment.pairs)
            except UserError as error:
                raise UserError(f"suite {suite.name}, {part}.segments[{index}]: {error}") from None
