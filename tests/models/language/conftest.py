"""Tiny language models of every family, with weights large enough that layers and tokens matter."""

import pytest
import torch

from basedbench.models.language import LanguageConfig, LanguageModel

V = 40
GAIN = 1.5  # of random projections; with 1 greedy generation soon repeats one token
SHAPE = {"vocab_size": V, "d_model": 32, "heads": 2, "mlp_inner": 48, "feature_dim": 8, "window": 5}
FAMILIES = {
    "based": {"layers": ("conv", "linear", "window", "conv"), "window_heads": 4},
    "attention": {"layers": ("attention",) * 2, "d_model": 28, "rotary_fraction": 0.5},  # 7 of 14: 4 pairs turn
    "mamba": {"layers": ("mamba",) * 3, "d_state": 4},
    "mamba2": {"layers": ("mamba2",) * 2, "d_state": 4, "ssm_head_dim": 8},
    "mixed": {"layers": ("mamba", "attention", "conv", "window", "linear"), "conv_bias": True, "rotary_fraction": 0.7},
}


def _config(family, **overrides):
    return LanguageConfig.checked(**(SHAPE | FAMILIES[family] | overrides))


def _tiny(family, dtype=torch.float64, seed=0, **overrides):
    """A model whose projections and norms are far from where they start, so that every part shows in the logits."""
    model = LanguageModel(_config(family, **overrides), dtype=dtype, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
            elif parameter.dim() == 2 and "A_log" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * GAIN / parameter.shape[1] ** 0.5)
            elif name.endswith("bias"):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _tokens(batch=3, length=17, seed=1):
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def config():
    return _config


@pytest.fixture
def tiny():
    return _tiny


@pytest.fixture
def tokens():
    return _tokens


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param
