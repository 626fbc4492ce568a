"""What a language model is made of: widths, and the kind of every layer.

kind        mixer                                                                MLP
linear      Taylor linear attention (BASED, arXiv 2402.18668)                    SwiGLU
window      sliding-window softmax attention, rotary                             SwiGLU
conv        BaseConv: a short convolution with SiLU times a gate                 SwiGLU
attention   softmax attention, rotary                                            SwiGLU
mamba       selective state space (arXiv 2312.00752)                             none
mamba2      state space duality (arXiv 2405.21060)                               none
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from basedbench.config.section import MOST
from basedbench.errors import UserError
from basedbench.mixers.base import describe

LayerKind = Literal["linear", "window", "conv", "attention", "mamba", "mamba2"]
STATE_SPACE = ("mamba", "mamba2")  # a block of these is a mixer alone


class LanguageConfig(BaseModel):
    """The shape of a language model; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    vocab_size: int = Field(ge=1, le=MOST, description="Rows of the embedding, padding included.")
    d_model: int = Field(ge=1, le=MOST)
    layers: tuple[LayerKind, ...] = Field(min_length=1, description="The kind of each layer, first to last.")
    mlp_inner: int = Field(default=0, ge=0, le=MOST, description="Inner width of the SwiGLU MLP; 0: no MLP.")
    heads: int = Field(
        default=1, ge=1, le=MOST, description="Heads of linear and softmax attention; they divide d_model."
    )
    window_heads: int | None = Field(
        default=None, ge=1, le=MOST, description="Heads of window layers; left out: as `heads`."
    )
    feature_dim: int = Field(default=16, ge=1, le=MOST, description="Query and key width per head of linear attention.")
    window: int = Field(
        default=128, ge=1, le=MOST, description="Past tokens that a window layer sees besides the current one."
    )
    rotary_fraction: float = Field(default=1.0, ge=0, le=1, description="Part of a head that is rotated.")
    rotary_base: float = Field(default=10_000.0, gt=1)
    conv_width: int = Field(default=3, ge=2, le=64, description="Tokens under the convolution of conv layers.")
    conv_bias: bool = Field(
        default=False, description="Whether that convolution has a bias; the released ones have none."
    )
    d_state: int = Field(default=16, ge=1, le=MOST, description="State numbers per channel of mamba and mamba2 layers.")
    d_conv: int = Field(default=4, ge=2, le=64, description="Tokens under the convolution of mamba and mamba2 layers.")
    expand: int = Field(
        default=2, ge=1, le=MOST, description="Channels per unit of d_model in mamba and mamba2 layers."
    )
    ssm_head_dim: int = Field(default=64, ge=1, le=MOST, description="Channels per head of mamba2 layers.")
    state_dtype: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="What decoding keeps states of linear, mamba and mamba2 layers in; bf16 is rounded stochastically.",
    )

    @classmethod
    def checked(cls, **options: Any) -> Self:
        """A config from outside: UserError names each bad option and its value."""
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            raise UserError(f"language model: {describe(error, cls)}") from None

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        kinds = set(self.layers)
        if kinds & {"linear", "attention"} and self.d_model % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide d_model = {self.d_model}")
        if "window" in kinds and self.d_model % (self.window_heads or self.heads):
            raise ValueError(
                f"window_heads = {self.window_heads or self.heads} does not divide d_model = {self.d_model}"
            )
        for kind, width in (("window", self.window_head_dim), ("attention", self.head_dim)):
            turned = int(self.rotary_fraction * width)
            if kind in kinds and turned + turned % 2 > width:
                raise ValueError(f"{kind} heads of {width} are turned whole, in pairs: their width has to be even")
        if "mamba2" in kinds and self.inner % self.ssm_head_dim:
            raise ValueError(f"ssm_head_dim = {self.ssm_head_dim} does not divide expand * d_model = {self.inner}")
        return self

    @property
    def head_dim(self) -> int:
        """Value width per head of linear and softmax attention."""
        return self.d_model // self.heads

    @property
    def window_head_dim(self) -> int:
        """Width per head of window layers."""
        return self.d_model // (self.window_heads or self.heads)

    @property
    def inner(self) -> int:
        """Channels of mamba and mamba2 layers."""
        return self.expand * self.d_model

    def has_mlp(self, kind: LayerKind) -> bool:
        """Whether a block of this kind has an MLP behind its mixer."""
        return self.mlp_inner > 0 and kind not in STATE_SPACE
