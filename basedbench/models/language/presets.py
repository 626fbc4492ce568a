"""The language models of the BASED paper (arXiv 2402.18668, section 6 and its Table 1), and fairer ones beside them.

Layer lists, widths and vocabularies are those of the released code and checkpoints: GPT-2's 50,257 tokens padded to a
multiple of 8 (BASED) or 16 (attention), GPT-NeoX's 50,277 padded to 50,288 (Mamba).

The paper timed its 1.3B softmax attention with 24 heads of 70. FlashAttention takes no head that is not a multiple of 8
wide: it pads by copying, in decoding the whole cache of every layer at every step. `attention-1.3b` keeps these heads,
to show what that costs. `attention-1.3b-h64` and `-h128` have the nearest width that 64 and 128 divide: 1,664 instead
of 1,680, in 26 heads of 64 or 13 of 128, everything else the same: 1.2 % fewer parameters, and 1 % less to cache.

BASED at 1.3B was trained with 16 heads of 112 (`-h112`) and timed with 28 heads of 64 in its linear attention. The
window reaches 128 tokens back, as in the paper; models released with its blog post have 64 (`window=64`).

`mamba2` had no part in the paper: its shape is that of arXiv 2405.21060 (128 states, heads of 64), with as many layers
as come nearest to the parameters of `mamba`.
"""

from typing import Any

from basedbench.errors import UserError, nearest
from basedbench.models.language.config import LanguageConfig, LayerKind

LINEAR_360M, WINDOW_360M = {1, 6, 11, 16, 21}, {2, 7, 12, 17, 22}
LINEAR_1B, WINDOW_1B = LINEAR_360M | {27, 33}, WINDOW_360M | {28, 34}


def _based_layers(count: int, linear: set[int], window: set[int]) -> tuple[LayerKind, ...]:
    return tuple("linear" if n in linear else "window" if n in window else "conv" for n in range(count))


_BASED_360M = LanguageConfig(
    vocab_size=50264, d_model=1024, layers=_based_layers(27, LINEAR_360M, WINDOW_360M), heads=16, mlp_inner=2048
)
_BASED_1B = LanguageConfig(
    vocab_size=50264, d_model=1792, layers=_based_layers(36, LINEAR_1B, WINDOW_1B), heads=16, mlp_inner=3584
)
_ATTENTION_360M = LanguageConfig(
    vocab_size=50272, d_model=1024, layers=("attention",) * 24, heads=16, mlp_inner=2816, rotary_fraction=0.5
)
_ATTENTION_1B = LanguageConfig(
    vocab_size=50272, d_model=1680, layers=("attention",) * 36, heads=24, mlp_inner=4608, rotary_fraction=0.5
)
_MAMBA_360M = LanguageConfig(vocab_size=50288, d_model=1024, layers=("mamba",) * 46)

PRESETS: dict[str, LanguageConfig] = {
    "based-360m": _BASED_360M,
    "based-1.3b": _BASED_1B.model_copy(update={"heads": 28, "window_heads": 16}),
    "based-1.3b-h112": _BASED_1B,
    "attention-360m": _ATTENTION_360M,
    "attention-1.3b": _ATTENTION_1B,
    "attention-1.3b-h64": _ATTENTION_1B.model_copy(update={"d_model": 1664, "heads": 26}),
    "attention-1.3b-h128": _ATTENTION_1B.model_copy(update={"d_model": 1664, "heads": 13}),
    "mamba-360m": _MAMBA_360M,
    "mamba-1.3b": _MAMBA_360M.model_copy(update={"d_model": 2048}),
    "mamba2-360m": LanguageConfig(vocab_size=50288, d_model=1024, layers=("mamba2",) * 46, d_state=128),
    "mamba2-1.3b": LanguageConfig(vocab_size=50288, d_model=2048, layers=("mamba2",) * 47, d_state=128),
}


def preset(name: str, **overrides: Any) -> LanguageConfig:
    """The config called `name`, with some fields replaced. UserError for unknown names and values that do not fit."""
    if name not in PRESETS:
        raise UserError(f"unknown language model {name!r}: {nearest(name, PRESETS)}")
    return LanguageConfig.checked(**(PRESETS[name].model_dump() | overrides))
