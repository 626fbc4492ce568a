"""References of the decode steps: each is its sequence operator's reference on a sequence of one token.

They take what the public steps take and rewrite the state in place as those do, so either checks the other. Float64
inputs give float64 results.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from basedbench.contenders.attention import attention_step_reference
from basedbench.kernels.gated_linear_attention import reference as gated_linear_reference
from basedbench.kernels.layer_delta_rule import reference as delta_reference
from basedbench.kernels.linear_attention import reference as linear_reference
from basedbench.kernels.selective_scan import reference as scan_reference
from basedbench.kernels.short_conv import reference as conv_reference
from basedbench.kernels.ssd import reference as ssd_reference
from basedbench.kernels.taylor_attention import reference as taylor_reference
from basedbench.kernels.wkv4 import reference as wkv4_reference


def taylor_attention_step(q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, state_BHFV: Tensor, sums_BHF: Tensor) -> Tensor:
    """`basedbench.kernels.taylor_attention_step`."""
    state_BHFW = torch.cat([state_BHFV, sums_BHF.unsqueeze(-1)], -1)
    y_BHV = _one_token(taylor_reference, state_BHFW, *_sequences(q_BHK, k_BHK, v_BHV))
    state_BHFV.copy_(state_BHFW[..., :-1])
    sums_BHF.copy_(state_BHFW[..., -1])
    return y_BHV


def linear_attention_step(q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, state_BHKW: Tensor) -> Tensor:
    """`basedbench.kernels.linear_attention_step`."""
    return _one_token(linear_reference, state_BHKW, *_sequences(q_BHK, k_BHK, v_BHV))


def sliding_window_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, k_BWHK: Tensor, v_BWHV: Tensor, position_B: Tensor
) -> Tensor:
    """`basedbench.kernels.sliding_window_step` with a full ring."""
    keys, values = torch.cat([k_BWHK, k_BHK.unsqueeze(1)], 1), torch.cat([v_BWHV, v_BHV.unsqueeze(1)], 1)
    y_BHV = attention_step_reference(q_BHK, keys, values)
    rows, slot = torch.arange(len(q_BHK), device=q_BHK.device), (position_B % k_BWHK.shape[1]).long()
    k_BWHK[rows, slot], v_BWHV[rows, slot] = k_BHK, v_BHV
    position_B += 1
    return y_BHV


def selective_scan_step(
    u_BD: Tensor,
    delta_BD: Tensor,
    A_DN: Tensor,
    B_BN: Tensor,
    C_BN: Tensor,
    state_BDN: Tensor,
    *,
    z_BD: Tensor,
    **options: Any,
) -> Tensor:
    """`basedbench.kernels.selective_scan_step`."""
    u, delta, B, C, z = _sequences(u_BD, delta_BD, B_BN, C_BN, z_BD)
    return _one_token(scan_reference, state_BDN, u, delta, A_DN, B, C, z_BLD=z, **options)


def ssd_step(
    x_BHP: Tensor,
    dt_BH: Tensor,
    A_H: Tensor,
    B_BGN: Tensor,
    C_BGN: Tensor,
    state_BHPN: Tensor,
    **options: Any,
) -> Tensor:
    """`basedbench.kernels.ssd_step`."""
    x, dt, B, C = _sequences(x_BHP, dt_BH, B_BGN, C_BGN)
    return _one_token(ssd_reference, state_BHPN, x, dt, A_H, B, C, **options)


def delta_rule_step(
    q_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    beta_BH: Tensor,
    g_BHK: Tensor | None,
    state_BHKV: Tensor,
) -> Tensor:
    """`basedbench.kernels.layer_delta_rule_step`."""
    tokens = _sequences(q_BHK, k_BHK, v_BHV, beta_BH)
    return _one_token(delta_reference, state_BHKV, *tokens, None if g_BHK is None else g_BHK.unsqueeze(1))


def gated_linear_attention_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, g_BHK: Tensor, state_BHKV: Tensor
) -> Tensor:
    """`basedbench.kernels.gated_linear_attention_step`."""
    return _one_token(gated_linear_reference, state_BHKV, *_sequences(q_BHK, k_BHK, v_BHV, g_BHK))


def wkv4_step(k_BD: Tensor, v_BD: Tensor, w_D: Tensor, u_D: Tensor, state_B3D: Tensor) -> Tensor:
    """`basedbench.kernels.wkv4_step`."""
    return _one_token(wkv4_reference, state_B3D, *_sequences(k_BD, v_BD), w_D, u_D)


def short_conv_step(
    x_BD: Tensor, weight_DW: Tensor, bias_D: Tensor, state_BDS: Tensor, *, activation: Any = None
) -> Tensor:
    """`basedbench.kernels.short_conv_step`."""
    return _one_token(conv_reference, state_BDS, x_BD.unsqueeze(1), weight_DW, bias_D, activation=activation)


def _sequences(*tokens: Tensor) -> tuple[Tensor, ...]:
    return tuple(token.unsqueeze(1) for token in tokens)


def _one_token(reference: Callable[..., Any], state: Tensor, *arguments: Tensor | None, **options: Any) -> Tensor:
    y, after = reference(*arguments, **options, initial_state=state, return_state=True)
    state.copy_(after)
    return y.squeeze(1)
