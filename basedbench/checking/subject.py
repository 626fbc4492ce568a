"""A mixer under examination, and what the laws compare: outputs of steps, layouts of states, first differences."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from basedbench.errors import UserError
from basedbench.mixers import Mixer, State, get_mixer

LENGTH, BATCH = 33, 3
LONG = 201  # ends 9 tokens into a chunk of 16, 32 or 64, and in the second of 128
CLOSE = 1e-7  # absolute and relative, in float64


@dataclass(frozen=True)
class Breach:
    """One broken promise: which tensor, where in it, by how much; or what the mixer `raised`, and where."""

    where: str
    amount: str
    raised: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.amount}"


@dataclass(frozen=True)
class Subject:
    """A mixer with its options, built anew (the same weights each time) for each law."""

    name: str
    d_model: int
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, dtype: torch.dtype = torch.float64) -> Mixer:
        """The mixer, in evaluation mode."""
        torch.manual_seed(0)
        return get_mixer(self.name)(self.d_model, **self.options).to(dtype).eval()

    def inputs(self, batch: int = BATCH, length: int = LENGTH, dtype: torch.dtype = torch.float64) -> Tensor:
        """Seeded normal x (B,L,D)."""
        shape = batch, length, self.d_model
        return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))

    def longest(self) -> int:
        """LONG, or as many tokens as the mixer's `check_length` allows; not below LENGTH."""
        cls = get_mixer(self.name)
        options = cls.resolve(self.d_model, self.options)
        for length in range(LONG, LENGTH, -1):
            try:
                cls.check_length(options, length)
            except UserError:
                continue
            return length
        return LENGTH


def steps(mixer: Mixer, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
    """The outputs (B, L, D) of repeated steps, and the state after them."""
    outputs = []
    for x_BD in x_BLD.unbind(1):
        y_BD, state = mixer.step(x_BD, state)
        outputs.append(y_BD)
    return torch.stack(outputs, 1), state


def layout(state: State) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each tensor."""
    return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in state.items()}


def size(state: State) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def stated_formula(name: str) -> str | None:
    """What stands behind `state_bytes =` in the docstring of a mixer's class or module; deeper lines are its rest."""
    cls = get_mixer(name)
    for text in (cls.__doc__, sys.modules[cls.__module__].__doc__):
        found = re.search(r"^( *)state_bytes = (.+(?:\n\1 +.+)*)$", text or "", re.M)
        if found:
            return " ".join(found[2].split())
    return None


def differences(what: str, found: Tensor, right: Tensor, *, tokens: bool = True) -> Iterator[Breach]:
    """Where (B, L, D) tensors (with `tokens=False`: any) are not close: the first position, the largest difference."""
    if found.shape != right.shape:
        yield Breach(what, f"shape {tuple(found.shape)} where {tuple(right.shape)} is due")
        return
    if found.dtype != right.dtype:
        yield Breach(what, f"{plain(found.dtype)} where {plain(right.dtype)} is due")
    distance = (_wide(found) - _wide(right)).abs()
    far = ~(distance <= CLOSE + CLOSE * _wide(right).abs())
    if far.any():
        first = int(far.flatten(2).any(2).any(0).nonzero()[0]) if tokens else 0
        place = f"{what}, first at position {first}" if tokens else what
        yield Breach(place, f"differs by up to {float(distance.nan_to_num(nan=float('inf')).max()):.2g}")


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float64))  # a complex state stays complex


def layouts(what: str, state: State, other_what: str, other: State) -> Iterator[Breach]:
    for key in sorted(state.keys() | other.keys()):
        mine, theirs = layout(state).get(key), layout(other).get(key)
        if mine != theirs:
            yield Breach(f"{what}, {key!r}", f"{described(mine)}, {other_what} {described(theirs)}")


def changes(when: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[Breach]:
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield Breach(f"state {key!r} {when}", f"{described(after.get(key))}, before {described(before.get(key))}")


def described(entry: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return "missing" if entry is None else f"{entry[0]} {plain(entry[1])}"


def plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
