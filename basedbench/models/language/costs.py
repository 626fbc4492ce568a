"""What decoding carries and moves per sequence, by formula; the state itself is measured (models/state.py).

    kind        recurrent (fp32)                 cached (dtype of the weights)
    linear      F (d + heads)                    -               F = 1 + f + f (f + 1) / 2
    window      -                                2 d window
    conv        -                                2 d (conv_width - 1)
    attention   -                                2 d length
    mamba       expand d d_state                 expand d (d_conv - 1)
    mamba2      expand d d_state                 (expand d + 2 d_state) (d_conv - 1)

A step reads and writes recurrent states and convolution inputs whole; of keys and values it reads those in reach and
writes one of each. The position (4 bytes a sequence) is left out.
"""

import torch

from basedbench.mixers.base import accumulator_dtype
from basedbench.mixers.based import packed_features
from basedbench.models.language.config import LanguageConfig, LayerKind


def state_size(config: LanguageConfig, length: int, dtype: torch.dtype) -> int:
    """Bytes per sequence with room for `length` tokens."""
    kinds, wide, narrow = config.layers, accumulator_dtype(dtype).itemsize, dtype.itemsize
    return sum(wide * recurrent(config, kind) + narrow * cached(config, kind, length) for kind in kinds)


def state_traffic(config: LanguageConfig, context: int, dtype: torch.dtype) -> int:
    """Bytes per sequence that the step makes whose token is the `context`-th."""
    return sum(_layer_traffic(config, kind, context, dtype) for kind in config.layers)


def _layer_traffic(config: LanguageConfig, kind: LayerKind, context: int, dtype: torch.dtype) -> int:
    if kind in ("window", "attention"):
        past = context - 1 if kind == "attention" else min(context - 1, config.window)
        return dtype.itemsize * 2 * config.d_model * (past + 1)
    both = accumulator_dtype(dtype).itemsize * recurrent(config, kind) + dtype.itemsize * cached(config, kind, context)
    return 2 * both


def recurrent(config: LanguageConfig, kind: LayerKind) -> int:
    """Numbers that sum over time, kept in float32."""
    if kind == "linear":
        return packed_features(config.feature_dim) * (config.d_model + config.heads)
    return config.inner * config.d_state if kind in ("mamba", "mamba2") else 0


def cached(config: LanguageConfig, kind: LayerKind, length: int) -> int:
    """Numbers kept as they came: keys, values, and inputs of convolutions."""
    sizes: dict[LayerKind, int] = {
        "linear": 0,
        "window": 2 * config.d_model * config.window,
        "conv": 2 * config.d_model * (config.conv_width - 1),
        "attention": 2 * config.d_model * length,
        "mamba": config.inner * (config.d_conv - 1),
        "mamba2": (config.inner + 2 * config.d_state) * (config.d_conv - 1),
    }
    return sizes[kind]
