"""The operators. Each module holds a PyTorch reference and the public function, which picks the implementation.

Public functions raise ValueError for tensors whose shapes or dtypes are not what their names say (`shapes`).
"""

from .adamw import adamw_step
from .add_layer_norm import add_layer_norm
from .asked_attention import sliding_window_asked, taylor_attention_asked
from .attention_decode import attention_decode
from .base_conv import base_conv
from .block_boundary import block_boundary, last_boundary
from .cache_append import cache_append
from .conv_gate import conv_gate, conv_gate_step
from .delta_inputs import delta_inputs, rwkv7_inputs
from .delta_rule import delta_rule, delta_rule_step, shared_delta_rule
from .diagonal_filter import diagonal_filter
from .embedding import embedding
from .gated_conv import gated_conv
from .gated_linear_attention import gated_linear_attention, gated_linear_attention_step
from .head_norm import head_norm
from .implicit_filter import implicit_filter
from .layer_delta_rule import layer_delta_rule, layer_delta_rule_step
from .linear import linear
from .linear_attention import linear_attention, linear_attention_step
from .linear_cross_entropy import linear_cross_entropy
from .long_conv import gated_long_conv, long_conv
from .plane_conv import plane_conv
from .plane_linear import plane_linear
from .retention import retention
from .rotary import rotary, rotary_angles
from .row_argmax import row_argmax
from .selective_scan import selective_scan, selective_scan_step
from .selective_ssm import selective_ssm, selective_ssm_asked
from .shift_filter import shift_filter
from .short_conv import short_conv, short_conv_step
from .sliding_window import sliding_window, sliding_window_step
from .split_conv import split_conv
from .ssd import ssd, ssd_step
from .swiglu import swiglu
from .taylor_attention import taylor_attention, taylor_attention_step
from .taylor_features import taylor_feature_map
from .token_shift import token_shift
from .wkv4 import wkv4, wkv4_step

__all__ = [
    "adamw_step",
    "add_layer_norm",
    "attention_decode",
    "base_conv",
    "block_boundary",
    "cache_append",
    "conv_gate",
    "conv_gate_step",
    "delta_inputs",
    "delta_rule",
    "delta_rule_step",
    "diagonal_filter",
    "embedding",
    "gated_conv",
    "gated_linear_attention",
    "gated_linear_attention_step",
    "gated_long_conv",
    "head_norm",
    "implicit_filter",
    "last_boundary",
    "layer_delta_rule",
    "layer_delta_rule_step",
    "linear",
    "linear_attention",
    "linear_attention_step",
    "linear_cross_entropy",
    "long_conv",
    "plane_conv",
    "plane_linear",
    "retention",
    "rotary",
    "rotary_angles",
    "row_argmax",
    "rwkv7_inputs",
    "selective_scan",
    "selective_scan_step",
    "selective_ssm",
    "selective_ssm_asked",
    "shared_delta_rule",
    "shift_filter",
    "short_conv",
    "short_conv_step",
    "sliding_window",
    "sliding_window_asked",
    "sliding_window_step",
    "split_conv",
    "ssd",
    "ssd_step",
    "swiglu",
    "taylor_attention",
    "taylor_attention_asked",
    "taylor_attention_step",
    "taylor_feature_map",
    "token_shift",
    "wkv4",
    "wkv4_step",
]
