"""The presets: the published parameter counts and decode states, and what sets the variants apart."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from basedbench.errors import UserError
from basedbench.models.language import PRESETS, LanguageModel, preset

PARAMETERS_M = {  # as published, in millions
    "based-360m": 362.6,
    "based-1.3b-h112": 1349.5,
    "attention-360m": 359.8,
    "attention-1.3b": 1327.1,
    "mamba-360m": 358.2,
    "mamba-1.3b": 1319.3,
}


def build(name, dtype=torch.bfloat16):
    return LanguageModel(preset(name), device="meta", dtype=dtype)


@pytest.mark.parametrize("name", PARAMETERS_M)
def test_parameters(name):
    assert round(build(name).parameters_count() / 1e6, 1) == PARAMETERS_M[name]


@pytest.mark.parametrize(
    ("name", "like", "tolerance"),
    [
        ("attention-1.3b-h64", "attention-1.3b", 0.02),
        ("attention-1.3b-h128", "attention-1.3b", 0.02),
        ("based-1.3b", "based-1.3b-h112", 0.005),
        ("mamba2-360m", "mamba-360m", 0.01),
        ("mamba2-1.3b", "mamba-1.3b", 0.01),
    ],
)
def test_variants_have_the_same_budget(name, like, tolerance):
    ratio = build(name).parameters_count() / build(like).parameters_count()
    assert abs(ratio - 1) < tolerance


def test_heads():
    widths = {name: config.head_dim for name, config in PRESETS.items() if name.startswith("attention")}
    assert widths == {"attention-360m": 64, "attention-1.3b": 70, "attention-1.3b-h64": 64, "attention-1.3b-h128": 128}
    timed, trained = preset("based-1.3b"), preset("based-1.3b-h112")
    assert (timed.heads, timed.head_dim, timed.window_head_dim) == (28, 64, 112)
    assert (trained.heads, trained.head_dim, trained.window_head_dim) == (16, 112, 112)


@pytest.mark.parametrize(("name", "linear", "window", "conv"), [("based-360m", 5, 5, 17), ("based-1.3b", 7, 7, 22)])
def test_layers(name, linear, window, conv):
    layers = preset(name).layers
    assert [layers.count(kind) for kind in ("linear", "window", "conv")] == [linear, window, conv]
    assert layers[:4] == ("conv", "linear", "window", "conv")


@pytest.mark.parametrize(
    ("name", "length", "megabytes"),
    [("attention-360m", 1024, 100.7), ("attention-360m", 4096, 402.7), ("attention-1.3b", 2048, 495.5)],
)
def test_caches_are_as_published(name, length, megabytes):
    assert round(build(name).state_bytes(length) / 1e6, 1) == megabytes


@pytest.mark.parametrize(
    ("name", "window", "megabytes"),
    [("based-360m", 128, 5.67), ("based-360m", 64, 4.36), ("based-1.3b-h112", 128, 13.8)],
)
def test_based_states_are_the_published_ones_packed_and_in_float32(name, window, megabytes):
    """Published: 273 features in 16 bits, three inputs per convolution. Here: 153 in 32 bits, two inputs."""
    config = preset(name, window=window)
    linear, conv = config.layers.count("linear"), config.layers.count("conv")
    ours = LanguageModel(config, device="meta", dtype=torch.bfloat16).state_bytes(1024)
    per_feature = linear * (config.d_model + config.heads)
    positions = 4
    published = ours - positions + per_feature * (2 * 273 - 4 * 153) + conv * 2 * 2 * config.d_model
    assert published / 1e6 == pytest.approx(megabytes, rel=0.005)


@pytest.mark.parametrize(("name", "megabytes"), [("mamba-360m", 3.77), ("mamba-1.3b", 7.54)])
def test_mamba_states_are_the_published_ones_in_float32(name, megabytes):
    """Published: all in 16 bits, four inputs per convolution."""
    config = preset(name)
    channels = len(config.layers) * config.inner
    published = build(name).state_bytes(1024) - channels * (4 - 2) * 16 + channels * 2
    assert published / 1e6 == pytest.approx(megabytes, rel=0.005)


def test_overrides_and_wrong_names():
    assert preset("based-360m", window=64).window == 64
    with pytest.raises(UserError, match="did you mean 'based-360m'"):
        preset("based-350m")
    with pytest.raises(UserError, match="did you mean 'window'"):
        preset("based-360m", windows=64)
    with pytest.raises(UserError, match="heads = 20 does not divide d_model = 1024"):
        preset("based-360m", heads=20)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs(name):
    """On fake tensors: shapes and dtypes alone, at full size."""
    with FakeTensorMode():
        model = LanguageModel(preset(name), dtype=torch.bfloat16)
        tokens_BL = torch.zeros(2, 5, dtype=torch.int64)
        logits_BV, state = model.prefill(tokens_BL, 8)
        assert logits_BV.shape == (2, model.config.vocab_size)
        after_BV, _ = model.step(tokens_BL[:, 0], state)
        assert (after_BV.shape, after_BV.dtype) == (logits_BV.shape, torch.bfloat16)
        assert model(tokens_BL).shape == (2, 5, model.config.vocab_size)
