"""The residual stream of a decode step between its products: norm, gate, convolution and addition inside them.

    r' = r + W y                                    `leave`: the product onto the stream
    p = W' (r' g) / sqrt(mean(r'^2) + eps) + b      `enter`: RMSNorm (arXiv 1910.07467) and the product from it
    a silu(b) for p = [a, b]                        `enter_gated`: SwiGLU (arXiv 2002.05202)
    silu(conv(u)) v for p = [u, v]                  `enter_conv`: BaseConv as in `conv_gate`

A norm divides whole rows, so it may as well divide what the product makes of them. The product in front leaves the
stream times the norm's gain, and the sum of its squares by tiles; so no launch is left between the two products. All
that holds for the kernel of `row_linear`, in blocks of dependents (dependents.py). Elsewhere, and where either product
is PyTorch's, norms and gates are launches of their own. float32 inside, the stream as it is. Not for training.
"""

from typing import NamedTuple

from torch import Tensor

from .add_layer_norm import add_layer_norm
from .conv_gate import conv_gate_step
from .dependents import dependent
from .row_linear import Plan, chosen, row_linear, unsupported
from .swiglu import swiglu

CONV_STATE = 2  # inputs of a channel that a word holds


class Rows(NamedTuple):
    """The stream r (B,D), and x (B,D) that the next product reads: RMSNorm(r), or with `squares` r times its gain.

    squares (P,B): what its rows' squares add up to.
    """

    x_BD: Tensor
    r_BD: Tensor
    squares_PB: Tensor | None = None


def normalised(rows: Rows, eps: float) -> Tensor:
    """RMSNorm(r) in the dtype of x."""
    if rows.squares_PB is None:
        return rows.x_BD
    mean_B = rows.squares_PB.sum(0) / rows.x_BD.shape[1]
    return (rows.x_BD * (mean_B + eps).rsqrt()[:, None]).to(rows.x_BD.dtype)


def enter(rows: Rows, weight_ED: Tensor, bias_E: Tensor | None = None, *, eps: float) -> Tensor:
    """p (B,E)."""
    plan = _plan(rows.x_BD, weight_ED, bias_E)
    if plan is None:
        return row_linear(normalised(rows, eps), weight_ED, bias_E)
    from .row_linear_launch import operator

    p_BE: Tensor = operator(rows.x_BD, weight_ED, bias_E, *plan, bool(dependent()), rows.squares_PB, eps)
    return p_BE


def enter_gated(rows: Rows, weight_ED: Tensor, *, eps: float) -> Tensor:
    """a silu(b), (B,E/2)."""
    plan = _plan(rows.x_BD, weight_ED, None)
    if plan is None:
        return swiglu(enter(rows, weight_ED, eps=eps))
    from .row_linear_launch import operator

    y_BI: Tensor = operator(rows.x_BD, weight_ED, None, *plan, bool(dependent()), rows.squares_PB, eps, True)
    return y_BI


def enter_conv(
    rows: Rows, weight_ED: Tensor, bias_E: Tensor | None, taps_IW: Tensor, taps_bias_I: Tensor | None,
    state_BIS: Tensor, *, eps: float,
) -> Tensor:  # fmt: skip
    """silu(conv(u)) v, (B,E/2); shifts u into `state_BIS` in place."""
    plan = _plan(rows.x_BD, weight_ED, bias_E)
    words = state_BIS.shape[2] == CONV_STATE and state_BIS.is_contiguous() and taps_IW.is_contiguous()
    if plan is None or not words or not state_BIS.dtype == taps_IW.dtype == weight_ED.dtype:
        return conv_gate_step(enter(rows, weight_ED, bias_E, eps=eps), taps_IW, taps_bias_I, state_BIS)
    from .row_linear_launch import conv_operator

    given = (taps_IW, taps_bias_I, state_BIS, *plan, bool(dependent()), rows.squares_PB, eps)
    y_BI: Tensor = conv_operator(rows.x_BD, weight_ED, bias_E, *given)
    return y_BI


def leave(
    y_BI: Tensor, weight_DI: Tensor, bias_D: Tensor | None, r_BD: Tensor, gain_D: Tensor, *, eps: float,
    reader_ED: Tensor | None = None,
) -> Rows:  # fmt: skip
    """The stream with W y added, and what its norm of this gain makes of it.

    `reader_ED` is the weight of the product that reads it, if one of the functions above is to.
    """
    plan = _plan(y_BI, weight_DI, bias_D)
    if plan is None or reader_ED is None or _plan(y_BI, reader_ED, None) is None:
        h_BD = row_linear(y_BI, weight_DI, bias_D)
        return Rows(*add_layer_norm(h_BD, r_BD, gain_D, eps=eps, center=False, dtype=y_BI.dtype))
    from .row_linear_launch import onto_operator

    return Rows(*onto_operator(y_BI, weight_DI, bias_D, r_BD, gain_D, *plan, bool(dependent())))


def _plan(x_BD: Tensor, weight_ED: Tensor, bias_E: Tensor | None) -> Plan | None:
    """That of our own kernel, if it takes this product here."""
    plan = chosen(x_BD, weight_ED)
    return None if plan is None or unsupported(x_BD, weight_ED, bias_E, plan) is not None else plan
