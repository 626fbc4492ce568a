"""Operators whose arguments are more than tensors by name, as functions that take tensors by name and return tensors.

`of(function)` gives such a function for the public function and for the reference alike.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from basedbench.kernels import rotary_angles
from basedbench.kernels.adamw import Coefficients, Moments
from basedbench.kernels.asked import Asked, questions_at
from basedbench.kernels.batch import Tables, count_reference, count_step, take_batch, take_reference
from basedbench.kernels.taylor_attention import apart

Function = Callable[..., Any]
ADAMW = Coefficients(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)


def of_several(function: Function) -> Function:
    """Of several outputs those that there are."""

    def call(*arguments: Tensor, **named: Any) -> tuple[Tensor, ...]:
        return tuple(output for output in function(*arguments, **named) if output is not None)

    return call


def of_retention(function: Function) -> Function:
    """With RetNet's decays, which are constants, and its scale."""

    def call(q_BLHK: Tensor, **named: Any) -> Any:
        dtype = torch.promote_types(q_BLHK.dtype, torch.float32)
        heads_H = torch.arange(q_BLHK.shape[2], dtype=dtype, device=q_BLHK.device)
        named["log_decay_H"] = torch.log1p(-torch.exp2(-5 - heads_H))
        return function(q_BLHK, **named, scale=q_BLHK.shape[-1] ** -0.5)

    return call


def of_taylor_step(function: Function) -> Function:
    """With a state that has its sums as the last column."""

    def call(q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, state_BHFW: Tensor) -> Any:
        state_BHFV, sums_BHF = apart(state_BHFW)
        y_BHV = function(q_BHK, k_BHK, v_BHV, state_BHFV, sums_BHF)
        state_BHFW.copy_(torch.cat([state_BHFV, sums_BHF[..., None]], -1))
        return y_BHV

    return call


def of_head_norm(function: Function) -> Function:
    """The bonus's tensors one by one."""

    def call(
        y_xHV: Tensor,
        r_xHV: Tensor | None = None,
        k_xHV: Tensor | None = None,
        rho_HV: Tensor | None = None,
        v_xHV: Tensor | None = None,
        **options: Any,
    ) -> Any:
        return function(y_xHV, bonus=None if r_xHV is None else (r_xHV, k_xHV, rho_HV, v_xHV), **options)

    return call


def of_asked(function: Function, whole: str) -> Function:
    """Positions of asked tokens instead of all that is known of them; `whole` has a row for every token."""

    def call(*arguments: Tensor, positions_BK: Tensor, **named: Any) -> Any:
        length = named[whole].shape[1] if whole in named else arguments[0].shape[1]
        asked = Asked(questions_at(positions_BK, length), arguments[0])  # the rows of x are read by nobody
        return function(*arguments, asked=asked, **named)

    return call


def of_block_boundary(function: Function, last: Function) -> Function:
    """The norms' gains and biases one by one; with positions what stands in front of the last mixer."""

    def call(
        h_BLD: Tensor,
        residual_BLD: Tensor,
        weight_D: Tensor,
        bias_D: Tensor | None,
        first_weight_D: Tensor | None,
        first_bias_D: Tensor | None,
        positions_BK: Tensor | None = None,
        **options: Any,
    ) -> Any:
        norm = weight_D, bias_D
        options["first"] = None if first_weight_D is None else (first_weight_D, first_bias_D)
        if positions_BK is None:
            return function(h_BLD, residual_BLD, norm, **options)
        y_BLD, asked, s_BKD = last(h_BLD, residual_BLD, norm, questions_at(positions_BK, h_BLD.shape[1]), **options)
        return y_BLD, asked.x_BKD, s_BKD

    return call


def of_row_argmax(function: Function) -> Function:
    """The numbers that were chosen: which of several equal ones says nothing."""

    def call(x_NV: Tensor) -> Tensor:
        return x_NV.gather(-1, function(x_NV).clamp(0, x_NV.shape[-1] - 1)[:, None])[:, 0]

    return call


def of_implicit_filter(function: Function) -> Function:
    """The hidden layers' weights and biases one by one."""

    def call(features_NE: Tensor, frequency_F: Tensor, out_DF: Tensor, length: int, **hidden: Tensor) -> Any:
        rates = {"slowest": 3.0, "fastest": 15.0}
        return function(features_NE, list(hidden.values()), frequency_F, out_DF, length=length, **rates)

    return call


def of_adamw(function: Function) -> Function:
    """One step on copies: the change of the parameters, both moments, and the copy in half precision."""

    def call(
        parameters: Tensor, first: Tensor, second: Tensor, steps: Tensor, rate: Tensor, **gradients: Tensor
    ) -> tuple[Tensor, ...]:
        half = torch.zeros_like(parameters, dtype=torch.bfloat16)
        moments = Moments(parameters.clone(), first.clone(), second.clone(), steps, half)
        function([[gradient] for gradient in gradients.values()], moments, rate, ADAMW)
        return moments.parameters - parameters, moments.first, moments.second, half

    return call


def of_rotary(function: Function) -> Function:
    """The angles are made on the way."""

    def call(q_BLHK: Tensor, k_BLGK: Tensor, rotated: int) -> Any:
        position_L = torch.arange(q_BLHK.shape[1], device=q_BLHK.device)
        return function(q_BLHK, k_BLGK, _angles(position_L, rotated, q_BLHK))

    return call


def of_cache_step(function: Function) -> Function:
    """One step on copies of the caches: its output, and both caches after it."""

    def call(
        q_BHK: Tensor,
        k_BGK: Tensor,
        v_BGV: Tensor,
        k_BLGK: Tensor,
        v_BLGV: Tensor,
        length_B: Tensor,
        rotated: int,
    ) -> tuple[Tensor, ...]:
        angles = _angles(length_B, rotated, q_BHK) if rotated else None
        caches = k_BLGK.clone(), v_BLGV.clone()
        return function(q_BHK, k_BGK, v_BGV, *caches, length_B, angles=angles), *caches

    return call


def _angles(position: Tensor, rotated: int, x: Tensor) -> Any:
    """As a model has them: float32, with float64 inputs float64."""
    return rotary_angles(position, rotated, dtype=torch.promote_types(x.dtype, torch.float32))


def batch(
    tokens_NL: Tensor, positions_NK: Tensor, targets_NK: Tensor, order_N: Tensor, cursor: Tensor, loss_N: Tensor
) -> tuple[Tensor, ...]:
    """A batch fetched, and the step counted."""
    return _batch(take_batch, count_step, Tables(tokens_NL, positions_NK, targets_NK), order_N, cursor, loss_N)


def batch_reference(
    tokens_NL: Tensor, positions_NK: Tensor, targets_NK: Tensor, order_N: Tensor, cursor: Tensor, loss_N: Tensor
) -> tuple[Tensor, ...]:
    """`batch` by the references."""
    tables = Tables(tokens_NL, positions_NK, targets_NK)
    return _batch(take_reference, count_reference, tables, order_N, cursor, loss_N)


def _batch(
    take: Function, count: Function, tables: Tables, order_N: Tensor, cursor: Tensor, loss_N: Tensor
) -> tuple[Tensor, ...]:
    size = len(order_N) // 2
    tokens, targets, (positions, slots, _) = take(tables, order_N, cursor, size)
    total, after = torch.zeros((), dtype=torch.float64, device=loss_N.device), cursor.clone()
    steps = torch.zeros_like(cursor)
    count(loss_N, total, after, size, steps)
    return tokens, targets, positions, slots, total.view(1), after.view(1), steps.view(1)
