"""The parts of a language model that the recall mixers do not have: rotary attention, its window, BaseConv, the MLP.

All projections of attention and MLP are without bias. Each mixer has the four forms of the mixer contract; attention
is told the positions besides, since its queries and keys turn with them.
"""

from typing import cast

import torch
from torch import Tensor, nn

from basedbench.kernels import (
    attention_decode,
    cache_append,
    conv_gate,
    conv_gate_step,
    rotary,
    sliding_window,
    sliding_window_step,
    swiglu,
)
from basedbench.kernels.rotary import Angles
from basedbench.mixers.attention import causal_attention
from basedbench.mixers.base import State, project
from basedbench.mixers.conv import ShortConv
from basedbench.mixers.registry import get_mixer
from basedbench.mixers.sliding_window import empty_ring, filled_ring
from basedbench.models.language.attention_step import OURS, attention_step
from basedbench.models.language.config import LanguageConfig, LayerKind
from basedbench.models.language.positions import Positions


class RotaryMixer(nn.Module):
    """Fused qkv of equal heads, the first `fraction` of each query and key turned; what lies between is derived."""

    def __init__(self, d_model: int, heads: int, fraction: float) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, d_model // heads
        self.rotated = int(fraction * self.head_dim)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def project(self, x_xD: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """q and k turned, and v, each (..., H, K)."""
        q, k, v = self.heads_of(project(self.qkv, x_xD))
        angles = self.angles(positions)
        return (q, k, v) if angles is None else (*rotary(q, k, angles), v)

    def heads_of(self, p_xE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as projected, each (..., H, K)."""
        q, k, v = p_xE.unflatten(-1, (3, self.heads, self.head_dim)).unbind(-3)
        return q, k, v

    def angles(self, positions: Positions) -> Angles | None:
        """What q and k turn by, if they do."""
        return positions.angles(self.rotated) if self.rotated else None

    def output(self, y_xHK: Tensor) -> Tensor:
        """(..., H, K) -> (..., D)."""
        return project(self.out_proj, y_xHK.flatten(-2))

    def step(self, x_BD: Tensor, state: State, positions: Positions) -> tuple[Tensor, State]:
        return project(self.out_proj, self.step_between(project(self.qkv, x_BD), state, positions)), state

    def step_between(self, p_BE: Tensor, state: State, positions: Positions) -> Tensor:
        """A step from the outputs of `qkv` to the inputs of `out_proj`."""
        raise NotImplementedError


class RotaryAttention(RotaryMixer):
    """Causal softmax attention. State: keys and values of `max_length` tokens."""

    implementation = "auto"  # of the decode step; the names are in attention_step.py

    def forward(self, x_BLD: Tensor, positions: Positions) -> Tensor:
        return self.output(causal_attention(*self.project(x_BLD, positions)))

    def prefill(self, x_BLD: Tensor, positions: Positions) -> tuple[Tensor, State]:
        """The outputs, and keys and values of the prompt alone."""
        q_BLHK, k_BLHK, v_BLHK = self.project(x_BLD, positions)
        return self.output(causal_attention(q_BLHK, k_BLHK, v_BLHK)), {"k": k_BLHK, "v": v_BLHK}

    def init_state(
        self, batch_size: int, max_length: int, dtype: torch.dtype, device: torch.device | str | None = None
    ) -> State:
        shape = (batch_size, max_length, self.heads, self.head_dim)
        return {name: torch.zeros(shape, dtype=dtype, device=device) for name in ("k", "v")}

    def step_between(self, p_BE: Tensor, state: State, positions: Positions) -> Tensor:
        heads, angles = self.heads_of(p_BE), self.angles(positions)
        if self.implementation == OURS:
            return attention_decode(*heads, state["k"], state["v"], positions.tensor, angles=angles).flatten(1)
        q_BHK = cache_append(*heads, state["k"], state["v"], positions.tensor, angles=angles)
        y_BHK = attention_step(
            q_BHK,
            state["k"],
            state["v"],
            positions.tensor + 1,
            implementation=self.implementation,
            extent=positions.extent,
        )
        return y_BHK.flatten(1)


class RotaryWindow(RotaryMixer):
    """Causal softmax attention over the last `window` tokens and the current one. State: a ring of keys and values."""

    def __init__(self, d_model: int, heads: int, fraction: float, window: int) -> None:
        super().__init__(d_model, heads, fraction)
        self.window = window

    def forward(self, x_BLD: Tensor, positions: Positions) -> Tensor:
        return self.output(sliding_window(*self.project(x_BLD, positions), self.window))

    def prefill(self, x_BLD: Tensor, positions: Positions) -> tuple[Tensor, State]:
        q_BLHK, k_BLHK, v_BLHK = self.project(x_BLD, positions)
        y_BLHK = sliding_window(q_BLHK, k_BLHK, v_BLHK, self.window)
        return self.output(y_BLHK), _without_position(filled_ring(k_BLHK, v_BLHK, self.window))

    def init_state(
        self, batch_size: int, max_length: int, dtype: torch.dtype, device: torch.device | str | None = None
    ) -> State:
        shape = (batch_size, self.window, self.heads, self.head_dim)
        return _without_position(empty_ring(shape, dtype, device))

    def step_between(self, p_BE: Tensor, state: State, positions: Positions) -> Tensor:
        heads, angles = self.heads_of(p_BE), self.angles(positions)
        ring = state["k"], state["v"], positions.tensor
        return sliding_window_step(*heads, *ring, angles=angles, count=False).flatten(1)


def _without_position(ring: State) -> State:
    """The model counts tokens, once for all layers."""
    return {name: tensor for name, tensor in ring.items() if name != "position"}


class LanguageConv(nn.Module):
    """BaseConv as in the BASED language models: out = W_out (silu(conv(u)) * g), u and g the halves of W_in x + b.

    u and g are 2 D wide; the convolution is depthwise and causal. State: its last inputs.
    """

    def __init__(self, d_model: int, width: int, bias: bool) -> None:
        super().__init__()
        self.in_proj = nn.Linear(d_model, 4 * d_model)
        self.conv = ShortConv(2 * d_model, width, activation="silu", bias=bias)
        self.out_proj = nn.Linear(2 * d_model, d_model)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.out_proj(conv_gate(self.in_proj(x_BLD), self.conv.weight, self.conv.bias))

    def prefill(self, x_BLD: Tensor) -> tuple[Tensor, State]:
        y_BLE, state_BES = conv_gate(self.in_proj(x_BLD), self.conv.weight, self.conv.bias, return_state=True)
        return self.out_proj(y_BLE), {"conv": state_BES}

    def init_state(
        self, batch_size: int, max_length: int, dtype: torch.dtype, device: torch.device | str | None = None
    ) -> State:
        return {"conv": self.conv.init_state(batch_size, dtype, device)}

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        y_BE = conv_gate_step(project(self.in_proj, x_BD), self.conv.weight, self.conv.bias, state["conv"])
        return project(self.out_proj, y_BE), state


class SwiGLU(nn.Module):
    """y = W_2 (a * silu(b)), a and b the halves of W_1 x (arXiv 2002.05202)."""

    def __init__(self, d_model: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, 2 * inner, bias=False)
        self.fc2 = nn.Linear(inner, d_model, bias=False)

    def forward(self, x_xD: Tensor) -> Tensor:
        return project(self.fc2, swiglu(project(self.fc1, x_xD)))


def build_mixer(config: LanguageConfig, kind: LayerKind) -> nn.Module:
    """The mixer of a layer of this kind."""
    d_model = config.d_model
    if kind == "window":
        return RotaryWindow(d_model, config.window_heads or config.heads, config.rotary_fraction, config.window)
    if kind == "attention":
        return RotaryAttention(d_model, config.heads, config.rotary_fraction)
    if kind == "conv":
        return LanguageConv(d_model, config.conv_width, config.conv_bias)
    if kind == "linear":
        return get_mixer("based")(d_model, feature_dim=config.feature_dim, heads=config.heads)
    options = {"d_state": config.d_state, "d_conv": config.d_conv, "expand": config.expand}
    if kind == "mamba2":
        options["head_dim"] = config.ssm_head_dim
    return cast(nn.Module, get_mixer(kind)(d_model, **options))
