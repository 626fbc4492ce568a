"""The contract that every sequence mixer keeps, and what most of them share.

A mixer maps (B, L, D) to (B, L, D) causally, and can do the same one token at a time from a state: a flat dict of
tensors whose first dimension is the batch. The state is what the benchmark weighs, so it holds what decoding needs and
no more. A new mixer defines `name`, `Options`, `forward`, `init_state` and `step`; the rest has defaults.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from basedbench.errors import UserError, nearest, plain, written
from basedbench.kernels.asked import Asked
from basedbench.kernels.row_linear import row_linear

State = dict[str, Tensor]
Init = Literal["published", "correct"]

PARAMETERS = (
    "Leave their dtype to torch; make complex tensors of real parameters (torch.view_as_complex); all else is a buffer."
)
ALIGNED = 16  # outputs of a projection that is read in whole pieces


class MixerOptions(BaseModel):
    """The options of a mixer; unknown names and non-finite numbers are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Mixer(nn.Module):
    """A causal sequence mixer of width `d_model`. UserError on options that are wrong or do not fit `d_model`."""

    name: ClassVar[str]
    family: ClassVar[str] = ""  # the line it belongs to in plots; `register` fills in the name
    Options: ClassVar[type[MixerOptions]] = MixerOptions
    block: ClassVar[Literal["layernorm", "mamba"]] = "layernorm"  # which block of the recall scaffold it sits in

    options: MixerOptions

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__()
        self.options = self.resolve(d_model, options)
        self.d_model = d_model

    def __init_subclass__(cls, **options: Any) -> None:
        """Who writes a newer `forward` has not written the older `forward_asked`: its own is by rows again."""
        super().__init_subclass__(**options)
        newest = _newest(cls, "forward", "forward_asked")
        if "forward_asked" not in newest and cls.forward_asked is not Mixer.forward_asked:
            cls.forward_asked = Mixer.forward_asked  # type: ignore[method-assign]

    @classmethod
    def resolve(cls, d_model: int, options: Mapping[str, Any]) -> MixerOptions:
        """The options as typed data, defaults filled in. UserError names each bad option, its value and the bound."""
        if isinstance(d_model, bool) or not isinstance(d_model, int) or d_model < 1:
            raise UserError(f"mixer {cls.name!r}: d_model = {d_model!r} should be a whole number >= 1.")
        try:
            resolved = cls.Options.model_validate(options)
        except ValidationError as error:
            raise UserError(f"mixer {cls.name!r}: {describe(error, cls.Options)}") from None
        for name, value in resolved:
            given = options.get(name)
            if isinstance(given, bool) and type(value) in (int, float):  # pydantic takes true for 1
                raise UserError(f"mixer {cls.name!r}: option {name!r} = {written(given)}: takes a number.")
        cls.check(d_model, resolved)
        return resolved

    @classmethod
    def build(cls, d_model: int, options: Mapping[str, Any]) -> Self:
        """The mixer with options from outside, such as a suite: whatever is wrong with them, a UserError."""
        usual = torch.get_default_dtype()
        mixer = cls(d_model, **cls.resolve(d_model, options).model_dump())
        for name, parameter in mixer.named_parameters():
            if parameter.dtype != usual:
                found = f"its parameter {name} is {parameter.dtype}, where all are {usual}"
                raise UserError(f"mixer {cls.name!r}: {found}. {PARAMETERS}")
        return mixer

    @classmethod
    def check(cls, d_model: int, options: Any) -> None:
        """Refuse, with a UserError, options that are valid alone but not with this `d_model`."""

    @classmethod
    def check_length(cls, options: Any, length: int) -> None:
        """Refuse, with a UserError, sequences longer than a mixer with these options can take."""

    @classmethod
    def family_of(cls, options: Mapping[str, Any]) -> str:
        """The line in plots of a model with these options: `family`, or `family/variant` for a line of its own."""
        return cls.family

    @classmethod
    def init_matters(cls, options: Mapping[str, Any]) -> bool:
        """Whether `initialise` does not do the same for every `init`: if so, those are different runs.

        By default, of a mixer that has an `initialise` of its own.
        """
        return cls.initialise is not Mixer.initialise

    def forward(self, x_BLD: Tensor) -> Tensor:
        """The parallel form, used in training."""
        raise NotImplementedError(f"{type(self).__name__} has no `forward`")

    @classmethod
    def packs(cls, options: Any, *, asked: bool) -> bool:
        """Whether `forward`, or with `asked` `forward_asked`, takes packed examples (`Packing`) of one row (1, T, D).

        Training on a GPU leaves out what lies behind an example's last question then, where `packing_pays`. `forward`
        gets the packing as its second argument, `forward_asked` in `asked.packing`; the default one hands it on. Not
        asked of a subclass with a newer one of these methods.
        """
        return False

    @classmethod
    def packing_pays(cls, precision: str) -> bool:
        """Whether training at this precision, "fp32", "tf32" or "bf16", is faster packed, by a mixer that `packs`."""
        return True

    @classmethod
    def packs_as_it_is(cls, options: Any, *, asked: bool) -> bool:
        """`packs`, unless a subclass has a method of its own of which that says nothing."""
        spoken_of = ("forward_asked", "forward") if asked else ("forward",)
        return "packs" in _newest(cls, "packs", *spoken_of) and cls.packs(options, asked=asked)

    def forward_asked(self, x_BLD: Tensor, asked: Asked) -> Tensor:
        """`forward` at some tokens only, (B, K, D): all that a model's last layer is asked for in training.

        `asked` has their positions and the rows of x there. This default takes the rows of a whole `forward`; a mixer
        whose last projection, queries or gates can do without the other tokens overrides it. It may return no gradient
        for `asked.x_BKD`.
        """
        return asked.rows(self(x_BLD) if asked.packing is None else self(x_BLD, asked.packing))

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> State:
        """The state before the first token, with room for `max_length` tokens where room is needed."""
        raise NotImplementedError(f"{type(self).__name__} has no `init_state`")

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """One token: its output (B, D) and the state after it. The tensors of `state` may be updated in place."""
        raise NotImplementedError(f"{type(self).__name__} has no `step`")

    def prefill(self, x_BLD: Tensor, max_length: int | None = None) -> tuple[Tensor, State]:
        """A whole prompt: outputs (B, L, D) and the state after it, with room for `max_length` tokens in all.

        This default steps through the prompt; a mixer with a parallel form overrides it.
        """
        state = self.init_state(len(x_BLD), max_length or x_BLD.shape[1], x_BLD.dtype, x_BLD.device)
        outputs = []
        for x_BD in x_BLD.unbind(1):
            y_BD, state = self.step(x_BD, state)
            outputs.append(y_BD)
        return torch.stack(outputs, 1), state

    def zoology_elements(self, length: int) -> int:
        """State elements as zoology counts them; by default the measured ones."""
        state = self.init_state(1, length, device="meta").values()
        return sum(tensor.numel() * (2 if tensor.is_complex() else 1) for tensor in state)

    def paper_elements(self, length: int) -> int:
        """State elements as in the printed figure of the BASED paper; by default as zoology counts them."""
        return self.zoology_elements(length)

    def initialise(self, layers: int, init: Init) -> None:
        """The recall recipe's init in a model of `layers` layers: here every Linear N(0, .02) with biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                normal_linear_(module)


def _newest(kind: type, *names: str) -> Mapping[str, Any]:
    """What the first class from this one up has of its own that has one of these methods."""
    return next(vars(one) for one in kind.__mro__ if vars(one).keys() & set(names))


def project(linear: nn.Linear, x_xD: Tensor) -> Tensor:
    """`linear`; in a decode step, where it pays, by a kernel that begins early."""
    return row_linear(x_xD, linear.weight, linear.bias)


def project_aligned(linear: nn.Linear, x_xD: Tensor) -> Tensor:
    """`linear` without bias, and outputs that nobody reads, its first again, which make their number a multiple of 16.

    Rows of other widths, which a few heads' step sizes make, are read in small pieces and multiplied by slower kernels.
    """
    return F.linear(x_xD, aligned(linear.weight, linear.out_features))


def aligned(weight_ED: Tensor, outputs: int) -> Tensor:
    """The weight, with its first rows again behind it where `outputs` of it are no multiple of 16."""
    missing = -outputs % ALIGNED
    return torch.cat([weight_ED, weight_ED.detach()[:missing]]) if missing else weight_ED


def normal_linear_(linear: nn.Linear, std: float = 0.02) -> None:
    """Weight N(0, std), bias 0."""
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def residual_std(layers: int) -> float:
    """The smaller std of projections onto the residual stream, .02 / sqrt(2 layers): .01 in the two-layer recipe."""
    return 0.02 / math.sqrt(2 * layers)


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a state that sums over time: float64 stays, everything else is kept in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_room(mixer: str, length: int, max_length: int) -> None:
    """UserError where a prompt is longer than the state of so many tokens that it is to be written into."""
    if length > max_length:
        raise UserError(f"mixer {mixer!r}: a prompt of {length} tokens has no room in a state of {max_length}.")


def require_heads(mixer: str, d_model: int, heads: int) -> None:
    """UserError unless `heads` divides `d_model`; names the nearest number of heads that does."""
    if d_model % heads:
        divisors = [n for n in range(1, d_model + 1) if d_model % n == 0]
        closest = min(divisors, key=lambda n: abs(n - heads))
        raise UserError(f"mixer {mixer!r}: heads = {heads} does not divide d_model = {d_model}; nearest: {closest}.")


def describe(error: ValidationError, options: type[BaseModel]) -> str:
    """Every problem of a validation error in one sentence; of a list with wrong entries, the entries."""
    parts = []
    problems = error.errors(include_url=False)
    inside = {problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))}
    for problem in [problem for problem in problems if not problem["loc"] or problem["loc"] not in inside]:
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            parts.append(
                f"unknown option {key!r} (given {written(problem['input'])}): {nearest(key, options.model_fields)}"
            )
        elif problem["type"] == "literal_error":
            choices = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
            parts.append(f"option {key!r} = {written(problem['input'])}: {nearest(str(problem['input']), choices)}")
        elif problem["type"] == "missing":
            parts.append(f"option {key!r} {plain(problem)}")
        else:
            subject = f"option {key!r} = {written(problem['input'])}" if key else "options"
            parts.append(f"{subject}: {plain(problem)}")
    sentence = "; ".join(parts)
    return sentence if sentence.endswith(("?", ".")) else f"{sentence}."
