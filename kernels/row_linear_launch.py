"""The operator behind `row_linear`: tensor maps, and the launch of its kernel."""

# mypy: allow-untyped-defs

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
import triton
from torch import Tensor

from .dependents import take_counters
from .gluon_modules import gluon_module
from .row_linear import MODULE, Plan, batch_of
from .tensor_maps import tensor_map

COUNTERS = 256  # tiles and groups of a launch, at most
PAIRS = ("gate", "conv")  # ends that make one output of two, which lie half the outputs apart in the weight
BESIDES = ("residual", "gain", "new_residual", "new_squares", "taps", "taps_bias", "state")  # what some ends take
_counters: dict[tuple[torch.device, int], Tensor] = {}


def _rows_map(x: Tensor, rows: int, width: int) -> Any:
    return tensor_map(x, tuple(x.shape), x.stride(), (rows, width))


def counters(x: Tensor, split: int, sums: int) -> Tensor:
    """Of arrivals at each sum, multiples of `split` between launches: a launch's own in a block of dependents.

    Elsewhere all launches share them, so that only one may run at a time, and a graph must not be what asks first.
    """
    own = take_counters(sums)
    if own is not None:
        return own
    key = x.device, split
    if key not in _counters:
        if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("row_linear must have run once before it is captured in a graph")
        _counters[key] = torch.zeros(COUNTERS, dtype=torch.int32, device=x.device)
    return _counters[key]


def _launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, early: bool, y: Tensor, end: str = "",
    squares: Tensor | None = None, eps: float = 0.0, given: Mapping[str, Tensor | None] | None = None,
) -> None:  # fmt: skip
    """Into y; `given`: what this end takes besides."""
    kernels = gluon_module(MODULE)
    assert isinstance(kernels, ModuleType)
    tile, width, split = plan[:3]
    outputs, batch, joined = len(weight), batch_of(len(x)) // plan.groups, plan.split > 1
    tiles = triton.cdiv(outputs, tile)
    parts = x.new_empty(tiles * plan.groups * split * batch * tile, dtype=torch.float32) if joined else y
    weight_map = _rows_map(weight, tile, width)
    if end in PAIRS:
        D = weight.shape[1]
        weight_map = tensor_map(weight, (outputs // 2, 2, D), (D, outputs // 2 * D, 1), (tile // 2, 2, width))
    named = {**dict.fromkeys(BESIDES), **(given or {})}
    arrivals = counters(x, split, tiles * plan.groups) if joined else y
    kernels.product_kernel[(tiles, split, plan.groups)](
        _rows_map(x, batch, width), weight_map, bias, y, parts, arrivals, squares, **named,
        rows=len(x), outputs=outputs, steps=triton.cdiv(x.shape[1], width),
        square_parts=0 if squares is None else len(squares), width=x.shape[1], eps=eps, TILE=tile, WIDTH=width,
        BATCH=batch, SPLIT=split, WEIGHT_STAGES=plan.weight_stages, X_STAGES=plan.x_stages, MEET=plan.meet,
        HAS_BIAS=bias is not None, EARLY=early, WARPS=tile // 16, END=end,
        PARTS=0 if squares is None else triton.next_power_of_2(len(squares)),
        HAS_TAPS_BIAS=named["taps_bias"] is not None, num_warps=tile // 16,
        **({"launch_pdl": True} if early else {}),
    )  # fmt: skip


@torch.library.custom_op("basedbench::row_linear", mutates_args=())
def operator(
    x: Tensor, weight: Tensor, bias: Tensor | None, tile: int, width: int, split: int, weight_stages: int,
    x_stages: int, meet: bool, groups: int, early: bool, squares: Tensor | None = None, eps: float = 0.0,
    gated: bool = False,
) -> Tensor:  # fmt: skip
    """y (B,E), or (B,E/2) if gated. With `squares` (P,B) x is still to be divided by its root mean square."""
    y = x.new_empty((len(x), len(weight) // (2 if gated else 1)))
    plan = Plan(tile, width, split, weight_stages, x_stages, meet, groups)
    _launch(x, weight, bias, plan, early, y, "gate" if gated else "", squares, eps)
    return y


@operator.register_fake
def _(
    x,
    weight,
    bias,
    tile,
    width,
    split,
    weight_stages,
    x_stages,
    meet,
    groups,
    early,
    squares=None,
    eps=0.0,
    gated=False,
):
    return x.new_empty((len(x), len(weight) // (2 if gated else 1)))


@torch.library.custom_op("basedbench::row_linear_conv", mutates_args=("state",))
def conv_operator(
    x: Tensor, weight: Tensor, bias: Tensor | None, taps: Tensor, taps_bias: Tensor | None, state: Tensor, tile: int,
    width: int, split: int, weight_stages: int, x_stages: int, meet: bool, groups: int, early: bool,
    squares: Tensor | None = None, eps: float = 0.0,
) -> Tensor:  # fmt: skip
    """y (B,E/2) of `conv_gate_step` behind the product; `state` (B,E/2,2) goes on."""
    y = x.new_empty((len(x), len(weight) // 2))
    plan, words = Plan(tile, width, split, weight_stages, x_stages, meet, groups), state.view(torch.int32)
    _launch(
        x, weight, bias, plan, early, y, "conv", squares, eps, {"taps": taps, "taps_bias": taps_bias, "state": words}
    )
    return y


@conv_operator.register_fake
def _(x, weight, *others):
    return x.new_empty((len(x), len(weight) // 2))


@torch.library.custom_op("basedbench::row_linear_onto", mutates_args=())
def onto_operator(
    x: Tensor, weight: Tensor, bias: Tensor | None, stream: Tensor, gain: Tensor, tile: int, width: int, split: int,
    weight_stages: int, x_stages: int, meet: bool, groups: int, early: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The stream with the product added, times `gain` in the dtype of x (B,E); itself; its squares by tiles (P,B)."""
    y, new = x.new_empty(stream.shape), torch.empty_like(stream)
    squares = stream.new_empty((triton.cdiv(len(weight), tile), len(x)), dtype=torch.float32)
    plan = Plan(tile, width, split, weight_stages, x_stages, meet, groups)
    given = {"residual": stream, "gain": gain, "new_residual": new, "new_squares": squares}
    _launch(x, weight, bias, plan, early, y, "add", given=given)
    return y, new, squares


@onto_operator.register_fake
def _(x, weight, bias, stream, gain, tile, *others):
    squares = stream.new_empty((triton.cdiv(len(weight), tile), len(x)), dtype=torch.float32)
    return x.new_empty(stream.shape), torch.empty_like(stream), squares
