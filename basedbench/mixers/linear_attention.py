"""Linear attention with one of several feature maps phi; elu + 1 by default (Transformers are RNNs, arXiv 2006.16236).

    y_i = sum_{j <= i} A_ij v_j / (sum_{j <= i} A_ij + 1e-12),   A_ij = phi(q_i) . phi(k_j)

q, k: d to f = feature_dim per head; v: d to d; out: d to d; no biases: BASED with another feature map. For the maps,
and for weights below zero, see `basedbench.mixers.feature_maps`.
State: per head the features x (values + 1 normaliser), always in fp32 (fp64 for fp64); with cosformer the position too.

    state_bytes = a * (d + heads) * {"cosformer": 2 * f, "hedgehog": 2 * f, "performer": features or 256,
        "all_poly": features or f, "taylor1": 1 + f, "taylor2": (1 + f) * (2 + f) // 2,
        "taylor3": (1 + f) * (2 + f) * (3 + f) // 6}.get(feature_map, f) + 4 * (feature_map == "cosformer")

(d = d_model, f = feature_dim, a = 4 bytes or 8 for fp64; 4 for the position.) zoology counts the same elements without
the position, but for performer: there it counts f features, however many there are.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor, nn

from basedbench.errors import UserError
from basedbench.kernels.asked import Asked
from basedbench.mixers.base import Init, Mixer, MixerOptions, State, accumulator_dtype, require_heads
from basedbench.mixers.feature_maps import FEATURE_MAPS, MapName
from basedbench.mixers.registry import register

_OWN = {"features": ("performer", "all_poly"), "max_length": ("cosformer",)}  # options that few maps have


class LinearAttentionOptions(MixerOptions):
    feature_dim: int = Field(16, ge=1, description="Width of queries and keys per head, and of most maps' features.")
    heads: int = Field(1, ge=1, description="Heads; they divide d_model.")
    feature_map: MapName = Field("pos_elu", description="What makes features of queries and keys.")
    features: int = Field(
        0, ge=0, le=2**20, description="Features per head of performer (0: 256) and all_poly (0: feature_dim)."
    )
    max_length: int = Field(1024, ge=1, description="The longest sequence for cosformer, whose weights end there.")

    @model_serializer(mode="wrap")
    def _of_the_map(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what this map does not have; a case with the default map stays what it was before there were maps."""
        given: dict[str, Any] = handler(self)
        unneeded = {name for name, maps in _OWN.items() if self.feature_map not in maps}
        unneeded |= {"feature_map"} if self.feature_map == "pos_elu" else set()
        return {name: value for name, value in given.items() if name not in unneeded}


@register
class LinearAttention(Mixer):
    """Causal linear attention with a choice of feature maps; (B, L, D) to (B, L, D).

    UserError for sequences longer than the option `max_length` where the map has it.
    """

    name = "linear_attention"
    Options = LinearAttentionOptions
    options: LinearAttentionOptions

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        given = self.options
        keys = given.feature_dim * given.heads
        self.widths = [keys, keys, d_model]
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        make = FEATURE_MAPS[given.feature_map]
        self.feature_map = make(given.feature_dim, given.heads, given.features, given.max_length)

    @classmethod
    def check(cls, d_model: int, options: LinearAttentionOptions) -> None:
        require_heads(cls.name, d_model, options.heads)
        for name, maps in _OWN.items():
            if name in options.model_fields_set and options.feature_map not in maps:
                raise UserError(
                    f"mixer {cls.name!r}: option {name!r} = {getattr(options, name)} is for feature_map = "
                    f"{' or '.join(maps)}, not {options.feature_map}; leave it out."
                )

    @classmethod
    def check_length(cls, options: LinearAttentionOptions, length: int) -> None:
        if options.feature_map in _OWN["max_length"] and length > options.max_length:
            raise UserError(
                f"mixer {cls.name!r}: {length} tokens are more than max_length = {options.max_length}, where "
                f"the weights of {options.feature_map} end; raise that option."
            )

    @classmethod
    def family_of(cls, options: Mapping[str, Any]) -> str:
        feature_map = options.get("feature_map", "pos_elu")
        return cls.family if feature_map == "pos_elu" else f"{cls.family}/{feature_map}"

    @classmethod
    def init_matters(cls, options: Mapping[str, Any]) -> bool:
        return bool(options.get("feature_map") == "performer")

    def initialise(self, layers: int, init: Init) -> None:
        super().initialise(layers, init)
        self.feature_map.initialise(init)

    def _project(self, x_xD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of (..., H, K)."""
        q, k, v = (part.unflatten(-1, (self.options.heads, -1)) for part in self.in_proj(x_xD).split(self.widths, -1))
        return q, k, v

    def _attend(self, x_BLD: Tensor) -> Tensor:
        self.check_length(self.options, x_BLD.shape[1])
        return self.feature_map.attend(*self._project(x_BLD))[0].flatten(2)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.out_proj(self._attend(x_BLD))

    def forward_asked(self, x_BLD: Tensor, asked: Asked) -> Tensor:
        return self.out_proj(asked.rows(self._attend(x_BLD)))

    def prefill(self, x_BLD: Tensor, max_length: int | None = None) -> tuple[Tensor, State]:
        batch, length, _ = x_BLD.shape
        self.check_length(self.options, max(length, max_length or 0))
        y_BLHV, state_BHFW = self.feature_map.attend(*self._project(x_BLD), return_state=True)
        state = {"state": cast(Tensor, state_BHFW)}
        if self.feature_map.needs_position:
            state["position"] = torch.full((batch,), length, dtype=torch.int32, device=x_BLD.device)
        return self.out_proj(y_BLHV.flatten(2)), state

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> State:
        self.check_length(self.options, max_length)
        heads = self.options.heads
        shape = (batch_size, heads, self.feature_map.features, self.d_model // heads + 1)
        state = {"state": torch.zeros(shape, dtype=accumulator_dtype(dtype), device=device)}
        if self.feature_map.needs_position:
            state["position"] = torch.zeros(batch_size, dtype=torch.int32, device=device)
        return state

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        y_BHV = self.feature_map.step(*self._project(x_BD), state["state"], state.get("position"))
        if self.feature_map.needs_position:
            state["position"] += 1
        return self.out_proj(y_BHV.flatten(1)), state

    def zoology_elements(self, length: int) -> int:
        return self.feature_map.zoology_features * (self.d_model + self.options.heads)
