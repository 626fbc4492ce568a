"""A mixer under examination, and what the laws compare: outputs of steps, layouts of states, first differences."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from basedbench.errors import UserError
from basedbench.mixers import Mixer, State, get_mixer
from basedbench.mixers.base import Init

LENGTH, BATCH = 33, 3
LONG = 201  # ends 9 tokens into a chunk of 16, 32 or 64, and in the second of 128
FAR = 1024  # the paper's longest
CHANGED = 20  # from this position on causality's two inputs differ
CLOSE = 1e-7  # relative, in float64; of small numbers among large ones, to the largest, but to no more than one
LEAK = 1e-12  # rounding, of what changes by up to one; where a Fourier transform mixes in larger changes, of those ...
LARGEST = 1e4  # ... but of none above this
LITTLE = 0.02  # the recipe's standard deviation of a Linear


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
    """A mixer with its options, built anew (the same weights each time) for each law, as the trainer builds it."""

    name: str
    d_model: int
    options: dict[str, Any] = field(default_factory=dict)
    layers: int = 2  # of the model whose part it is
    init: Init = "published"

    def build(self, dtype: torch.dtype = torch.float64) -> Mixer:
        """The mixer, in evaluation mode: begun as in the trainer's model, but with little where that begins at zero."""
        torch.manual_seed(0)
        mixer = get_mixer(self.name)(self.d_model, **self.options)
        self.initialise(mixer)
        with torch.no_grad():
            for parameter in mixer.parameters():
                if parameter.requires_grad:  # what begins at zero hides what it is multiplied with
                    noise = torch.randn_like(parameter) * LITTLE
                    parameter.add_(noise * (parameter == 0))
        return mixer.to(dtype).eval()

    def initialise(self, mixer: Mixer) -> None:
        """As the trainer's model does; what is raised says so."""
        try:
            mixer.initialise(self.layers, self.init)
        except BaseException as error:
            error.add_note(f"the trainer calls initialise({self.layers}, {self.init!r}), its layers and init")
            raise

    def inputs(self, batch: int = BATCH, length: int = LENGTH, dtype: torch.dtype = torch.float64) -> Tensor:
        """Seeded normal x (B,L,D)."""
        shape = batch, length, self.d_model
        return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))

    def longest(self, most: int = LONG) -> int:
        """`most`, or as many tokens as the mixer's `check_length` allows; not below LENGTH."""
        cls = get_mixer(self.name)
        options = cls.resolve(self.d_model, self.options)
        for length in range(most, LENGTH, -1):
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


def by_turns(mixer: Mixer, x_BLD: Tensor) -> Iterator[tuple[Tensor, State]]:
    """Each output (B, D) of steps and the state after it, while those of another text, x backwards, come between."""
    batch, length, _ = x_BLD.shape
    state, other = (mixer.init_state(batch, length, x_BLD.dtype, x_BLD.device) for _ in range(2))
    for position in range(length):
        y_BD, state = mixer.step(x_BLD[:, position].clone(), state)
        yield y_BD.clone(), state
        _, other = mixer.step(x_BLD[:, length - 1 - position].clone(), other)


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
    distance, sizes = (_wide(found) - _wide(right)).abs(), _wide(right).abs()
    largest = min(1.0, float(sizes.nan_to_num(nan=1.0).max())) if sizes.numel() else 1.0
    far = ~(distance <= CLOSE * (largest + sizes) + LEAK)
    if far.any():
        first = int(far.flatten(2).any(2).any(0).nonzero()[0]) if tokens else 0
        place = f"{what}, first at position {first}" if tokens else what
        yield Breach(place, f"differs by up to {float(distance.nan_to_num(nan=float('inf')).max()):.2g}")


def changed_before(difference_BLD: Tensor, changed: int) -> tuple[int, float] | None:
    """Which of the positions before `changed` is the first whose output changes by more than rounding; by how much."""
    difference_L = difference_BLD.abs().amax((0, 2))
    early_L, bound = difference_L[:changed], LEAK * min(max(1.0, float(difference_L.max())), LARGEST)
    if early_L.max() < bound:
        return None
    first = int((~(early_L < bound)).nonzero()[0])
    return first, float(difference_L[first])


@contextmanager
def noted(length: int) -> Iterator[None]:
    """What is raised for a long sequence only says so."""
    try:
        yield
    except BaseException as error:
        if length > LENGTH:
            error.add_note(f"with {length} tokens; a mixer that takes fewer refuses them in check_length")
        raise


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
