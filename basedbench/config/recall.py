"""A recall suite as typed data: which models are trained on which task, and how."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, field_validator

from basedbench.config.grid import axis_values, expand_grid
from basedbench.config.section import Count, Real, Section, Seed, Suite

VOCABULARY = 8192  # the paper's
Precision = Literal["auto", "fp32", "tf32", "bf16"]


class TaskSection(Section):
    """MQAR's settings shared by all segments (see basedbench.tasks.mqar)."""

    vocab_size: Count = VOCABULARY
    power_a: Real = 0.01
    filler: str = "random"
    passes: Count = 1


class Segment(Section):
    """Examples of one shape: `length` tokens with `pairs` key-value pairs."""

    length: Count
    pairs: Count
    examples: Count | None = None

    @property
    def name(self) -> str:
        """`LxK`, as in the rows' accuracy_by_slice."""
        return f"{self.length}x{self.pairs}"


_LEAST_RATE = 1e-18  # rows with less are taken for damaged ones


def _series(value: Any) -> list[Any]:
    try:
        return axis_values("learning_rates", value)
    except ValueError as error:  # the path to the key is said anyway
        raise ValueError(str(error).removeprefix("learning_rates: ")) from None


def _positive(value: list[float]) -> list[float]:
    if any(not _LEAST_RATE <= rate < 10 for rate in value):
        raise ValueError(f"learning rates lie between 0 and 10, none below {_LEAST_RATE:g}, got {value}")
    return value


LearningRates = Annotated[list[Real], BeforeValidator(_series), AfterValidator(_positive)]


class TrainSection(Section):
    """The recipe. The defaults are those of the paper's Figure 2.

    `precision: auto` is the fastest that was shown equal (docs/PARITY.md): bf16 on GPUs that have it, fp32 elsewhere.
    """

    segments: Annotated[list[Segment], Field(min_length=1)]
    batch_size: Count = 256
    epochs: Count = 32
    learning_rates: LearningRates
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    weight_decay: Annotated[Real, Field(ge=0, allow_inf_nan=False)] = 0.1
    stop_accuracy: Annotated[Real, Field(gt=0)] = 0.99
    precision: Precision = "auto"
    init: Literal["published", "correct"] = "published"
    embed_dropout: Annotated[Real, Field(ge=0, lt=1)] = 0.1
    shuffle: bool = False
    fresh: bool = False

    @field_validator("segments")
    @classmethod
    def _counted(cls, value: list[Segment]) -> list[Segment]:
        for index, segment in enumerate(value):
            if segment.examples is None:
                raise ValueError(f"segment {index} ({segment.name}) does not say how many examples it has")
        return value


class TestSection(Section):
    """What the models are tested on, after every epoch."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    segments: Annotated[list[Segment], Field(min_length=1)]
    examples: Count = 1000
    select: Literal["test", "validation"] = "test"

    @field_validator("segments")
    @classmethod
    def _distinct(cls, value: list[Segment]) -> list[Segment]:
        names = [segment.name for segment in value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"the slice {twice} stands twice")
        return value


class LayerSection(Section):
    """One layer of a model with options of its own."""

    ELSE: ClassVar[str] = "options of the mixer belong under options"

    mixer: str
    options: dict[str, Any] = {}


# Which of the two is meant is told first, so that a mistake inside a mapping is named there. Paths leave the tags out.
Layer = Annotated[
    Annotated[str, Tag("[name]")] | Annotated[LayerSection, Tag("[mapping]")],
    Discriminator(lambda entry: "[mapping]" if isinstance(entry, dict | LayerSection) else "[name]"),
]


class ModelSection(Section):
    """A family of models: one per combination of `grid`.

    `layers` is the stack of mixers, lowest first. The grid's keys other than d_model are options of every layer whose
    mixer is `mixer`; a layer written as `{mixer: ..., options: {...}}` has its own instead. `learning_rates` replace
    the recipe's for this family.
    """

    MAPPINGS: ClassVar[Mapping[str, Collection[str]]] = {"grid": ("d_model",)}
    ELSE: ClassVar[str] = "options of the mixer belong under grid"

    mixer: str
    layers: list[Layer] = []
    grid: dict[str, Any]
    learning_rates: LearningRates | None = None

    @field_validator("grid")
    @classmethod
    def _grid(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "d_model" not in value:
            raise ValueError("the grid has no d_model; add e.g. d_model: [64, 128]")
        expand_grid(value)
        return value


class RecallSuite(Suite):
    """A whole recall sweep: task x models x learning rates x seeds."""

    kind: Literal["recall"]
    task: TaskSection = TaskSection()
    train: TrainSection
    test: TestSection
    models: Annotated[list[ModelSection], Field(min_length=1)]
