"""What each operator is to the timing: its inputs, function, PyTorch reference, and what a decode step rewrites."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from basedbench import kernels
from basedbench.config.throughput import Case
from basedbench.contenders import delta, inputs, steps
from basedbench.contenders.attention import attention_reference, attention_step_reference
from basedbench.contenders.base import Call, Tensors
from basedbench.contenders.draw import Draw
from basedbench.kernels.gated_linear_attention import reference as gated_linear_reference
from basedbench.kernels.layer_delta_rule import reference as delta_reference
from basedbench.kernels.linear_attention import reference as linear_reference
from basedbench.kernels.linear_cross_entropy import reference as cross_entropy_reference
from basedbench.kernels.selective_scan import reference as scan_reference
from basedbench.kernels.short_conv import reference as conv_reference
from basedbench.kernels.sliding_window import reference as window_reference
from basedbench.kernels.ssd import reference as ssd_reference
from basedbench.kernels.taylor_attention import reference as taylor_reference
from basedbench.kernels.wkv4 import reference as wkv4_reference

Function = Callable[..., Any]
# Blocks of this chunk are 4 GiB for so many tokens in float64, in a backward pass.
LONG_CHUNK, MOST_TOKENS = 256, 2**20


@dataclass(frozen=True)
class Operator:
    """One operator in one form: whole sequences, or one decode step.

    The first `positional` tensors are passed by position, the others and the options by name. `states` are the
    tensors that a step carries along; `public` is None where basedbench has no implementation of its own. `arguments`
    makes what the function takes of what a case draws, where these differ.
    """

    draw: Callable[[Draw], Tensors]
    public: Function | None
    reference: Function
    positional: int = 3
    states: tuple[str, ...] = ()
    options: tuple[str, ...] = ()  # those of the case that the function takes
    constants: dict[str, Any] = field(default_factory=dict)
    loops: bool = False  # the reference launches dozens of kernels for each chunk, whatever the number of sequences
    arguments: Callable[[Tensors], dict[str, Any]] | None = None


def operator_of(case: Case) -> Operator:
    """The operator of a case, in the form that its mode asks for."""
    return (_STEPS if case.mode == "decode" else _SEQUENCES)[case.operator]


def reference_call(case: Case, pairs: int) -> Call:
    """The reference on so many (sequence, head) pairs, as results are held against it.

    In long chunks, where the blocks of these fit: of few pairs launches are what it takes.
    """
    operator = operator_of(case)
    long = operator.loops and pairs * case.length <= MOST_TOKENS
    return bind(partial(operator.reference, chunk=LONG_CHUNK) if long else operator.reference, case)


def bind(function: Function, case: Case) -> Call:
    """`function`, which has the operator's signature, as a call on the case's tensors."""
    operator = operator_of(case)
    options = {name: case.config[name] for name in operator.options} | operator.constants

    def call(tensors: Tensors) -> Any:
        given = tensors if operator.arguments is None else operator.arguments(tensors)
        named = list(given.items())
        first = (tensor for _, tensor in named[: operator.positional])
        return function(*first, **dict(named[operator.positional :]), **options)

    return call


_SEQUENCES = {
    "attention": Operator(inputs.queries_keys_values, None, attention_reference),
    "taylor_attention": Operator(inputs.queries_keys_values, kernels.taylor_attention, taylor_reference, loops=True),
    "linear_attention": Operator(inputs.queries_keys_values, kernels.linear_attention, linear_reference, loops=True),
    "sliding_window": Operator(
        inputs.queries_keys_values, kernels.sliding_window, window_reference, options=("window",)
    ),
    "selective_scan": Operator(
        inputs.selective_scan, kernels.selective_scan, scan_reference, 5, constants={"delta_softplus": True}
    ),
    "ssd": Operator(inputs.ssd, kernels.ssd, ssd_reference, 5, constants={"dt_softplus": True}, loops=True),
    "delta_rule": Operator(delta.delta_rule, kernels.layer_delta_rule, delta_reference, 5, arguments=delta.arguments),
    "gated_linear_attention": Operator(
        inputs.gated_linear_attention, kernels.gated_linear_attention, gated_linear_reference, 4
    ),
    "wkv4": Operator(inputs.wkv4, kernels.wkv4, wkv4_reference, 4),
    "short_conv": Operator(inputs.short_conv, kernels.short_conv, conv_reference, options=("activation",)),
    "linear_cross_entropy": Operator(
        inputs.linear_cross_entropy, kernels.linear_cross_entropy, cross_entropy_reference
    ),
}
_STEPS = {
    "attention": Operator(inputs.attention_step, None, attention_step_reference, states=("k_BLHK", "v_BLHV")),
    "taylor_attention": Operator(
        inputs.taylor_attention_step,
        kernels.taylor_attention_step,
        steps.taylor_attention_step,
        4,
        ("state_BHFV", "sums_BHF"),
    ),
    "linear_attention": Operator(
        inputs.linear_attention_step, kernels.linear_attention_step, steps.linear_attention_step, 4, ("state_BHKW",)
    ),
    "sliding_window": Operator(
        inputs.sliding_window_step,
        kernels.sliding_window_step,
        steps.sliding_window_step,
        6,
        ("k_BWHK", "v_BWHV", "position_B"),
    ),
    "selective_scan": Operator(
        inputs.selective_scan_step,
        kernels.selective_scan_step,
        steps.selective_scan_step,
        6,
        ("state_BDN",),
        constants={"delta_softplus": True},
    ),
    "ssd": Operator(
        inputs.ssd_step, kernels.ssd_step, steps.ssd_step, 6, ("state_BHPN",), constants={"dt_softplus": True}
    ),
    "delta_rule": Operator(
        delta.delta_rule_step,
        kernels.layer_delta_rule_step,
        steps.delta_rule_step,
        6,
        ("state_BHKV",),
        arguments=delta.arguments,
    ),
    "gated_linear_attention": Operator(
        inputs.gated_linear_attention_step,
        kernels.gated_linear_attention_step,
        steps.gated_linear_attention_step,
        5,
        ("state_BHKV",),
    ),
    "wkv4": Operator(inputs.wkv4_step, kernels.wkv4_step, steps.wkv4_step, 5, ("state_B3D",)),
    "short_conv": Operator(
        inputs.short_conv_step,
        kernels.short_conv_step,
        steps.short_conv_step,
        4,
        ("state_BDS",),
        ("activation",),
    ),
}
