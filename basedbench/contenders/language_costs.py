"""The least work of a whole language model: operations and bytes of one decode step, or of one prompt.

Operations: two for each weight of a projection and token, the head included (for a prompt's last position only, unless
all logits are asked for), and what each layer's operator counts. Bytes: a step's as its model counts them; a prompt
reads the weights once and writes the state.
"""

from functools import cache
from typing import Any

import torch
from torch import nn

from basedbench.config.models import ModelCase
from basedbench.contenders.costs import attention_flops
from basedbench.contenders.draw import DTYPES
from basedbench.contenders.language import config_of
from basedbench.kernels.selective_scan import flops as scan_flops
from basedbench.kernels.short_conv import flops as conv_flops
from basedbench.kernels.sliding_window import flops as window_flops
from basedbench.kernels.ssd import flops as ssd_flops
from basedbench.kernels.taylor_attention import flops as taylor_flops
from basedbench.models.language import LanguageConfig, LanguageModel
from basedbench.models.language.config import LayerKind
from basedbench.models.language.costs import state_size
from basedbench.models.language.model import counted


def bytes_of(model: LanguageModel, case: ModelCase) -> int:
    """Bytes that one call has to move."""
    if case.mode == "generation":
        return model.bytes_per_step(case.batch, case.length)
    return weight_bytes(model) + case.batch * model.state_bytes(case.length)


def weight_bytes(model: LanguageModel) -> int:
    """The size of all weights."""
    return sum(parameter.nbytes for parameter in model.parameters())


def held_bytes(case: ModelCase) -> tuple[int, int]:
    """(weights, states of all sequences): what a case's device holds at the least. Nothing is built.

    UserError if they cannot be counted.
    """
    config, dtype = config_of(case), DTYPES[case.dtype]
    return _weights_of(config, dtype), case.batch * state_size(config, case.length, dtype)


@cache
def _weights_of(config: LanguageConfig, dtype: torch.dtype) -> int:
    return weight_bytes(counted(config, dtype))


def flops_of(model: LanguageModel, case: ModelCase) -> int:
    """Operations of one call."""
    step = case.mode == "generation"
    projections = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    logits = case.tokens if case.logits == "all" else case.batch
    mixing = sum(_mixing(model.config, kind, case.batch, case.length, step) for kind in model.config.layers)
    return 2 * case.tokens * projections + 2 * logits * model.embedding.weight.numel() + mixing


def _mixing(config: LanguageConfig, kind: LayerKind, batch: int, context: int, step: bool) -> int:
    """Operations of one layer's operator; of a step, only those of keys in reach grow with the context."""
    rows: dict[str, Any] = {"batch": batch, "length": 1 if step else context}
    widths: dict[str, Any]
    if kind == "attention":
        widths = {"heads": config.heads, "key_dim": config.head_dim, "value_dim": config.head_dim}
        return attention_flops(batch=batch, length=context, state=step, **widths)
    if kind == "linear":
        widths = {"heads": config.heads, "key_dim": config.feature_dim, "value_dim": config.head_dim}
        return taylor_flops(**rows, state=step, **widths)
    if kind == "window":
        width = config.window_head_dim
        past = min(config.window, context - 1) if step else config.window
        widths = {"heads": config.d_model // width, "key_dim": width, "value_dim": width, "window": past}
        return window_flops(**rows, state=step, **widths)
    if kind == "conv":
        return conv_flops(**rows, state=step, channels=2 * config.d_model, taps=config.conv_width)
    if kind == "mamba":
        scan = scan_flops(**rows, state=step, channels=config.inner, states=config.d_state)
        return scan + conv_flops(**rows, state=step, channels=config.inner, taps=config.d_conv)
    width = config.ssm_head_dim
    widths = {"heads": config.inner // width, "head_dim": width, "states": config.d_state, "groups": 1}
    convolved = config.inner + 2 * config.d_state
    ssd = ssd_flops(**rows, state=step, **widths)
    return ssd + conv_flops(**rows, state=step, channels=convolved, taps=config.d_conv)
