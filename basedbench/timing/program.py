"""A case's call made ready to run: its inputs, and one call of the mode without arguments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from basedbench.config.throughput import Case
from basedbench.contenders import Call, Tensors, operator_of
from basedbench.contenders.draw import Draw
from basedbench.timing.part import Part

# Input set -1 draws the gradients that the backward starts from.
_GRADIENTS = -1


@dataclass(frozen=True)
class Program:
    """A contender's call on one set of inputs. `run` executes it once, as it is timed."""

    case: Case
    call: Call
    tensors: Tensors
    gradients: tuple[Tensor, ...] = ()

    @property
    def input_bytes(self) -> int:
        """The size of its inputs, states included."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def state_bytes(self) -> int:
        """The size of what a decode step carries along, over the whole batch."""
        return sum(self.tensors[name].nbytes for name in operator_of(self.case).states)

    @property
    def timed(self) -> Callable[[], object]:
        """What a sample calls: `run`, with as little Python around the call as there can be."""
        return self.run if self.case.mode == "fwd_bwd" else partial(self.call, self.tensors)

    def run(self) -> Sequence[Tensor]:
        """Outputs; with a backward also the gradients of all floating-point inputs."""
        return self._with_gradients(_as_tuple(self.call(self.tensors)))

    def results(self) -> Tensors:
        """What is checked, by name: outputs, gradients, and the states that a decode step has rewritten."""
        return self._named(self.run())

    def _with_gradients(self, outputs: tuple[Tensor, ...], first: bool = False) -> tuple[Tensor, ...]:
        """RuntimeError, the first time, that names the inputs which no backward reaches: PyTorch's own does not."""
        if self.case.mode != "fwd_bwd":
            return outputs
        leaves = [tensor for tensor in self.tensors.values() if tensor.requires_grad]
        ends = [output for output in outputs if output.requires_grad]
        found = torch.autograd.grad(ends, leaves, self.gradients, allow_unused=first)
        if first and any(gradient is None for gradient in found):
            pairs = zip((name for name, x in self.tensors.items() if x.requires_grad), found, strict=True)
            unreached = ", ".join(name for name, gradient in pairs if gradient is None)
            raise RuntimeError(f"no gradient reaches {unreached}; what has no backward is for mode fwd")
        return *outputs, *found

    def _named(self, run: Sequence[Tensor]) -> Tensors:
        leaves = [name for name, tensor in self.tensors.items() if tensor.requires_grad]
        count = len(run) - len(leaves) if self.case.mode == "fwd_bwd" else len(run)
        names = [*_output_names(count), *(f"the gradient of {name}" for name in leaves)]
        states = {name: self.tensors[name] for name in operator_of(self.case).states}
        return {name: tensor.detach() for name, tensor in zip(names, run, strict=True)} | states


@dataclass(frozen=True)
class Begun:
    """What the first run of a case tells of the next ones: what a backward starts from, the shapes of results."""

    gradients: tuple[Tensor, ...]
    shapes: tuple[tuple[torch.Size, torch.dtype], ...]  # of those with floating point

    @classmethod
    def by(cls, first: Program, results: Tensors) -> "Begun":
        """From that run."""
        floating = (x for x in results.values() if x.is_floating_point())
        return cls(first.gradients, tuple((x.shape, x.dtype) for x in floating))


def inputs(case: Case, index: int, device: str) -> Tensors:
    """Input set number `index` of a case; the same for every contender."""
    return operator_of(case).draw(Draw(case, index, device))


def program(case: Case, call: Call, tensors: Tensors, gradients: tuple[Tensor, ...]) -> Program:
    """The call on these tensors, with the gradients that a backward starts from: all input sets have the same.

    States are copied, as they will be rewritten; with a backward, inputs become leaves.
    """
    return Program(case, call, _own(case, tensors, None), gradients)


def first_run(
    case: Case,
    call: Call,
    tensors: Tensors,
    device: str,
    dtype: torch.dtype | None = None,
    part: Part | None = None,
) -> tuple[Program, Tensors]:
    """A program, all in `dtype` if one is given, and its results.

    The gradients that a backward starts from are drawn in the layout of the outputs, once these are there. If the
    tensors are a part of the case's, so are the gradients.
    """
    own = _own(case, tensors, dtype)
    outputs = _as_tuple(call(own))
    made = Program(case, call, own, _starts(case, outputs, device, part) if case.mode == "fwd_bwd" else ())
    return made, made._named(made._with_gradients(outputs, first=True))


def _own(case: Case, tensors: Tensors, dtype: torch.dtype | None) -> Tensors:
    """The tensors of a program: states copied, and leaves where there is a backward."""
    own = {name: x.detach().to(dtype) if dtype and x.is_floating_point() else x.detach() for name, x in tensors.items()}
    for name in operator_of(case).states:
        own[name] = own[name].clone()
    if case.mode == "fwd_bwd":
        for tensor in own.values():
            tensor.requires_grad_(tensor.is_floating_point())
    return own


def _starts(case: Case, outputs: Sequence[Tensor], device: str, part: Part | None) -> tuple[Tensor, ...]:
    """The gradients that a backward starts from, drawn in the case's dtype: the truth starts from the same values."""
    draw = Draw(case, _GRADIENTS, device)
    ends = [output for output in outputs if output.requires_grad]
    drawn = [_start(draw, end, part) for end in ends]
    return tuple(torch.empty_like(e, requires_grad=False).copy_(g) for e, g in zip(ends, drawn, strict=True))


def _start(draw: Draw, end: Tensor, part: Part | None) -> Tensor:
    return draw.normal(*end.shape) if part is None else part.output(draw.normal(*part.whole(end.shape)))


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    found = tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)
    for one in found:
        if not isinstance(one, Tensor):
            raise TypeError(f"it returns {one!r:.40} where a tensor is due")
    return found


def _output_names(count: int) -> list[str]:
    return ["the output"] if count == 1 else [f"output {index + 1}" for index in range(count)]
