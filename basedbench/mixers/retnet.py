"""Multi-scale retention, the mixer of RetNet (arXiv 2307.08621, section 2).

    q, k, v, z = W u;   q_t, k_t = rotated by t theta
    S_t = gamma S_{t-1} + v_t k_t^T / sqrt(K);   y_t = S_t q_t;   out = W_out (rmsnorm(y) * silu(z))

Per head h of K = d / heads keys and V = expand_v d / heads values, with a fixed decay gamma_h = 1 - 2^(-5-h). Rotated
are the pairs of channels 2i and 2i + 1, by theta_i = 10000^(-i / (K/2 - 1)) a token: xPos whose scale gamma stands for,
as released. The norm over a head's values, the paper's GroupNorm, has no weights and eps 1e-6; the row-wise scales of
the released code, which it cancels, are left out. No biases.
The recurrence is `retention`; a step is `ssd_step` with step size 1 / sqrt(K) and every head a group. q and k come with
the first of each pair before all the second: their products do not depend on an order that both have, and so `rotary`
turns them.
State: per head V x K numbers, always in fp32 (fp64 for fp64), and the position that the next token is rotated by.

    state_bytes = a * d * int(round(expand_v * d, 6)) // heads + 4

(d = d_model, a = 4 bytes or 8 for fp64; 4 for the position.) zoology has no RetNet; counted there as here, without the
position. The recall recipe's init touches the two projections; nothing else is learned.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from basedbench.errors import UserError
from basedbench.kernels import retention, rotary, rotary_angles, ssd_step
from basedbench.kernels.asked import Asked
from basedbench.mixers.base import Mixer, MixerOptions, State, accumulator_dtype, require_heads
from basedbench.mixers.gla import check_expansions, expanded
from basedbench.mixers.head_norm import GatedHeadNorm
from basedbench.mixers.registry import register


class RetNetOptions(MixerOptions):
    heads: int = Field(2, ge=1, description="Heads, each with its own decay; they divide d_model.")
    expand_v: float = Field(2.0, gt=0, description="Values of all heads per unit of d_model.")


@register
class RetNet(Mixer):
    """Multi-scale retention with an output gate; (B, L, D) to (B, L, D)."""

    name = "retnet"
    Options = RetNetOptions
    options: RetNetOptions
    order: Tensor

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        self.values = expanded(d_model, self.options.expand_v)
        self.widths = [d_model, d_model, self.values, self.values]
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=False)
        heads = torch.arange(2 * d_model).view(2 * self.options.heads, -1, 2)  # of q, then of k
        order = [heads.transpose(1, 2).flatten(), torch.arange(2 * d_model, sum(self.widths))]
        self.register_buffer("order", torch.cat(order), persistent=False)
        self.norm = GatedHeadNorm(self.values // self.options.heads, eps=1e-6, gain=False)
        self.out_proj = nn.Linear(self.values, d_model, bias=False)

    @classmethod
    def check(cls, d_model: int, options: RetNetOptions) -> None:
        require_heads(cls.name, d_model, options.heads)
        check_expansions(cls.name, d_model, options.heads, expand_v=options.expand_v)
        keys = d_model // options.heads
        if keys % 2:
            raise UserError(
                f"mixer 'retnet': heads = {options.heads} leaves each head {keys} of d_model = {d_model}, an odd "
                "number that cannot be rotated in pairs; choose heads that leave an even one."
            )

    def _project(self, x_xD: Tensor, positions_x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v of (..., H, K), and the gate's logits."""
        rows = self.in_proj.weight.index_select(0, self.order)
        q, k, v, gate_xE = F.linear(x_xD, rows).split(self.widths, -1)
        q, k, v = (part.unflatten(-1, (self.options.heads, -1)) for part in (q, k, v))
        q, k = rotary(q, k, angles(positions_x, q.shape[-1], accumulator_dtype(q.dtype)))
        return q, k, v, gate_xE

    def _retained(self, x_BLD: Tensor, *, return_state: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values (B, L, H, V), the gate's logits, the state if asked for."""
        positions_L = torch.arange(x_BLD.shape[1], device=x_BLD.device)
        q, k, v, gate_BLE = self._project(x_BLD, positions_L)
        found = retention(q, k, v, log_decays(v), scale=q.shape[-1] ** -0.5, return_state=return_state)
        y_BLHV, state = found if isinstance(found, tuple) else (found, None)
        return y_BLHV, gate_BLE, state

    def forward(self, x_BLD: Tensor) -> Tensor:
        y_BLHV, gate_BLE, _ = self._retained(x_BLD, return_state=False)
        return self.out_proj(self.norm(y_BLHV, gate_BLE))

    def forward_asked(self, x_BLD: Tensor, asked: Asked) -> Tensor:
        y_BLHV, gate_BLE, _ = self._retained(x_BLD, return_state=False)
        y_BKHV = asked.rows(y_BLHV.flatten(2)).unflatten(-1, y_BLHV.shape[2:])
        return self.out_proj(self.norm(y_BKHV, asked.rows(gate_BLE)))

    def prefill(self, x_BLD: Tensor, max_length: int | None = None) -> tuple[Tensor, State]:
        y_BLHV, gate_BLE, state_BHVK = self._retained(x_BLD, return_state=True)
        position_B = torch.full(x_BLD.shape[:1], x_BLD.shape[1], dtype=torch.int32, device=x_BLD.device)
        state = {"state": cast(Tensor, state_BHVK).contiguous(), "position": position_B}
        return self.out_proj(self.norm(y_BLHV, gate_BLE)), state

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> State:
        heads = self.options.heads
        shape = (batch_size, heads, self.values // heads, self.d_model // heads)
        return {
            "state": torch.zeros(shape, dtype=accumulator_dtype(dtype), device=device),
            "position": torch.zeros(batch_size, dtype=torch.int32, device=device),
        }

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        q, k, v, gate_BE = self._project(x_BD, state["position"])
        state["position"] += 1
        scale = q.shape[-1] ** -0.5
        steps_BH = v.new_full(v.shape[:-1], scale, dtype=state["state"].dtype)
        y_BHV = ssd_step(v, steps_BH, log_decays(v) / scale, k, q, state["state"])
        return self.out_proj(self.norm(y_BHV, gate_BE)), state

    def zoology_elements(self, length: int) -> int:
        return self.d_model * self.values // self.options.heads


def log_decays(v_xHV: Tensor) -> Tensor:
    """log(1 - 2^(-5-h)) of each head, in float32 at least."""
    heads_H = torch.arange(v_xHV.shape[-2], dtype=accumulator_dtype(v_xHV.dtype), device=v_xHV.device)
    return torch.log1p(-torch.exp2(-5 - heads_H))


def angles(positions_x: Tensor, keys: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (..., K/2) of every pair at these positions."""
    # Of pairs 0 ... K/2 - 1 the last has the last frequency, where `rotary_angles` ends one before base^-1.
    base = 10000.0 ** (keys / max(keys - 2, 1))
    return rotary_angles(positions_x, keys, base=base, dtype=dtype)
