"""The operators. Each module holds a PyTorch reference and the public function, which picks the implementation."""

from .adamw import adamw_step
from .add_layer_norm import add_layer_norm
from .block_boundary import block_boundary
from .delta_rule import delta_rule, delta_rule_step
from .embedding import embedding
from .gated_conv import gated_conv
from .gated_linear_attention import gated_linear_attention, gated_linear_attention_step
from .linear import linear
from .linear_attention import linear_attention, linear_attention_step
from .linear_cross_entropy import linear_cross_entropy
from .selective_scan import selective_scan, selective_scan_step
from .short_conv import short_conv, short_conv_step
from .sliding_window import sliding_window, sliding_window_step
from .ssd import ssd, ssd_step
from .taylor_attention import taylor_attention, taylor_attention_step, taylor_feature_map
from .wkv4 import wkv4, wkv4_step

__all__ = [
    "adamw_step",
    "add_layer_norm",
    "block_boundary",
    "delta_rule",
    "delta_rule_step",
    "embedding",
    "gated_conv",
    "gated_linear_attention",
    "gated_linear_attention_step",
    "linear",
    "linear_attention",
    "linear_attention_step",
    "linear_cross_entropy",
    "selective_scan",
    "selective_scan_step",
    "short_conv",
    "short_conv_step",
    "sliding_window",
    "sliding_window_step",
    "ssd",
    "ssd_step",
    "taylor_attention",
    "taylor_attention_step",
    "taylor_feature_map",
    "wkv4",
    "wkv4_step",
]
