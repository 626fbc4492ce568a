"""Sequence mixers: one file each, found by name. `get_mixer("based")(d_model=64, feature_dim=16)` builds one."""

from basedbench.mixers.attention import Attention
from basedbench.mixers.base import Mixer, MixerOptions, State
from basedbench.mixers.base_conv import BaseConv
from basedbench.mixers.based import Based
from basedbench.mixers.delta_net import DeltaNet
from basedbench.mixers.gated_delta_net import GatedDeltaNet
from basedbench.mixers.gla import GLA
from basedbench.mixers.h3 import H3
from basedbench.mixers.hyena import Hyena
from basedbench.mixers.kda import KDA
from basedbench.mixers.linear_attention import LinearAttention
from basedbench.mixers.mamba import Mamba
from basedbench.mixers.mamba2 import Mamba2
from basedbench.mixers.registry import check_options, get_mixer, mixer_names, register
from basedbench.mixers.retnet import RetNet
from basedbench.mixers.rwkv4 import RWKV4
from basedbench.mixers.rwkv7 import RWKV7
from basedbench.mixers.sliding_window import SlidingWindow

__all__ = [
    "GLA",
    "H3",
    "KDA",
    "RWKV4",
    "RWKV7",
    "Attention",
    "BaseConv",
    "Based",
    "DeltaNet",
    "GatedDeltaNet",
    "Hyena",
    "LinearAttention",
    "Mamba",
    "Mamba2",
    "Mixer",
    "MixerOptions",
    "RetNet",
    "SlidingWindow",
    "State",
    "check_options",
    "get_mixer",
    "mixer_names",
    "register",
]
