"""What gated linear mixers end with: a norm over the values of each head, a bonus, a gate.

    n = (y - mean(y)) / sqrt(var(y) + eps) * weight + bias,   s = sum_k r_k k_k rho_k
    out = (n + s v) * f(gate)                                 f: silu, sigmoid or the gate itself

per head of V values; with `center=False` no mean is taken off and var is the mean square: RMSNorm (arXiv 1910.07467).
Centred and with a weight for each channel it is the GroupNorm of RWKV-7 (arXiv 2503.14456, section 4), whose bonus is
(r, k, rho, v). Bias, bonus and gate may be missing. float32 inside (float64 for float64 inputs); saved: the inputs.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .costs import total_bytes
from .precision import accumulation_dtype, without_autocast
from .shapes import checked_shapes

Activation = Literal["silu", "sigmoid", "identity"]
Bonus = tuple[Tensor, Tensor, Tensor, Tensor]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "identity": lambda gate: gate,
}


@without_autocast
def reference(
    y_xHV: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    gate_xE: Tensor | None = None,
    activation: Activation = "silu",
    bonus: Bonus | None = None,
    eps: float = 1e-5,
    center: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`head_norm` in PyTorch: differentiable, any device."""
    _check(weight, bias, bonus)
    wide = accumulation_dtype(y_xHV.dtype)
    n_xHV = y_xHV.to(wide)
    if center:
        n_xHV = n_xHV - n_xHV.mean(-1, keepdim=True)
    n_xHV = n_xHV * (n_xHV.square().mean(-1, keepdim=True) + eps).rsqrt()
    n_xHV = n_xHV if weight is None else n_xHV * weight.to(wide)
    n_xHV = n_xHV if bias is None else n_xHV + bias.to(wide)
    if bonus is not None:
        r_xHK, k_xHK, rho_HK, v_xHV = (part.to(wide) for part in bonus)
        n_xHV = n_xHV + (r_xHK * k_xHK * rho_HK).sum(-1, keepdim=True) * v_xHV
    out_xE = n_xHV.flatten(-2)
    out_xE = out_xE if gate_xE is None else out_xE * ACTIVATIONS[activation](gate_xE.to(wide))
    return out_xE.to(dtype or y_xHV.dtype)


@checked_shapes({"E = H V": lambda E, H, V: E == H * V}, weight="V|HV", bias="HV", bonus=("xHV", "xHV", "HV", "xHV"))
def head_norm(
    y_xHV: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    gate_xE: Tensor | None = None,
    activation: Activation = "silu",
    bonus: Bonus | None = None,
    eps: float = 1e-5,
    center: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """y (..., H, V), the gate (..., H V) -> (..., H V), in the dtype of y or in `dtype`.

    The weight, ones if there is none, is (V,), shared by the heads, or (H, V) as the bias. `bonus` is r and k
    (..., H, V), rho (H, V) and v (..., H, V). Raises ValueError for a shared weight beside a bias or a bonus.
    """
    _check(weight, bias, bonus)
    if y_xHV.is_cuda:
        from . import head_norm_triton as kernels

        parts = weight, bias, gate_xE, *(bonus or ())
        if kernels.unsupported(y_xHV, *parts) is None:
            return kernels.head_norm(
                y_xHV, weight, bias, gate_xE, activation, bonus, eps, center, dtype or y_xHV.dtype
            )  # fmt: skip
    options: dict[str, Any] = {"activation": activation, "eps": eps, "center": center, "dtype": dtype}
    return reference(y_xHV, weight, bias, gate_xE=gate_xE, bonus=bonus, **options)


def _check(weight: Tensor | None, bias: Tensor | None, bonus: Bonus | None) -> None:
    if weight is not None and weight.ndim == 1 and not (bias is None and bonus is None):
        raise ValueError("a weight that heads share comes without bias and bonus; give one of shape (heads, values)")


def flops(*, tokens: int, heads: int, value_dim: int, backward: bool = False) -> int:
    """Per value seven operations for the norm, two for the gate and its exponential; backward: twice as many more."""
    return tokens * heads * value_dim * 9 * (3 if backward else 1)


def bytes_moved(*, tokens: int, heads: int, value_dim: int, element_bytes: int = 2, backward: bool = False) -> int:
    """y and the gate in, one output; the weights are few."""
    elements = tokens * heads * value_dim
    return total_bytes(2 * elements, elements, element_bytes=element_bytes, backward=backward)
