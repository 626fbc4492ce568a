"""The delta rule as a layer has it: what a case draws, and how the operator of basedbench is told it.

    S_t = (I - beta_t k_t k_t^T) diag(exp(g_t)) S_t-1 + beta_t k_t v_t^T        y_t = S_t^T q_t

with keys of unit norm and step sizes beta. Without decay it is DeltaNet; with one of a head Gated DeltaNet, with one of
a channel Kimi delta attention. Peers and `basedbench.kernels.layer_delta_rule` take q, k, v, beta and g.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from basedbench.contenders.draw import Draw


def delta_rule(draw: Draw, rows: tuple[int, ...] | None = None, suffix: str = "BL") -> dict[str, Tensor]:
    """q, k (B,L,H,K), v (B,L,H,V), beta (B,L,H), and float32 logarithms of decays (B,L,H) or (B,L,H,K) if any."""
    case = draw.case
    heads = (*(rows or (case.batch, case.length)), case.heads)
    drawn = {
        f"q_{suffix}HK": (_unit(draw, *heads, case.key_dim) * case.key_dim**-0.5).to(draw.dtype),
        f"k_{suffix}HK": _unit(draw, *heads, case.key_dim).to(draw.dtype),
        f"v_{suffix}HV": draw.normal(*heads, case.value_dim),
        f"beta_{suffix}H": draw.normal(*heads, dtype=torch.float32).sigmoid().to(draw.dtype),
    }
    match case.config["decay"]:
        case "head":
            drawn[f"g_{suffix}H"] = _log_decays(draw, heads).squeeze(-1)
        case "channel":
            drawn[f"g_{suffix}HK"] = _log_decays(draw, heads, case.key_dim)
    return drawn


def delta_rule_step(draw: Draw) -> dict[str, Tensor]:
    """One token and a state (B,H,K,V)."""
    case = draw.case
    state = draw.normal(case.batch, case.heads, case.key_dim, case.value_dim, dtype=torch.float32)
    return delta_rule(draw, (case.batch,), "B") | {"state_BHKV": state}


def arguments(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What a case draws -> q, k, v, beta, g of `basedbench.kernels.layer_delta_rule`, and the state of a step."""
    state = {name: x for name, x in tensors.items() if name.startswith("state")}
    q, k, v, beta, *decays = (x for name, x in tensors.items() if name not in state)
    g = decays[0] if decays else None
    if g is not None and g.dim() != k.dim():
        g = g.unsqueeze(-1)
    return {"q": q, "k": k, "v": v, "beta": beta, "g": g, **state}


def _unit(draw: Draw, *shape: int) -> Tensor:
    return F.normalize(draw.normal(*shape, dtype=torch.float32), dim=-1)


def _log_decays(draw: Draw, heads: tuple[int, ...], channels: int = 1) -> Tensor:
    """(B,L,H,channels) as initialised layers make them: -A softplus(x + bias), A a head's, the bias a channel's."""
    A_H1 = draw.uniform(1, 16, heads[-1], 1)
    bias_HK = draw.step_bias(heads[-1] * channels).unflatten(0, (heads[-1], channels))
    return -A_H1 * F.softplus(draw.normal(*heads, channels, dtype=torch.float32) + bias_HK)
