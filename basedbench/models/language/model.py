"""A language model of any mix of layers: pre-norm blocks, tied embedding, SwiGLU; the models of the BASED paper.

    r = embedding(tokens)
    block:  r += mixer(RMSNorm(r));  r += SwiGLU(RMSNorm(r))        (Mamba and Mamba-2: the mixer alone)
    end:    logits = E RMSNorm(r), E the embedding

(arXiv 2402.18668, section 6; RMSNorm arXiv 1910.07467, eps 1e-5.) The stream r is float32 whatever the weights are, as
in the released models. Four forms, as for a mixer: `forward`, `prefill`, `init_state`, `step`. A state is a flat dict
of tensors, batch first, named "layer.name"; "position" (int32) counts the tokens where a layer has to know, or where
states are rounded by them.

    config = preset("based-360m")
    model = LanguageModel(config, device="cuda", dtype=torch.bfloat16)
    logits_BV, state = model.prefill(tokens_BL, max_length=1024)
    logits_BV, state = model.step(logits_BV.argmax(-1), state)

Recurrent states are kept in float32. With `state_dtype` bf16 they take half, as in the released code, but rounded
stochastically (kernels/rounding.py), and without the sums of linear attention's features, which divide everything.
Caches of keys, values and convolution inputs have the dtype of the weights. Per sequence, with weights of 16 bits and
1,024 tokens, that is 5.9 MB for based-360m (5.7 as published: 273 features in 16 bits where here 153 have 32), 6.6 MB
for mamba-360m (3.8) and 100.7 MB for attention-360m (the same).
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basedbench.errors import UserError
from basedbench.kernels import add_layer_norm
from basedbench.kernels.dependents import dependents
from basedbench.kernels.embedding_norm import embedding_norm
from basedbench.kernels.row_stream import Rows
from basedbench.mixers.base import Mixer, State, accumulator_dtype, normal_linear_, residual_std
from basedbench.models.language import costs
from basedbench.models.language.attention_step import resolve
from basedbench.models.language.blocks import NORM_EPS, Block
from basedbench.models.language.config import STATE_SPACE, LanguageConfig
from basedbench.models.language.layers import RotaryAttention, RotaryMixer
from basedbench.models.language.positions import Positions
from basedbench.models.state import state_bytes

POSITIONED = {"window", "attention"}
RECURRENT = {"linear", "mamba", "mamba2"}
FLOAT32 = ("A_log", "D", "dt_bias")


class LanguageModel(nn.Module):
    """tokens (B, L) int64 -> logits (B, L, V). Weights are random from `seed`, at the scales of the released code.

    `attention` names the implementation of softmax attention's decode step (attention_step.py). On device "meta" a
    model of any size costs no memory: enough to count with.
    """

    def __init__(
        self,
        config: LanguageConfig,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        attention: str = "auto",
    ) -> None:
        super().__init__()
        self.config = config
        device = torch.device(device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
            _seed(seed, device)
            self.embedding = nn.Embedding(config.vocab_size, config.d_model)
            self.blocks = nn.ModuleList(Block(config, kind) for kind in config.layers)
            self.norm = nn.RMSNorm(config.d_model, eps=NORM_EPS)
            self._initialise()
        self._cast(dtype)
        self.attention = attention

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights."""
        return self.embedding.weight.dtype

    @property
    def _rounded(self) -> bool:
        """Whether recurrent states are kept in bfloat16."""
        return self.config.state_dtype == "bf16" and bool(RECURRENT & set(self.config.layers))

    @property
    def attention(self) -> str:
        """The implementation of softmax attention's decode step, `auto` resolved for the device of the weights."""
        return resolve(self._attention, self.embedding.weight.device)

    @attention.setter
    def attention(self, name: str) -> None:
        resolve(name, self.embedding.weight.device)
        self._attention = name
        for module in self.modules():
            if isinstance(module, RotaryAttention):
                module.implementation = name

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Logits (B, L, V)."""
        positions = self._positions(torch.arange(tokens_BL.shape[1], device=tokens_BL.device))

        def mix(layer: int, x_BLD: Tensor) -> Tensor:
            mixer, extra = self._mixer(layer, positions)
            return mixer(x_BLD, *extra)

        return self._head(*self._stream(tokens_BL, mix))

    @torch.no_grad()
    def prefill(
        self,
        tokens_BL: Tensor,
        max_length: int | None = None,
        *,
        logits: Literal["last", "all"] = "last",
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """Logits behind the prompt (B, V), or behind every token of it (B, L, V), and the state after it.

        The state has room for `max_length` tokens in all; given one, the prompt is written into that. UserError if the
        prompt is longer than `max_length`.
        """
        batch, length = tokens_BL.shape
        if state is None:
            if length > (max_length or length):
                raise UserError(f"a prompt of {length} tokens does not fit into max_length = {max_length}.")
            state = self.init_state(batch, max_length or length, self.dtype, tokens_BL.device)
        kept, positions = state, self._positions(torch.arange(length, device=tokens_BL.device))

        def mix(layer: int, x_BLD: Tensor) -> Tensor:
            mixer, extra = self._mixer(layer, positions)
            y_BLD, part = mixer.prefill(x_BLD, *extra)
            for name, tensor in part.items():
                _into(kept[f"{layer}.{name}"], tensor)
            return y_BLD

        h_BLD, r_BLD = self._stream(tokens_BL, mix)
        if "position" in kept:
            kept["position"].fill_(length)
        return self._head(h_BLD, r_BLD) if logits == "all" else self._head(h_BLD[:, -1], r_BLD[:, -1]), kept

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> State:
        """The state before the first token; caches have `dtype`, that of the weights if left out."""
        dtype = dtype or self.dtype
        device = device or self.embedding.weight.device
        state: State = {}
        for layer in range(len(self.blocks)):
            part = self._mixer(layer)[0].init_state(batch_size, max_length, dtype, device)
            if "state" in part and self._rounded:
                part["state"] = part["state"].to(torch.bfloat16)
            state |= {f"{layer}.{name}": tensor for name, tensor in part.items()}
        if POSITIONED & set(self.config.layers) or self._rounded:
            state["position"] = torch.zeros(batch_size, dtype=torch.int32, device=device)
        return state

    @torch.no_grad()
    def step(self, tokens_B: Tensor, state: State, *, extent: int | None = None) -> tuple[Tensor, State]:
        """One token: logits (B, V) and the state, updated in place; nothing is read back to the host.

        `extent` is the number of tokens with this one, for attention implementations that need it from the host.
        """
        positions = self._positions(state["position"], extent) if "position" in state else None
        parts = _by_layer(state)
        if self._rounded:
            for part in parts.values():
                part["count"] = state["position"]

        with dependents(tokens_B.device):
            rows = self._embedded(tokens_B)
            blocks = cast(list[Block], [*self.blocks])
            for layer, (block, following) in enumerate(zip(blocks, [*blocks[1:], None], strict=True)):
                norm, reader = (self.norm, None) if following is None else (following.norm1, following.reader)
                rows = block.step(rows, parts[layer], positions, norm, reader)
            logits_BV = F.linear(rows.x_BD, self.embedding.weight)
        if positions is not None:
            state["position"] += 1
        return logits_BV, state

    def parameters_count(self) -> int:
        """Trained numbers; the tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def state_bytes(self, length: int) -> int:
        """Bytes per sequence that decoding carries at `length` tokens, measured from `init_state`."""
        return state_bytes(self, length, self.dtype)

    def bytes_per_step(self, batch: int, context: int) -> int:
        """The least a decode step at `context` tokens moves: weights once, and each sequence's state (costs.py)."""
        weights = sum(parameter.numel() * parameter.element_size() for parameter in self.parameters())
        return weights + batch * costs.state_traffic(self.config, context, self.dtype)

    def _mixer(self, layer: int, positions: Positions | None = None) -> tuple[Any, tuple[Any, ...]]:
        """A layer's mixer, and what it is given besides its input."""
        mixer = cast(Block, self.blocks[layer]).mixer
        return mixer, (positions,) if isinstance(mixer, RotaryMixer) else ()

    def _positions(self, tensor: Tensor, extent: int | None = None) -> Positions:
        return Positions(tensor, self.config.rotary_base, self.dtype, extent)

    def _embedded(self, tokens: Tensor) -> Rows:
        """The stream at its beginning."""
        norm = cast(Block, self.blocks[0]).norm1
        options: dict[str, Any] = {"eps": NORM_EPS, "center": False, "dtype": self.dtype}
        options["stream"] = accumulator_dtype(self.dtype)
        return Rows(*embedding_norm(tokens, self.embedding.weight, (norm.weight, None), **options))

    def _stream(self, tokens: Tensor, mix: Callable[[int, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """What the last block adds and the stream before it; `mix(layer, x)` applies a layer's mixer."""
        x, r, _ = self._embedded(tokens)
        _, *others = [cast(Block, block).norm1 for block in self.blocks]
        h, r = self._block(0, x, r, mix)
        for layer, norm in enumerate(others, start=1):
            h, r = self._block(layer, *self._add_norm(h, r, norm), mix)
        return h, r

    def _block(self, layer: int, x: Tensor, r: Tensor, mix: Callable[[int, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """What the block adds last, and the stream before that."""
        block, h = cast(Block, self.blocks[layer]), mix(layer, x)
        if block.mlp is not None:
            x, r = self._add_norm(h, r, block.norm2)
            h = block.mlp(x)
        return h, r

    def _add_norm(self, h: Tensor, r: Tensor, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
        """RMSNorm of the new stream r + h, and that stream."""
        return add_layer_norm(h, r, norm.weight, eps=NORM_EPS, center=False, dtype=self.dtype)

    def _head(self, h: Tensor, r: Tensor) -> Tensor:
        return F.linear(self._add_norm(h, r, self.norm)[0], self.embedding.weight)

    def _cast(self, dtype: torch.dtype) -> None:
        """Every weight to `dtype`, except what Mamba and Mamba-2 keep in float32, decays above all."""
        for name, parameter in self.named_parameters():
            kept = name.endswith(FLOAT32)
            parameter.data = parameter.data.to(accumulator_dtype(dtype) if kept else dtype)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Embedding and Linear N(0, .02), biases 0, projections onto the stream N(0, .02 / sqrt(2 layers)).

        Convolutions keep PyTorch's init; Mamba and Mamba-2 have their own.
        """
        layers = len(self.blocks)
        nn.init.normal_(self.embedding.weight, std=0.02)
        for block in cast(list[Block], self.blocks):
            if block.kind in STATE_SPACE:
                cast(Mixer, block.mixer).initialise(layers, "correct")
                continue
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear):
                    onto_stream = name.endswith(("out_proj", "fc2"))
                    normal_linear_(module, residual_std(layers) if onto_stream else 0.02)


def counted(config: LanguageConfig, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A model to count with, which takes no memory. UserError if it has a tensor that 64 bits cannot count."""
    try:
        return LanguageModel(config, dtype=dtype, device="meta")
    except (RuntimeError, TypeError, OverflowError) as error:  # PyTorch has no type of its own for it
        raise UserError("it has weights of more bytes than can be counted; give it smaller sizes.") from error


def _into(target: Tensor, tensor: Tensor) -> None:
    """Write a layer's state after a prompt; a cache of keys or values may have room for more."""
    if tensor.shape != target.shape:
        target = target[:, : tensor.shape[1]]
    target.copy_(tensor)


def _by_layer(state: State) -> dict[int, State]:
    """The parts of a state that have a layer, their names without it."""
    parts: dict[int, State] = defaultdict(dict)
    for name, tensor in state.items():
        layer, dot, rest = name.partition(".")
        if dot:
            parts[int(layer)][rest] = tensor
    return parts


def _seed(seed: int, device: torch.device) -> None:
    """Seed the generator of this device alone: torch.manual_seed would also seed those of all others."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    else:
        torch.random.default_generator.manual_seed(seed)
