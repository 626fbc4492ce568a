"""A block of a language model: a mixer and, if the config has one for its kind, an MLP, each behind a norm."""

from typing import Any, cast

from torch import Tensor, nn

from basedbench.kernels.row_stream import Rows, enter, enter_conv, enter_gated, leave
from basedbench.mixers.base import State
from basedbench.models.language.config import LanguageConfig, LayerKind
from basedbench.models.language.layers import LanguageConv, RotaryMixer, SwiGLU, build_mixer
from basedbench.models.language.positions import Positions

NORM_EPS = 1e-5


class Block(nn.Module):
    """r += mixer(RMSNorm(r));  r += SwiGLU(RMSNorm(r))."""

    def __init__(self, config: LanguageConfig, kind: LayerKind) -> None:
        super().__init__()
        self.kind = kind
        self.norm1 = nn.RMSNorm(config.d_model, eps=NORM_EPS)
        self.mixer: Any = build_mixer(config, kind)
        self.mlp: SwiGLU | None = None
        if config.has_mlp(kind):
            self.norm2 = nn.RMSNorm(config.d_model, eps=NORM_EPS)
            self.mlp = SwiGLU(config.d_model, config.mlp_inner)

    @property
    def reader(self) -> nn.Linear:
        """The projection that reads the stream first."""
        return cast(nn.Linear, self.mixer.qkv if isinstance(self.mixer, RotaryMixer) else self.mixer.in_proj)

    def step(
        self, rows: Rows, state: State, positions: Positions | None, norm: nn.RMSNorm, reader: nn.Linear | None
    ) -> Rows:
        """One token of each sequence, through this block and the norm behind it on the way to `reader`.

        `rows` come from this block's first norm. A reader that is None wants them divided already.
        """
        y, last = self._mixed(rows, state, positions), self.mixer.out_proj
        if self.mlp is not None:
            rows = _leave(y, last, rows, self.norm2, self.mlp.fc1)
            y, last = enter_gated(rows, self.mlp.fc1.weight, eps=NORM_EPS), self.mlp.fc2
        return _leave(y, last, rows, norm, reader)

    def _mixed(self, rows: Rows, state: State, positions: Positions | None) -> Tensor:
        """The mixer up to its last projection."""
        first = self.reader
        if isinstance(self.mixer, LanguageConv):
            conv = self.mixer.conv
            return enter_conv(rows, first.weight, first.bias, conv.weight, conv.bias, state["conv"], eps=NORM_EPS)
        extra = (positions,) if isinstance(self.mixer, RotaryMixer) else ()
        y: Tensor = self.mixer.step_between(enter(rows, first.weight, first.bias, eps=NORM_EPS), state, *extra)
        return y


def _leave(y: Tensor, last: nn.Linear, rows: Rows, norm: nn.RMSNorm, reader: nn.Linear | None) -> Rows:
    """The stream with the product added, on its way through the norm to the product that reads it."""
    read = None if reader is None else reader.weight
    return leave(y, last.weight, last.bias, rows.r_BD, norm.weight, eps=NORM_EPS, reader_ED=read)
