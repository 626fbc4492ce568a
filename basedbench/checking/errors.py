"""How far a result is off, and how far it may be: relative to float64, as a whole and in its worst block of rows.

Allowed is twice the error of the same-dtype reference plus a floor. A kernel that goes wrong does so late in a
sequence, where a norm over everything hides it: so blocks of 64 tokens (or single heads of a state) are looked at too.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from basedbench.timing.correctness import FLAG_FLOOR, FLOOR

BLOCK_ROWS = 64
BLOCK_FLOOR = 2  # times the floor for one block
# A gradient this small beside the largest is zero in exact arithmetic: its rounding is measured against the largest.
NOTHING = 1e-9

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Finding:
    """The measure that comes closest to its bound, or exceeds it most; `where` names tensor and rows."""

    error: float
    bound: float
    where: str

    @property
    def right(self) -> bool:
        """Whether everything is within its bound; a NaN is not."""
        return self.error <= self.bound

    @property
    def excess(self) -> float:
        """The error as a multiple of the bound."""
        return math.inf if math.isnan(self.error) else self.error / self.bound


def compare(results: Results, same: Results, truth: Results, dtype: str, length: int) -> Finding:
    """Hold results against the truth, and what is off against what the same-dtype reference is off."""
    if set(results) != set(truth):
        missing = ", ".join(sorted(set(truth) ^ set(results)))
        return Finding(math.nan, 0.0, f"not what the operator returns: {missing}")
    floor, found = FLOOR[dtype], []
    sizes = {name: _typical(x) for name, x in truth.items() if name.startswith("gradient")}
    for name, right in truth.items():
        if results[name].shape != right.shape:
            shapes = f"shape {tuple(results[name].shape)} where {tuple(right.shape)} is due"
            return Finding(math.nan, 0.0, f"{name}: {shapes}")
        if not right.is_floating_point():
            share, own = (float((x[name] != right).double().mean()) for x in (results, same))
            found.append(Finding(share, 2 * own + FLAG_FLOOR, f"{name}: share of wrong values"))
            continue
        largest = max(sizes.values(), default=0.0)
        typical = largest if sizes.get(name, math.inf) < NOTHING * largest else _typical(right)
        whole, block, place = relative_errors(results[name], right, length, typical)
        own_whole, own_block, _ = relative_errors(same[name], right, length, typical)
        found.append(Finding(whole, 2 * own_whole + floor, name))
        found.append(Finding(block, 2 * own_block + BLOCK_FLOOR * floor, f"{name}, {place}"))
    return max(found, key=lambda one: one.excess)


def relative_errors(result: Tensor, truth: Tensor, length: int, typical: float) -> tuple[float, float, str]:
    """Of the whole, of the worst block of rows, and where that is; `typical` is the size of an element."""
    distance, size, what, rows = _by_row(result.double() - truth.double(), truth.double(), length)
    elements = truth.numel() // max(1, len(size))
    tiny = torch.finfo(torch.float64).tiny
    whole = math.sqrt(float(distance.sum()) / max(typical**2 * truth.numel(), tiny))
    counts = _in_blocks(torch.full_like(size, elements), rows)
    expected = torch.maximum(_in_blocks(size, rows), counts * typical**2).clamp_min(tiny)
    blocks = (_in_blocks(distance, rows) / expected).sqrt()
    worst = int(blocks.nan_to_num(nan=math.inf).argmax())
    return whole, float(blocks[worst]), f"{what} {worst * rows}-{min(len(size), (worst + 1) * rows) - 1}"


def _typical(x: Tensor) -> float:
    return math.sqrt(float(x.double().square().mean())) if x.numel() else 0.0


def _by_row(difference: Tensor, truth: Tensor, length: int) -> tuple[Tensor, Tensor, str, int]:
    """Squares of difference and truth summed by token, by head of a state, or by row; and how many make a block."""
    if truth.dim() >= 3 and truth.shape[1] == length:
        order, what, rows = (lambda x: x.transpose(0, 1)), "tokens", BLOCK_ROWS
    elif truth.dim() >= 3:
        order, what, rows = (lambda x: x.flatten(0, 1)), "batch x head", 1
    else:
        order, what, rows = (lambda x: x), "rows", BLOCK_ROWS
    squares = (order(x).square().reshape(len(order(x)), -1).sum(1) for x in (difference, truth))
    return next(squares), next(squares), what, rows


def _in_blocks(by_row: Tensor, rows: int) -> Tensor:
    """Sums over blocks of so many rows, the last one shorter."""
    return torch.nn.functional.pad(by_row, (0, -len(by_row) % rows)).view(-1, rows).sum(1)
