"""Which part of a case's results is held against the truth, where the truth of all of them would take long.

Sequences do not touch each other, and in most operators heads do not either. The contender computes the whole case; the
reference computes some (sequence, head) pairs of it, stacked as so many sequences of one head: the first, the last, and
others that the seed draws. Where heads share parameters (a decay of every head, the filter of every channel) whole
sequences are taken, and with gradients, which sum over all sequences, everything is checked.

How many: as many as the device computes in well under a second, at least four pairs or two sequences; all, if that is
more than half of them.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from basedbench.config.throughput import Case
from basedbench.contenders import Tensors
from basedbench.contenders.costs import bytes_of, flops_of

# Operations and bytes (in the case's dtype) of what is checked: float64 references move bytes slowly.
MOST_FLOPS = {"cpu": 2.5e10, "cuda": 1e12}
MOST_BYTES = {"cpu": 2**27, "cuda": 2**29}
FEWEST_PAIRS, FEWEST_SEQUENCES = 4, 2
LARGEST_SHARE = 0.5


@dataclass(frozen=True)
class Part:
    """(sequence, head) pairs of a case, or sequences with all heads. `output_axes` are those of every output."""

    case: Case
    sequences: tuple[int, ...]
    heads: tuple[int, ...] | None
    output_axes: str

    @property
    def words(self) -> str:
        """`4 of 256 heads`."""
        count = len(self.sequences)
        if self.heads is None:
            return f"{count} of {self.case.batch} sequences"
        return f"{count} of {self.case.batch * self.case.heads} heads"

    @property
    def pairs(self) -> int:
        """How many (sequence, head) pairs it has."""
        return len(self.sequences) * (1 if self.heads else self.case.heads)

    @property
    def share(self) -> float:
        """Of the whole case."""
        return len(self.sequences) / (self.case.batch * (self.case.heads if self.heads else 1))

    def inputs(self, tensors: Tensors) -> Tensors:
        """This part of a call's tensors; what sequences share is taken whole."""
        return {name: self._taken(x, _axes(name)) for name, x in tensors.items()}

    def results(self, found: Tensors) -> Tensors:
        """This part of results by name, as `Program.results` names them."""
        return {name: self._taken(x, self._result_axes(name)) for name, x in found.items()}

    def output(self, x: Tensor) -> Tensor:
        """This part of a whole output."""
        return self._taken(x, self.output_axes)

    def whole(self, shape: Iterable[int]) -> tuple[int, ...]:
        """The shape of the whole of an output of which this part has `shape`."""
        sizes = dict(enumerate(shape)) | {0: self.case.batch}
        if self.heads is not None:
            sizes[self.output_axes.index("H")] = self.case.heads
        return tuple(sizes.values())

    def _result_axes(self, name: str) -> str:
        if name.startswith(("the output", "output ")):
            return self.output_axes
        return _axes(name)

    def _taken(self, x: Tensor, axes: str) -> Tensor:
        if "B" not in axes:
            return x
        if self.heads is None or "H" not in axes:
            return x[list(self.sequences)]
        place = axes.index("H")
        return x.movedim(place, 1)[list(self.sequences), list(self.heads)].unsqueeze(place)


def part_of(case: Case, names: Iterable[str]) -> Part | None:
    """What of a case with inputs of these names is checked; None if all of it is."""
    share = min(MOST_FLOPS[case.device] / max(1, flops_of(case)), MOST_BYTES[case.device] / max(1, bytes_of(case)))
    axes = [_axes(name) for name in names]
    if share > LARGEST_SHARE or case.operator == "linear_cross_entropy":
        return None
    output_axes = "BHV" if case.mode == "decode" else "BLHV"
    if case.heads > 1 and all("B" in one for one in axes) and any("H" in one for one in axes):
        chosen = _chosen(case, case.batch * case.heads, share, FEWEST_PAIRS)
        sequences, heads = zip(*(divmod(index, case.heads) for index in chosen), strict=True)
        return Part(case, sequences, heads, output_axes) if len(chosen) < case.batch * case.heads else None
    if case.mode == "fwd_bwd":
        return None
    sequences = _chosen(case, case.batch, share, FEWEST_SEQUENCES)
    return Part(case, sequences, None, output_axes) if len(sequences) < case.batch else None


def _chosen(case: Case, count: int, share: float, fewest: int) -> tuple[int, ...]:
    """The first, the last and others of so many, drawn alike for all contenders."""
    wanted = min(count, max(fewest, int(share * count)))
    ends = sorted({0, count - 1})
    drawn = random.Random(case.problem_id).sample(range(1, max(1, count - 1)), max(0, wanted - len(ends)))
    return tuple(sorted([*ends, *drawn]))


def _axes(name: str) -> str:
    """The shape suffix of a tensor's name: BLHK of q_BLHK, and of its gradient's."""
    return name.rpartition("_")[2]
