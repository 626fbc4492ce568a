"""The least work of a case, operations and bytes, whoever does it: what fractions of a ceiling are taken of."""

from collections.abc import Callable
from typing import Any

from basedbench.config.throughput import Case
from basedbench.kernels import costs
from basedbench.kernels.gated_linear_attention import flops as gated_linear_flops
from basedbench.kernels.layer_delta_rule import flops as delta_flops
from basedbench.kernels.linear_attention import bytes_moved as linear_bytes
from basedbench.kernels.linear_attention import flops as linear_flops
from basedbench.kernels.linear_cross_entropy import bytes_moved as cross_entropy_bytes
from basedbench.kernels.linear_cross_entropy import flops as cross_entropy_flops
from basedbench.kernels.selective_scan import bytes_moved as scan_bytes
from basedbench.kernels.selective_scan import flops as scan_flops
from basedbench.kernels.short_conv import bytes_moved as conv_bytes
from basedbench.kernels.short_conv import flops as conv_flops
from basedbench.kernels.sliding_window import bytes_moved as window_bytes
from basedbench.kernels.sliding_window import flops as window_flops
from basedbench.kernels.ssd import bytes_moved as ssd_bytes
from basedbench.kernels.ssd import flops as ssd_flops
from basedbench.kernels.taylor_attention import bytes_moved as taylor_bytes
from basedbench.kernels.taylor_attention import flops as taylor_flops
from basedbench.kernels.wkv4 import bytes_moved as wkv4_bytes
from basedbench.kernels.wkv4 import flops as wkv4_flops

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def attention_flops(
    *, batch: int, length: int, heads: int, key_dim: int, value_dim: int, state: bool = False, backward: bool = False
) -> int:
    """2 (K + V) per query and key read; in decoding one query reads all `length` keys.

    The backward has two products for each of the forward, and one more that forms the scores again: no implementation
    that is linear in memory does without it, and published figures count it.
    """
    pairs = length if state else costs.causal_pairs(length)
    forward = batch * heads * pairs * 2 * (key_dim + value_dim)
    return forward * 7 // 2 if backward else forward


def attention_bytes(
    *,
    batch: int,
    length: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    element_bytes: int,
    state: bool = False,
    backward: bool = False,
) -> int:
    """q, k, v in and y out; in decoding one query, the whole cache, one output."""
    rows = batch * heads
    queries = rows * (1 if state else length)
    inputs = queries * key_dim + rows * length * (key_dim + value_dim)
    return costs.total_bytes(inputs, queries * value_dim, element_bytes=element_bytes, backward=backward)


def gated_bytes(
    *,
    batch: int,
    length: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    decay_dim: int,
    steps: int = 0,
    element_bytes: int,
    state: bool = False,
    backward: bool = False,
) -> int:
    """q, k, v and `steps` step sizes in, y out; beside them `decay_dim` logarithms of decays in, which are float32."""
    tokens = batch * length * heads
    states = batch * heads * key_dim * value_dim if state else 0
    inputs, outputs = tokens * (2 * key_dim + value_dim + steps), tokens * value_dim
    sizes = {"wide": tokens * decay_dim, "state": states, "element_bytes": element_bytes}
    return costs.total_bytes(inputs, outputs, **sizes, backward=backward)


_COSTS: dict[str, tuple[Callable[..., int], Callable[..., int]]] = {
    "attention": (attention_flops, attention_bytes),
    "taylor_attention": (taylor_flops, taylor_bytes),
    "linear_attention": (linear_flops, linear_bytes),
    "sliding_window": (window_flops, window_bytes),
    "selective_scan": (scan_flops, scan_bytes),
    "ssd": (ssd_flops, ssd_bytes),
    "delta_rule": (delta_flops, gated_bytes),
    "gated_linear_attention": (gated_linear_flops, gated_bytes),
    "wkv4": (wkv4_flops, wkv4_bytes),
    "short_conv": (conv_flops, conv_bytes),
    "linear_cross_entropy": (cross_entropy_flops, cross_entropy_bytes),
}


def flops_of(case: Case) -> int:
    """Operations of one call."""
    return _COSTS[case.operator][0](**_shape(case), **_passes(case))


def bytes_of(case: Case) -> int:
    """Bytes that one call has to move."""
    size = ELEMENT_BYTES[case.dtype]
    return _COSTS[case.operator][1](**_shape(case), **_passes(case), **_inputs(case), element_bytes=size)


def _passes(case: Case) -> dict[str, bool]:
    passes = {"backward": case.mode == "fwd_bwd", "state": case.mode == "decode"}
    return {"backward": passes["backward"]} if case.operator == "linear_cross_entropy" else passes


def _inputs(case: Case) -> dict[str, Any]:
    """Which inputs there are, where an operator has several kinds."""
    match case.operator:
        case "ssd":
            return {"gate": False}
        case "delta_rule":
            return {"decay_dim": {"none": 0, "head": 1, "channel": case.key_dim}[case.config["decay"]], "steps": 1}
        case "gated_linear_attention":
            return {"decay_dim": case.key_dim}
    return {}


def _shape(case: Case) -> dict[str, Any]:
    """The case's shape in the words of its operator's functions."""
    # A step of a recurrence is a sequence of one token; attention's reads the whole context.
    length = 1 if case.mode == "decode" and case.operator != "attention" else case.length
    rows = {"batch": case.batch, "length": length}
    match case.operator:
        case "selective_scan":
            return {**rows, "channels": case.value_dim, "states": case.key_dim}
        case "ssd":
            sizes = {"heads": case.heads, "head_dim": case.value_dim, "states": case.key_dim}
            return {**rows, **sizes, "groups": case.config["groups"]}
        case "wkv4":
            return {**rows, "channels": case.value_dim}
        case "short_conv":
            return {**rows, "channels": case.value_dim, "taps": case.config["width"]}
        case "linear_cross_entropy":
            return {"positions": case.batch * length, "width": case.key_dim, "vocabulary": case.value_dim}
    window = {"window": case.config["window"]} if case.operator == "sliding_window" else {}
    return {**rows, "heads": case.heads, "key_dim": case.key_dim, "value_dim": case.value_dim, **window}
