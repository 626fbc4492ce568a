"""The two-layer (or deeper) model in which mixers are trained on synthetic recall: zoology's scaffold.

    r = 0, h = embedding(tokens)
    LayerNorm block:  r += drop(h);  r += mixer(LN1(r));  h = LN2(r)
    Mamba block:      r += h;  h = mixer(RMSNorm(r))
    end:              logits = E LN(r + h), E the embedding

There is no MLP, yet the identity in its place is not a no-op: h = LN2(r) is added to r by the next block, or at the
end. Dropout is on the embedding only (layer 0). Which block a layer has is up to its mixer (`Mixer.block`), so that any
list of layers is a model. Recipe: zoology (arXiv 2312.04927) as used for Figure 2 of BASED (arXiv 2402.18668).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basedbench.errors import UserError, nearest
from basedbench.kernels import add_layer_norm, block_boundary, embedding, last_boundary
from basedbench.kernels.asked import Asked, Questions, ask, questions_at
from basedbench.kernels.draws import Draws
from basedbench.kernels.embedding import Places, Rows
from basedbench.kernels.embedding_norm import embedding_norm, unwritten_embedding_norm
from basedbench.kernels.precision import product_dtype
from basedbench.mixers.base import Init, Mixer, State
from basedbench.mixers.registry import get_mixer
from basedbench.models.dropout import Dropout

NORM_EPS = 1e-5


@dataclass(frozen=True)
class LayerSpec:
    """One layer: the name of its mixer and the mixer's options."""

    mixer: str
    options: Mapping[str, Any] = field(default_factory=dict)


class LayerNormBlock(nn.Module):
    """r += drop(h); r += mixer(LN1(r)); h = LN2(r)."""

    def __init__(self, mixer: Mixer, dropout: float) -> None:
        super().__init__()
        self.mixer = mixer
        self.dropout = Dropout(dropout)
        self.norm1 = nn.LayerNorm(mixer.d_model, eps=NORM_EPS)
        self.norm2 = nn.LayerNorm(mixer.d_model, eps=NORM_EPS)

    @property
    def entrance(self) -> nn.LayerNorm:
        """The norm in front of the mixer."""
        return self.norm1

    @property
    def exit(self) -> nn.LayerNorm | None:
        """The norm whose output is what the block adds to the stream at its end."""
        return self.norm2


class MambaBlock(nn.Module):
    """r += h; h = mixer(RMSNorm(r)). No second norm, no dropout."""

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.mixer = mixer
        self.dropout = Dropout(0.0)
        self.norm = nn.RMSNorm(mixer.d_model, eps=NORM_EPS)

    @property
    def entrance(self) -> nn.RMSNorm:
        """The norm in front of the mixer."""
        return self.norm

    @property
    def exit(self) -> None:
        """There is none."""


class RecallModel(nn.Module):
    """Embedding, layers of mixers, tied head: tokens (B, L) int64 to logits (B, L, V), or (B, K, V) where asked.

    `init` matters to Mamba, Mamba-2 and the feature map performer: `published` (what every published point had) or
    `correct`.
    Weights come from PyTorch's global generator: seed it before. UserError on sizes or options that are not valid.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        layers: Sequence[LayerSpec],
        *,
        init: Init = "published",
        embed_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _check(vocab_size, layers, init)
        mixers = [get_mixer(spec.mixer).build(d_model, spec.options) for spec in layers]
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.blocks = nn.ModuleList(
            MambaBlock(mixer) if mixer.block == "mamba" else LayerNormBlock(mixer, 0.0 if index else embed_dropout)
            for index, mixer in enumerate(mixers)
        )
        self.norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        nn.init.normal_(self.embedding.weight, std=0.02)
        for mixer in mixers:
            mixer.initialise(len(mixers), init)

    @property
    def mixers(self) -> list[Mixer]:
        """The mixer of each layer."""
        return [cast(Mixer, block.mixer) for block in self.blocks]

    @property
    def head_weight(self) -> Tensor:
        """(V, D): the embedding, which is the output head too."""
        return self.embedding.weight

    def hidden(self, tokens_BL: Tensor, questions: Questions | None = None, places: Places | None = None) -> Tensor:
        """What the head reads: (B, L, D) after the final norm, or (B, K, D) at the asked tokens only.

        `places`: see `embedding`. Tokens of packed questions are (1, T), for layers of which this `packs`.
        """
        mixers = self.mixers
        packing = None if questions is None else questions.packing

        def mix(layer: int, x_BLD: Tensor, asked: Asked | None) -> Tensor:
            if asked is not None:
                return mixers[layer].forward_asked(x_BLD, asked)
            return mixers[layer](x_BLD) if packing is None else mixers[layer](x_BLD, packing)

        return self._hidden(tokens_BL, mix, questions, places)

    def forward(self, tokens_BL: Tensor, positions_BK: Tensor | None = None) -> Tensor:
        """Logits (B, L, V), or (B, K, V) at `positions_BK` (int64) only."""
        return F.linear(self.hidden(tokens_BL, _questions(tokens_BL, positions_BK)), self.head_weight)

    def prefill(
        self, tokens_BL: Tensor, max_length: int | None = None, positions_BK: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Logits as `forward` gives them, and the state after the prompt, its tensors named "layer.name"."""
        state: State = {}
        mixers = self.mixers

        def mix(layer: int, x_BLD: Tensor, asked: Asked | None) -> Tensor:
            y_BLD, part = mixers[layer].prefill(x_BLD, max_length)
            state.update(_prefixed(layer, part))
            return y_BLD if asked is None else asked.rows(y_BLD)

        questions = _questions(tokens_BL, positions_BK)
        return F.linear(self._hidden(tokens_BL, mix, questions), self.head_weight), state

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> State:
        """The state of every layer before the first token."""
        state: State = {}
        for layer, mixer in enumerate(self.mixers):
            state |= _prefixed(layer, mixer.init_state(batch_size, max_length, dtype, device))
        return state

    def step(self, tokens_B: Tensor, state: State) -> tuple[Tensor, State]:
        """One token: logits (B, V) and the state after it; tensors of `state` may be updated in place."""
        after: State = {}
        mixers = self.mixers

        def mix(layer: int, x_BD: Tensor, _: Asked | None) -> Tensor:
            y_BD, part = mixers[layer].step(x_BD, _of_layer(layer, state))
            after.update(_prefixed(layer, part))
            return y_BD

        return F.linear(self._hidden(tokens_B, mix), self.head_weight), after

    def parameters_count(self) -> int:
        """Trained numbers; the tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def set_generator(self, generator: torch.Generator | None, draws: Draws | None = None) -> None:
        """Make every dropout inside draw from `generator`, and the first block's from `draws` if there are any."""
        for module in self.modules():
            if isinstance(module, Dropout):
                module.generator = generator
        cast(LayerNormBlock | MambaBlock, self.blocks[0]).dropout.draws = draws

    def _hidden(
        self,
        tokens: Tensor,
        mix: Callable[[int, Tensor, Asked | None], Tensor],
        questions: Questions | None = None,
        places: Places | None = None,
    ) -> Tensor:
        """What the head reads; `mix(layer, x, asked)` applies a mixer, the last one at the asked tokens only."""
        blocks = cast(Sequence[LayerNormBlock | MambaBlock], self.blocks)
        x, residual, rows = _enter(tokens, self.embedding.weight, blocks[0], places, written=len(blocks) == 1)
        asked = None
        if questions is not None and len(blocks) == 1:
            asked = ask(x, questions)
            residual = asked.rows(residual)
        for layer, block in enumerate(blocks):
            following = self.norm if layer == len(blocks) - 1 else blocks[layer + 1].entrance
            options: dict[str, Any] = {
                "first": None if block.exit is None else _parameters(block.exit),
                "center": isinstance(following, nn.LayerNorm),
                "eps": NORM_EPS,
                "dtype": product_dtype(x),
            }
            given = mix(layer, x, asked), residual, _parameters(following)
            if questions is not None and layer == len(blocks) - 2:
                x, asked, residual = last_boundary(*given, questions, rows=rows, **options)
            else:
                x, residual = block_boundary(*given, rows=rows, **options)
            rows = None
        return x


def packs(d_model: int, layers: Sequence[LayerSpec], precision: str = "bf16") -> bool:
    """Whether a model of these layers takes packed examples, one behind another (`Packing`), and trains faster so."""
    kinds = [(get_mixer(spec.mixer), spec.options) for spec in layers]
    last = len(kinds) - 1
    return all(
        kind.packs_as_it_is(kind.resolve(d_model, options), asked=layer == last) and kind.packing_pays(precision)
        for layer, (kind, options) in enumerate(kinds)
    )


def _enter(
    tokens: Tensor, table_VD: Tensor, block: LayerNormBlock | MambaBlock, places: Places | None, written: bool
) -> tuple[Tensor, Tensor, Rows | None]:
    """What the first mixer reads, the stream, and what the stream is where it is not `written`."""
    dropout, norm = block.dropout, _parameters(block.entrance)
    options: dict[str, Any] = {
        "eps": NORM_EPS,
        "keep": 1 - dropout.p if dropout.active else 1.0,
        "center": isinstance(block.entrance, nn.LayerNorm),
        "dtype": product_dtype(table_VD),
    }
    if dropout.active and dropout.draws is None:
        h = embedding(tokens, table_VD, places)
        return *add_layer_norm(h, None, *norm, kept_xD=dropout.draw(h), **options), None
    options |= {"places": places, "kept_xD": dropout.draws if dropout.active else None}
    if written:
        return *embedding_norm(tokens, table_VD, norm, **options), None
    return unwritten_embedding_norm(tokens, table_VD, norm, **options)


def _questions(tokens_BL: Tensor, positions_BK: Tensor | None) -> Questions | None:
    return None if positions_BK is None else questions_at(positions_BK, tokens_BL.shape[1])


def _parameters(norm: nn.LayerNorm | nn.RMSNorm) -> tuple[Tensor, Tensor | None]:
    return norm.weight, norm.bias if isinstance(norm, nn.LayerNorm) else None


def _check(vocab_size: int, layers: Sequence[LayerSpec], init: str) -> None:
    if vocab_size < 1:
        raise UserError(f"vocab_size = {vocab_size} should be at least 1.")
    if not layers:
        raise UserError("a model needs at least one layer.")
    if init not in get_args(Init):
        raise UserError(f"unknown init {init!r}: {nearest(str(init), get_args(Init))}")


def _prefixed(layer: int, state: State) -> State:
    return {f"{layer}.{name}": tensor for name, tensor in state.items()}


def _of_layer(layer: int, state: State) -> State:
    prefix = f"{layer}."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
