"""How far results are off, and how far they may be: relative to the truth, as a whole, by blocks of rows, by rows.

Allowed is twice the error of the same-dtype reference plus a floor. A kernel that goes wrong does so late in a
sequence, where a norm over everything hides it: so blocks of 64 tokens (or single heads of a state) are looked at too,
and single rows, beside the rows of their block. A row beside its own size would tell nothing: a query's gradient early
in a sequence is a small difference of large terms in every implementation.

Gradients of decays and step sizes are float32 in cases of 16 bits, too. The reference computes them in float32, which
nobody does whose products take 16 bits: its error there is that of rounding the gradient once, as it is for the others.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from basedbench.contenders.draw import DTYPES

# Allowed beyond twice the reference's error, for whole tensors.
FLOOR = {"fp32": 1e-5, "bf16": 2e-3, "fp16": 5e-4}
# Times the floor, for one block and for one row: of four million rows the worst of a right 16-bit kernel is off by 40.
BLOCK_FLOOR, ROW_FLOOR = 2, 64
# Disagreements between yes-or-no outputs (which token is the largest), as a share of all.
FLAG_FLOOR = 0.01
BLOCK_ROWS = 64
# A gradient of few numbers is no mean over many errors: it is a few sums over all tokens, which may nearly cancel, and
# the reference's own error tells little, as chance may have made it small. So many or less: times all floors.
FEW, FEW_FLOOR = 16, 4
# A gradient this small beside the largest is zero in exact arithmetic: its rounding is measured against the largest.
NOTHING = 1e-9

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Finding:
    """One error and its bound; `where` names the tensor and the rows."""

    error: float
    bound: float
    where: str
    whole: bool = False  # of a whole tensor
    measure: str = "relative error"

    @property
    def right(self) -> bool:
        """Whether everything is within its bound; a NaN is not."""
        return self.error <= self.bound

    @property
    def absent(self) -> bool:
        """Whether there is nothing to measure: results are missing, complex or of another shape."""
        return math.isnan(self.error) and not self.bound

    @property
    def excess(self) -> float:
        """The error as a multiple of the bound."""
        return math.inf if math.isnan(self.error) else self.error / self.bound


def compare(results: Results, same: Results, truth: Results, dtype: str, length: int) -> Finding:
    """Hold results against the truth, and what is off against what the same-dtype reference is off.

    Returns the error that comes closest to its bound, or exceeds it most.
    """
    return max(findings(results, same, truth, dtype, length), key=lambda one: one.excess)


def findings(
    results: Results, same: Results, truth: Results, dtype: str, length: int, floor: float | None = None
) -> list[Finding]:
    """Every error that is looked at; a single one with a NaN where results are missing, complex or of another shape.

    `floor` takes the place of the dtype's.
    """
    floor = FLOOR[dtype] if floor is None else floor
    if set(results) != set(truth):
        extra, missing = (sorted(a.keys() - b.keys()) for a, b in ((results, truth), (truth, results)))
        given = f"it returns {', '.join(extra)}" if extra else "some results are missing"
        return [Finding(math.nan, 0.0, f"{given}, where {', '.join(missing) or 'nothing more'} should be")]
    found = []
    sizes = {name: _typical(x) for name, x in truth.items() if "gradient" in name}
    largest = max(sizes.values(), default=0.0)
    for name, right in truth.items():
        if results[name].shape != right.shape:
            shapes = f"shape {tuple(results[name].shape)} where {tuple(right.shape)} is due"
            return [Finding(math.nan, 0.0, f"{name}: {shapes}")]
        if results[name].is_complex():  # no truth is: what is imaginary would be left out of every error
            return [Finding(math.nan, 0.0, f"{name}: complex numbers where real ones are due")]
        if not right.numel():
            continue
        if right.is_floating_point():
            typical = largest if sizes.get(name, math.inf) < NOTHING * largest else _typical(right)
            usual = _rounded(same[name], dtype) if name in sizes else same[name]
            errors, own = (_errors(x, right, length, typical) for x in (results[name], usual))
            few = name in sizes and right.numel() <= FEW
            found += _bounded(name, errors, own, floor * FEW_FLOOR if few else floor)
        else:
            share, own_share = (float((x[name] != right).double().mean()) for x in (results, same))
            found.append(Finding(share, 2 * own_share + FLAG_FLOOR, name, measure="share of wrong values"))
    return found


@dataclass(frozen=True)
class _Errors:
    """Relative errors of a tensor, and where the worst block and the worst row are."""

    whole: float
    block: float
    block_place: str
    row: float
    row_place: str


def _rounded(x: Tensor, dtype: str) -> Tensor:
    """To the precision of a narrower dtype, not to its range."""
    if x.dtype.itemsize <= DTYPES[dtype].itemsize:
        return x
    mantissa, exponent = x.frexp()
    return torch.ldexp(mantissa.to(DTYPES[dtype]).to(x.dtype), exponent)


def _bounded(name: str, errors: _Errors, own: _Errors, floor: float) -> list[Finding]:
    return [
        Finding(errors.whole, 2 * own.whole + floor, name, whole=True),
        Finding(errors.block, 2 * own.block + BLOCK_FLOOR * floor, f"{name}, {errors.block_place}"),
        Finding(errors.row, 2 * own.row + ROW_FLOOR * floor, f"{name}, {errors.row_place}"),
    ]


def _errors(result: Tensor, truth: Tensor, length: int, typical: float) -> _Errors:
    """Relative to the truth; `typical` is the size of an element, which nothing small is held against less than."""
    groups, what, grouped = _grouped(truth, length)
    size_GR, distance_GR = (groups(x).square().sum(-1) for x in (truth.double(), result.double() - truth.double()))
    elements = truth.numel() // max(1, size_GR.numel())  # of a row
    least = max(typical**2, torch.finfo(torch.float64).tiny)
    whole = math.sqrt(float(distance_GR.sum()) / (least * max(1, truth.numel())))

    rows = _in_blocks(torch.full_like(size_GR[:, 0], size_GR.shape[1]), grouped)
    mean_N = (_in_blocks(size_GR.sum(1), grouped) / rows).clamp_min(elements * least)  # of a row's square, by block
    block_N = (_in_blocks(distance_GR.sum(1), grouped) / rows / mean_N).sqrt()
    mean_G = mean_N.repeat_interleave(grouped)[: len(size_GR)]
    row_G = (distance_GR / torch.maximum(size_GR, mean_G.unsqueeze(1))).amax(1).sqrt()
    block, row = (int(x.nan_to_num(nan=math.inf).argmax()) for x in (block_N, row_G))
    last = min(len(row_G), (block + 1) * grouped) - 1
    block_place, row_place = f"{what} {block * grouped}-{last}", f"one row of {what} {row}"
    return _Errors(whole, float(block_N[block]), block_place, float(row_G[row]), row_place)


def _grouped(truth: Tensor, length: int) -> tuple[Callable[[Tensor], Tensor], str, int]:
    """How a tensor becomes (groups, rows, elements), what a group is, and how many of them make a block."""
    width = truth.shape[-1] if truth.dim() > 1 else 1
    if truth.dim() >= 3 and truth.shape[1] == length:
        return (lambda x: x.transpose(0, 1).reshape(length, -1, width)), "tokens", BLOCK_ROWS
    if truth.dim() >= 3:
        return (lambda x: x.reshape(x.shape[0] * x.shape[1], -1, width)), "batch x head", 1
    return (lambda x: x.reshape(-1, 1, width)), "rows", BLOCK_ROWS


def _typical(x: Tensor) -> float:
    return math.sqrt(float(x.double().square().mean())) if x.numel() else 0.0


def _in_blocks(by_group: Tensor, groups: int) -> Tensor:
    """Sums over blocks of so many groups, the last one shorter."""
    return F.pad(by_group, (0, -len(by_group) % groups)).view(-1, groups).sum(1)
