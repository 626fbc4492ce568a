"""Each operator as the check sees it: how its inputs are drawn, what is checked, and what it is checked against."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from basedbench import kernels
from basedbench.checking import adapters, draws
from basedbench.checking.draws import Arguments, Source
from basedbench.checking.problems import Problem
from basedbench.kernels.adamw import reference as adamw_reference
from basedbench.kernels.add_layer_norm import reference as norm_reference
from basedbench.kernels.asked_attention import reference as asked_reference
from basedbench.kernels.attention_decode import reference as decode_reference
from basedbench.kernels.base_conv import reference as base_conv_reference
from basedbench.kernels.block_boundary import last_reference as last_boundary_reference
from basedbench.kernels.block_boundary import reference as boundary_reference
from basedbench.kernels.cache_append import reference as append_reference
from basedbench.kernels.conv_gate import reference as conv_gate_reference
from basedbench.kernels.delta_inputs import reference as delta_inputs_reference
from basedbench.kernels.delta_inputs import rwkv7_reference
from basedbench.kernels.delta_rule import reference as delta_reference
from basedbench.kernels.delta_rule import shared_reference as shared_delta_reference
from basedbench.kernels.diagonal_filter import reference as diagonal_reference
from basedbench.kernels.embedding import reference as embedding_reference
from basedbench.kernels.gated_conv import reference as gated_conv_reference
from basedbench.kernels.gated_linear_attention import reference as gated_linear_reference
from basedbench.kernels.head_norm import reference as head_norm_reference
from basedbench.kernels.implicit_filter import reference as implicit_reference
from basedbench.kernels.layer_delta_rule import reference as layer_delta_reference
from basedbench.kernels.linear import reference as projection_reference
from basedbench.kernels.linear_attention import reference as linear_reference
from basedbench.kernels.linear_cross_entropy import reference as cross_entropy_reference
from basedbench.kernels.long_conv import gated_reference as gated_long_reference
from basedbench.kernels.long_conv import reference as long_conv_reference
from basedbench.kernels.plane_conv import reference as plane_conv_reference
from basedbench.kernels.retention import reference as retention_reference
from basedbench.kernels.rotary import reference as rotary_reference
from basedbench.kernels.row_argmax import reference as argmax_reference
from basedbench.kernels.selective_scan import reference as scan_reference
from basedbench.kernels.selective_ssm import asked_reference as asked_ssm_reference
from basedbench.kernels.selective_ssm import reference as ssm_reference
from basedbench.kernels.shift_filter import reference as shift_filter_reference
from basedbench.kernels.short_conv import reference as conv_reference
from basedbench.kernels.sliding_window import reference as window_reference
from basedbench.kernels.split_conv import reference as split_conv_reference
from basedbench.kernels.split_ssd_asked import reference as asked_ssd_reference
from basedbench.kernels.split_ssd_asked import split_ssd_asked
from basedbench.kernels.ssd import reference as ssd_reference
from basedbench.kernels.swiglu import reference as swiglu_reference
from basedbench.kernels.taylor_attention import reference as taylor_reference
from basedbench.kernels.token_shift import reference as shift_reference
from basedbench.kernels.wkv4 import reference as wkv4_reference

Function = Callable[..., Any]
STEPS = 3  # decode steps in a row: a ring's position and a state's update count, not only what is read


@dataclass(frozen=True)
class Form:
    """One operator. `step` and the name of the state that it carries where it has a decode step of that kind."""

    draw: Callable[[Source], Arguments]
    public: Function
    reference: Function
    step: Function | None = None
    state: str = ""
    state_gradient: bool = True  # whether gradients by an initial state are asked for


FORMS: dict[str, Form] = {
    "taylor_attention": Form(
        draws.heads,
        kernels.taylor_attention,
        taylor_reference,
        adapters.of_taylor_step(kernels.taylor_attention_step),
        "state_BHFW",
        False,
    ),
    "linear_attention": Form(
        draws.heads, kernels.linear_attention, linear_reference, kernels.linear_attention_step, "state_BHKW"
    ),
    "retention": Form(
        draws.heads, adapters.of_retention(kernels.retention), adapters.of_retention(retention_reference)
    ),
    "gated_linear_attention": Form(
        draws.gated_heads,
        kernels.gated_linear_attention,
        gated_linear_reference,
        kernels.gated_linear_attention_step,
        "state_BHKV",
    ),
    "sliding_window": Form(
        draws.sliding_window, kernels.sliding_window, window_reference, kernels.sliding_window_step, "ring"
    ),
    "taylor_attention_asked": Form(draws.asked_heads, kernels.taylor_attention_asked, asked_reference),
    "sliding_window_asked": Form(draws.asked_heads, kernels.sliding_window_asked, asked_reference),
    "selective_scan": Form(
        draws.selective_scan, kernels.selective_scan, scan_reference, kernels.selective_scan_step, "state_BDN"
    ),
    "ssd": Form(draws.ssd, kernels.ssd, ssd_reference, kernels.ssd_step, "state_BHPN"),
    "delta_rule": Form(draws.delta_rule, kernels.delta_rule, delta_reference, kernels.delta_rule_step, "state_BHKV"),
    "shared_delta_rule": Form(draws.delta_rule, kernels.shared_delta_rule, shared_delta_reference),
    "layer_delta_rule": Form(
        draws.layer_delta_rule,
        kernels.layer_delta_rule,
        layer_delta_reference,
        kernels.layer_delta_rule_step,
        "state_BHKV",
    ),
    "delta_inputs": Form(
        draws.delta_inputs, adapters.of_several(kernels.delta_inputs), adapters.of_several(delta_inputs_reference)
    ),
    "rwkv7_inputs": Form(draws.rwkv7_inputs, kernels.rwkv7_inputs, rwkv7_reference),
    "token_shift": Form(
        draws.token_shift, adapters.of_several(kernels.token_shift), adapters.of_several(shift_reference)
    ),
    "head_norm": Form(
        draws.head_norm, adapters.of_head_norm(kernels.head_norm), adapters.of_head_norm(head_norm_reference)
    ),
    "wkv4": Form(draws.wkv4, kernels.wkv4, wkv4_reference, kernels.wkv4_step, "state_B3D"),
    "short_conv": Form(draws.short_conv, kernels.short_conv, conv_reference, kernels.short_conv_step, "state_BDS"),
    "selective_ssm": Form(draws.selective_ssm, kernels.selective_ssm, ssm_reference),
    "selective_ssm_asked": Form(
        draws.selective_ssm_asked,
        adapters.of_asked(kernels.selective_ssm_asked, "x_BLD"),
        adapters.of_asked(asked_ssm_reference, "x_BLD"),
    ),
    "split_ssd_asked": Form(draws.split_ssd_asked, adapters.of_asked(split_ssd_asked, "p_BLF"), asked_ssd_reference),
    "split_conv": Form(draws.split_conv, kernels.split_conv, split_conv_reference),
    "conv_gate": Form(draws.conv_gate, kernels.conv_gate, conv_gate_reference, kernels.conv_gate_step, "state_BDS"),
    "base_conv": Form(draws.base_conv, kernels.base_conv, base_conv_reference),
    "gated_conv": Form(draws.gated_conv, kernels.gated_conv, gated_conv_reference),
    "plane_conv": Form(draws.plane_conv, kernels.plane_conv, plane_conv_reference),
    "shift_filter": Form(draws.shift_filter, kernels.shift_filter, shift_filter_reference),
    "long_conv": Form(draws.long_conv, kernels.long_conv, long_conv_reference),
    "gated_long_conv": Form(draws.gated_long_conv, kernels.gated_long_conv, gated_long_reference),
    "implicit_filter": Form(
        draws.implicit_filter,
        adapters.of_implicit_filter(kernels.implicit_filter),
        adapters.of_implicit_filter(implicit_reference),
    ),
    "diagonal_filter": Form(draws.diagonal_filter, kernels.diagonal_filter, diagonal_reference),
    "linear_cross_entropy": Form(draws.linear_cross_entropy, kernels.linear_cross_entropy, cross_entropy_reference),
    "add_layer_norm": Form(draws.add_layer_norm, kernels.add_layer_norm, norm_reference),
    "embedding": Form(
        draws.embedding,
        kernels.embedding,
        embedding_reference,
    ),
    "linear": Form(draws.linear, kernels.linear, projection_reference),
    "block_boundary": Form(
        draws.block_boundary,
        adapters.of_block_boundary(kernels.block_boundary, kernels.last_boundary),
        adapters.of_block_boundary(boundary_reference, last_boundary_reference),
    ),
    "row_argmax": Form(
        draws.row_argmax, adapters.of_row_argmax(kernels.row_argmax), adapters.of_row_argmax(argmax_reference)
    ),
    "swiglu": Form(draws.swiglu, kernels.swiglu, swiglu_reference),
    "rotary": Form(draws.rotary, adapters.of_rotary(kernels.rotary), adapters.of_rotary(rotary_reference)),
    "attention_decode": Form(
        draws.attention_decode,
        adapters.of_cache_step(kernels.attention_decode),
        adapters.of_cache_step(decode_reference),
    ),
    "cache_append": Form(
        draws.attention_decode,
        adapters.of_cache_step(kernels.cache_append),
        adapters.of_cache_step(append_reference),
    ),
    "adamw_step": Form(draws.adamw, adapters.of_adamw(kernels.adamw_step), adapters.of_adamw(adamw_reference)),
    "take_batch": Form(draws.batch, adapters.batch, adapters.batch_reference),
}


def arguments_of(problem: Problem, device: str) -> Arguments:
    """The inputs on a device; for a step those of STEPS tokens, and the state before them."""
    form = FORMS[problem.operator]
    stepping = problem.mode == "step"
    source = Source(problem, STEPS if stepping else None)
    given = form.draw(source)
    if problem.operator == "sliding_window":
        return _moved(given if not stepping else given | _ring(problem), device)
    if stepping or source.has("initial state"):
        given["initial_state"] = _state_behind(problem, problem.length if stepping else draws.PREFIX, source.dtype)
    if source.has("last state"):
        given["return_state"] = True
    return _moved(given, device)


def sequence_results(problem: Problem, function: Function, given: Arguments) -> dict[str, Tensor]:
    """Outputs by name, and in mode `gradients` the gradient of every floating-point input."""
    own = {name: x.detach().clone() if torch.is_tensor(x) else x for name, x in given.items()}
    own |= _sliced(own)
    with_gradients = problem.mode == "gradients"
    constant = "initial_state" if not FORMS[problem.operator].state_gradient else ""
    leaves = {name: x for name, x in own.items() if torch.is_tensor(x) and x.is_floating_point() and name != constant}
    for leaf in leaves.values():
        leaf.requires_grad_(with_gradients)
    with torch.set_grad_enabled(with_gradients):
        outputs = _called(function, own)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        results = {f"output {index + 1}": y.detach() for index, y in enumerate(outputs)}
        if with_gradients:
            ends = [y for y in outputs if y.requires_grad]
            found = torch.autograd.grad(ends, list(leaves.values()), _output_gradients(problem, ends))
            results |= {f"gradient of {name}": x for name, x in zip(leaves, found, strict=True)}
    return results


def step_results(problem: Problem, given: Arguments) -> dict[str, Tensor]:
    """The public step, token after token: its outputs (B,STEPS,...) and the state that it leaves."""
    form = FORMS[problem.operator]
    assert form.step is not None  # such problems are not made
    tokens, others = _tokens(given)
    others.pop("window", None)
    if form.state == "ring":
        carried = {name: others.pop(name).clone() for name in ("k_BWHK", "v_BWHV", "position_B")}
    else:
        carried = {form.state: others.pop("initial_state").clone()}
    others.pop("return_state", None)
    with torch.no_grad():
        outputs = [
            _called(form.step, {name: x[:, index] for name, x in tokens.items()} | others | carried)
            for index in range(STEPS)
        ]
    return {"output": torch.stack(outputs, 1)} | {f"state {name}": x for name, x in carried.items()}


def step_reference(problem: Problem, given: Arguments) -> dict[str, Tensor]:
    """What `step_results` should be: the sequence reference on the same tokens, behind the same state."""
    form = FORMS[problem.operator]
    with torch.no_grad():
        if form.state == "ring":
            return _window_reference(problem, given)
        y, state = _called(form.reference, given | {"return_state": True})
    return {"output": y, f"state {form.state}": state}


def widened(given: Arguments) -> Arguments:
    """The same values in float64."""
    wide = {name: x.double() for name, x in given.items() if torch.is_tensor(x) and x.is_floating_point()}
    return given | wide


def _called(function: Function, given: Arguments) -> Any:
    """The function on arguments by name, but for the first one, which every operator takes by position."""
    first = next(iter(given))
    return function(given[first], **{name: x for name, x in given.items() if name != first})


def _sliced(own: Arguments) -> Arguments:
    """q, k and v as slices of one memory, as a mixer has them: strides are part of what is checked."""
    names = [name for name in ("q_BLHK", "k_BLHK", "v_BLHV") if name in own]
    if not names:
        return {}
    widths = [own[name].shape[-1] for name in names]
    return dict(zip(names, torch.cat([own[name] for name in names], -1).split(widths, -1), strict=True))


def _tokens(given: Arguments) -> tuple[Arguments, Arguments]:
    """Inputs with a length, under the names that the step gives them (x_BLD: x_BD), and all others."""
    tokens = {name: x for name, x in given.items() if "_BL" in name and x is not None}
    others = {name: x for name, x in given.items() if name not in tokens}
    return _of_a_step(tokens), _of_a_step(others)


def _of_a_step(given: Arguments) -> Arguments:
    return {name.replace("_BL", "_B"): x for name, x in given.items()}


def _state_behind(problem: Problem, length: int, dtype: torch.dtype) -> Tensor:
    """The state that `length` tokens leave, in float32; for a convolution, whose state is inputs, in their dtype."""
    form = FORMS[problem.operator]
    given = widened(form.draw(Source(problem, length, salt="prefix")))
    with torch.no_grad():
        state: Tensor = _called(form.reference, given | {"return_state": True})[1]
    return state.to(dtype if form.state == "state_BDS" else torch.float32).contiguous()


def _ring(problem: Problem) -> Arguments:
    """The ring buffers behind `length` tokens: token i lies in slot i mod W."""
    given = draws.heads(Source(problem, problem.length, salt="prefix"))
    window = dict(problem.sizes)["W"]
    ring = {}
    for name, source in (("k_BWHK", "k_BLHK"), ("v_BWHV", "v_BLHV")):
        x = given[source]
        ring[name] = x.new_zeros(x.shape[0], window, *x.shape[2:])
        for position in range(max(0, problem.length - window), problem.length):
            ring[name][:, position % window] = x[:, position]
    return ring | {"position_B": torch.full((len(given["q_BLHK"]),), problem.length, dtype=torch.int32)}


def _window_reference(problem: Problem, given: Arguments) -> dict[str, Tensor]:
    """The tokens in the ring in their order, then the new ones, through the sequence reference."""
    window, length = given["window"], problem.length
    slots = torch.arange(max(0, length - window), length) % window
    after = torch.arange(length, length + STEPS) % window
    sequence, results = {}, {}
    for letter, ring in (("k_BLHK", "k_BWHK"), ("v_BLHV", "v_BWHV")):
        sequence[letter] = torch.cat([given[ring][:, slots], given[letter]], 1)
        results[f"state {ring}"] = given[ring].clone()
        results[f"state {ring}"][:, after] = given[letter]
    before = len(slots)
    q_BLHK = torch.cat([torch.zeros_like(sequence["k_BLHK"][:, :before]), given["q_BLHK"]], 1)
    y = window_reference(q_BLHK, sequence["k_BLHK"], sequence["v_BLHV"], window)[:, before:]
    return {"output": y, **results, "state position_B": given["position_B"] + STEPS}


def _output_gradients(problem: Problem, ends: list[Tensor]) -> list[Tensor]:
    """Where the backward starts from; the same values in every dtype."""
    source = Source(problem, salt="gradient")
    return [source.normal(*end.shape).to(end) for end in ends]


def _moved(given: Arguments, device: str) -> Arguments:
    return {name: x.to(device) if torch.is_tensor(x) else x for name, x in given.items()}
