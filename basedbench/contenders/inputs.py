"""The inputs of every operator and of its decode step: what a model would feed it, in shape and in scale.

Each function returns the tensors of a call by name, in the order of the operator's signature. Parameters that models
keep in float32 (decay rates, step-size biases, recurrent states) are float32 here too.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from basedbench import kernels
from basedbench.contenders.draw import Draw
from basedbench.kernels.taylor_attention import apart

# Tokens behind a linear-attention state: it only has to be one that can arise.
PREFIX = 64


def queries_keys_values(draw: Draw, length: int | None = None) -> dict[str, Tensor]:
    """q, k (B,L,H,K) and v (B,L,H,V)."""
    case = draw.case
    rows = (case.batch, length or case.length, case.heads)
    return {
        "q_BLHK": draw.normal(*rows, case.key_dim),
        "k_BLHK": draw.normal(*rows, case.key_dim),
        "v_BLHV": draw.normal(*rows, case.value_dim),
    }


def attention_step(draw: Draw) -> dict[str, Tensor]:
    """One query and a cache of `length` keys and values."""
    cache = queries_keys_values(draw)
    return {"q_BHK": _token(draw)["q_BHK"], "k_BLHK": cache["k_BLHK"], "v_BLHV": cache["v_BLHV"]}


def taylor_attention_step(draw: Draw) -> dict[str, Tensor]:
    """One token, a state (B,H,F,V) and its sums (B,H,F)."""
    state_BHFV, sums_BHF = apart(_state_of(kernels.taylor_attention, draw))
    return _token(draw) | {"state_BHFV": state_BHFV, "sums_BHF": sums_BHF}


def linear_attention_step(draw: Draw) -> dict[str, Tensor]:
    """One token and a state (B,H,K,V+1)."""
    return _token(draw) | {"state_BHKW": _state_of(kernels.linear_attention, draw)}


def sliding_window_step(draw: Draw) -> dict[str, Tensor]:
    """One token and a full ring of the last `window` keys and values."""
    case = draw.case
    rows = (case.batch, case.config["window"], case.heads)
    return _token(draw) | {
        "k_BWHK": draw.normal(*rows, case.key_dim),
        "v_BWHV": draw.normal(*rows, case.value_dim),
        "position_B": torch.full((case.batch,), case.config["window"], dtype=torch.int32, device=draw.device),
    }


def selective_scan(draw: Draw, rows: tuple[int, ...] | None = None, suffix: str = "BL") -> dict[str, Tensor]:
    """Mamba's scan with its skip, gate and step-size bias: D = value_dim channels, N = key_dim states."""
    case = draw.case
    rows = rows or (case.batch, case.length)
    channels, states = case.value_dim, case.key_dim
    rates = torch.arange(1, states + 1, dtype=torch.float32, device=draw.device)
    return {
        f"u_{suffix}D": draw.normal(*rows, channels),
        f"delta_{suffix}D": draw.normal(*rows, channels),
        "A_DN": -rates.repeat(channels, 1),
        f"B_{suffix}N": draw.normal(*rows, states),
        f"C_{suffix}N": draw.normal(*rows, states),
        "D_D": draw.normal(channels, dtype=torch.float32),
        f"z_{suffix}D": draw.normal(*rows, channels),
        "delta_bias_D": draw.step_bias(channels),
    }


def selective_scan_step(draw: Draw) -> dict[str, Tensor]:
    """One token and a state (B,D,N)."""
    case = draw.case
    state = draw.normal(case.batch, case.value_dim, case.key_dim, dtype=torch.float32)
    return _insert(selective_scan(draw, (case.batch,), "B"), 5, "state_BDN", state)


def ssd(draw: Draw, rows: tuple[int, ...] | None = None, suffix: str = "BL") -> dict[str, Tensor]:
    """Mamba-2's scan with its skip and step-size bias: P = value_dim, N = key_dim, G = groups."""
    case = draw.case
    rows = rows or (case.batch, case.length)
    shared = (*rows, case.config["groups"], case.key_dim)
    return {
        f"x_{suffix}HP": draw.normal(*rows, case.heads, case.value_dim),
        f"dt_{suffix}H": draw.normal(*rows, case.heads),
        "A_H": -draw.uniform(1, 16, case.heads),
        f"B_{suffix}GN": draw.normal(*shared),
        f"C_{suffix}GN": draw.normal(*shared),
        "D_H": draw.normal(case.heads, dtype=torch.float32),
        "dt_bias_H": draw.step_bias(case.heads),
    }


def ssd_step(draw: Draw) -> dict[str, Tensor]:
    """One token and a state (B,H,P,N)."""
    case = draw.case
    state = draw.normal(case.batch, case.heads, case.value_dim, case.key_dim, dtype=torch.float32)
    return _insert(ssd(draw, (case.batch,), "B"), 5, "state_BHPN", state)


def gated_linear_attention(draw: Draw) -> dict[str, Tensor]:
    """Scaled queries, keys, values, and the logarithms of decays as an initialised layer makes them, float32."""
    given = queries_keys_values(draw)
    return _scaled(draw, given) | {"g_BLHK": _log_decays(draw, *given["k_BLHK"].shape)}


def gated_linear_attention_step(draw: Draw) -> dict[str, Tensor]:
    """One token and a state (B,H,K,V)."""
    given = _token(draw)
    state = draw.normal(*given["k_BHK"].shape, draw.case.value_dim, dtype=torch.float32)
    return _scaled(draw, given) | {"g_BHK": _log_decays(draw, *given["k_BHK"].shape), "state_BHKV": state}


def wkv4(draw: Draw, rows: tuple[int, ...] | None = None, suffix: str = "BL") -> dict[str, Tensor]:
    """RWKV-4's keys and values; decays over the range of an initialised layer's, and bonuses: D = value_dim."""
    case = draw.case
    rows = rows or (case.batch, case.length)
    return {
        f"k_{suffix}D": draw.normal(*rows, case.value_dim),
        f"v_{suffix}D": draw.normal(*rows, case.value_dim),
        "w_D": -draw.uniform(-5, 3, case.value_dim).exp(),
        "u_D": draw.normal(case.value_dim, dtype=torch.float32),
    }


def wkv4_step(draw: Draw) -> dict[str, Tensor]:
    """One token and a state (B,3,D)."""
    state: Any = kernels.wkv4(*wkv4(draw, (draw.case.batch, PREFIX)).values(), return_state=True)[1]
    return wkv4(draw, (draw.case.batch,), "B") | {"state_B3D": state}


def short_conv(draw: Draw, rows: tuple[int, ...] | None = None, suffix: str = "BL") -> dict[str, Tensor]:
    """x (B,L,D), a filter of `width` taps and a bias."""
    case = draw.case
    rows = rows or (case.batch, case.length)
    return {
        f"x_{suffix}D": draw.normal(*rows, case.value_dim),
        "weight_DW": draw.normal(case.value_dim, case.config["width"]),
        "bias_D": draw.normal(case.value_dim),
    }


def short_conv_step(draw: Draw) -> dict[str, Tensor]:
    """One token and the width - 1 inputs before it."""
    case = draw.case
    state = draw.normal(case.batch, case.value_dim, case.config["width"] - 1)
    return short_conv(draw, (case.batch,), "B") | {"state_BDS": state}


def linear_cross_entropy(draw: Draw) -> dict[str, Tensor]:
    """Hidden states, an output matrix in the scale of an initialised one, and targets."""
    case = draw.case
    positions, width, vocabulary = case.batch * case.length, case.key_dim, case.value_dim
    return {
        "x_ND": draw.normal(positions, width),
        "weight_VD": draw.normal(vocabulary, width) * width**-0.5,
        "target_N": draw.below(vocabulary, positions),
    }


def _token(draw: Draw) -> dict[str, Tensor]:
    case = draw.case
    rows = (case.batch, case.heads)
    return {
        "q_BHK": draw.normal(*rows, case.key_dim),
        "k_BHK": draw.normal(*rows, case.key_dim),
        "v_BHV": draw.normal(*rows, case.value_dim),
    }


def _scaled(draw: Draw, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """With q / sqrt(K), for an operator that does not scale."""
    return {name: x * draw.case.key_dim**-0.5 if name.startswith("q_") else x for name, x in tensors.items()}


def _log_decays(draw: Draw, *shape: int) -> Tensor:
    return F.logsigmoid(draw.normal(*shape, dtype=torch.float32)) / 16


def _state_of(prefill: Any, draw: Draw) -> Tensor:
    """The state behind a short prefix: one whose normaliser is positive, as a random one's is not."""
    state: Tensor = prefill(*queries_keys_values(draw, PREFIX).values(), return_state=True)[1]
    return state.contiguous()


def _insert(tensors: dict[str, Tensor], place: int, name: str, tensor: Tensor) -> dict[str, Tensor]:
    entries = list(tensors.items())
    return dict([*entries[:place], (name, tensor), *entries[place:]])
