"""What decoding carries and moves per sequence, by formula; the state itself is measured (models/state.py).

    kind        recurrent (fp32 or state_dtype)  cached (dtype of the weights)
    linear      F d, and F heads sums in fp32    -               F = 1 + f + f (f + 1) / 2
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
    return sum(_kept_bytes(config, kind, length, dtype) for kind in config.layers)


def state_traffic(config: LanguageConfig, context: int, dtype: torch.dtype) -> int:
    """Bytes per sequence that the step makes whose token is the `context`-th."""
    return sum(_layer_traffic(config, kind, context, dtype) for kind in config.layers)


def _layer_traffic(config: LanguageConfig, kind: LayerKind, context: int, dtype: torch.dtype) -> int:
    if kind in ("window", "attention"):
        past = context - 1 if kind == "attention" else min(context - 1, config.window)
        return dtype.itemsize * 2 * config.d_model * (past + 1)
    return 2 * _kept_bytes(config, kind, context, dtype)


def _kept_bytes(config: LanguageConfig, kind: LayerKind, length: int, dtype: torch.dtype) -> int:
    exact = accumulator_dtype(dtype).itemsize
    wide = torch.bfloat16.itemsize if config.state_dtype == "bf16" else exact
    sums = packed_features(config.feature_dim) * config.heads if kind == "linear" else 0
    return wide * recurrent(config, kind) + exact * sums + dtype.itemsize * cached(config, kind, length)


def recurrent(config: LanguageConfig, kind: LayerKind) -> int:
    """Numbers of the state that sums over time, without the sums of linear attention's features."""
    if kind == "linear":
        return packed_features(config.feature_dim) * config.d_model
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
