"""State sizes: measured, and the two published counts at every published point."""

import pytest
import torch

from basedbench.mixers import get_mixer
from basedbench.models import LayerSpec, RecallModel, state_bytes, state_bytes_paper, state_bytes_zoology

BASED = {
    (48, 8): 9_396,
    (48, 16): 30_564,
    (48, 24): 64_276,
    (64, 8): 12_468,
    (64, 16): 40_548,
    (64, 24): 85_268,
    (128, 8): 24_756,
    (128, 16): 80_484,
    (128, 24): 169_236,
}
SLIDING = {
    8: 9_728,
    16: 17_920,
    32: 34_304,
    64: 67_072,
    128: 132_608,
    256: 263_680,
    512: 525_824,
    1024: 1_050_112,
}


def model(d_model, *layers):
    with torch.device("meta"):
        return RecallModel(32, d_model, [LayerSpec(name, options) for name, options in layers])


def behind_base_conv(d_model, name, **options):
    return model(d_model, ("base_conv", {}), (name, options))


@pytest.mark.parametrize(("d_model", "total"), [(64, 525_056), (128, 1_050_112)])
def test_attention(d_model, total):
    built = behind_base_conv(d_model, "attention")
    assert state_bytes_zoology(built) == total
    assert state_bytes_paper(built) == 4 * 2 * d_model * 1024
    assert state_bytes(built, 1024) == total - 4 * d_model + 4  # a convolution keeps 2 inputs, not 3; one position


@pytest.mark.parametrize(("d_model", "feature_dim"), BASED)
def test_based(d_model, feature_dim):
    built = behind_base_conv(d_model, "based", feature_dim=feature_dim)
    features = 1 + feature_dim + feature_dim * (feature_dim + 1) // 2
    assert state_bytes_zoology(built) == BASED[d_model, feature_dim]
    assert state_bytes_paper(built) == 4 * features * (d_model + 1)
    assert state_bytes(built, 1024) == BASED[d_model, feature_dim] - 4 * d_model


@pytest.mark.parametrize("window", SLIDING)
def test_sliding_window(window):
    built = behind_base_conv(128, "sliding_window", window=window)
    assert state_bytes_zoology(built) == SLIDING[window]
    assert state_bytes_paper(built) == 8 * window * 128
    assert state_bytes(built, 1024) == SLIDING[window] - 4 * 128 + 4


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
@pytest.mark.parametrize("d_state", [8, 16, 24])
@pytest.mark.parametrize("d_model", [64, 128, 256])
def test_mamba(name, d_model, d_state):
    built = model(d_model, (name, {"d_state": d_state}), (name, {"d_state": d_state}))
    assert state_bytes_zoology(built) == state_bytes_paper(built) == 16 * d_model * d_state
    channels = 2 * d_model + (2 * d_state if name == "mamba2" else 0)
    assert state_bytes(built, 1024) == 16 * d_model * d_state + 2 * 4 * 3 * channels  # the convolutions count too


@pytest.mark.parametrize("d_model", [64, 128, 256])
def test_hyena(d_model):
    built = model(d_model, ("hyena", {}), ("hyena", {}))
    assert state_bytes_zoology(built) == state_bytes_paper(built) == 8 * d_model * 1024
    # Three channels under the short convolutions, two inputs each; two positions.
    assert state_bytes(built, 1024) == 8 * d_model * 1024 + 2 * 4 * 3 * d_model * 2 + 2 * 4


@pytest.mark.parametrize("d_model", [64, 128, 256])
def test_h3(d_model):
    built = model(d_model, ("h3", {}), ("h3", {}))
    assert state_bytes_zoology(built) == state_bytes_paper(built) == 2 * d_model**2
    # Twice that for four products of two keys with two values, and once for past keys, less one each.
    assert state_bytes(built, 1024) == 3 * 2 * d_model**2 - 2 * 4 * d_model


@pytest.mark.parametrize(("d_model", "total"), [(64, 4_864), (128, 17_920), (256, 68_608)])
def test_gla(d_model, total):
    built = behind_base_conv(d_model, "gla")
    assert state_bytes_zoology(built) == total
    assert state_bytes(built, 1024) == total - 4 * d_model  # a convolution keeps 2 inputs, not 3


def test_retnet_and_rwkv4():
    retention, time_mix = behind_base_conv(64, "retnet"), behind_base_conv(64, "rwkv4")
    assert state_bytes(retention, 1024) == 4 * 2 * 32 * 64 + 4 + 4 * 2 * 64  # 2 heads; one position
    assert state_bytes(time_mix, 1024) == 4 * 4 * 64 + 4 * 2 * 64  # the last token, two sums, a maximum
    assert state_bytes(time_mix, 1024, torch.bfloat16) == (2 + 12) * 64 + 2 * 2 * 64


@pytest.mark.parametrize(
    ("name", "options", "elements"),
    [
        ("attention", {}, 2 * 64 * 500),
        ("attention", {"heads": 4}, 2 * 64 * 500),
        ("sliding_window", {"window": 32}, 2 * 64 * 32),
        ("based", {"feature_dim": 8, "heads": 4}, 45 * 68),
        ("based", {"feature_dim": 8, "window": 16}, 45 * 65 + 2 * 64 * 16),
        ("base_conv", {}, 3 * 64),
        ("mamba", {"d_state": 8}, 2 * 64 * 8),
        ("mamba2", {"d_state": 8}, 2 * 64 * 8),
        ("linear_attention", {"feature_dim": 8}, 8 * 65),
        ("gla", {"heads": 4, "d_conv": 4}, 32 * 64 // 4),
        ("retnet", {"heads": 4}, 64 * 128 // 4),
        ("rwkv4", {}, 4 * 64),
        ("hyena", {}, 64 * 500),
        ("h3", {"d_state": 8}, 64 * 8),
    ],
)
def test_elements_of_one_layer_at_another_length(name, options, elements):
    mixer = get_mixer(name)(64, **options)
    assert mixer.zoology_elements(500) == elements
    assert mixer.paper_elements(500) == (0 if name == "base_conv" else elements)


def test_accumulated_states_stay_in_float32_and_caches_take_the_dtype():
    assert state_bytes(behind_base_conv(64, "based"), 1024, torch.bfloat16) == 4 * 153 * 65 + 2 * 2 * 64
    assert state_bytes(behind_base_conv(64, "attention"), 1024, torch.bfloat16) == 2 * 2 * 64 * 1024 + 4 + 2 * 2 * 64


def test_measured_length_counts_where_the_state_grows():
    sizes = [state_bytes(behind_base_conv(64, "attention"), length) for length in (256, 512)]
    assert sizes[1] - sizes[0] == 8 * 64 * 256
    sizes = [state_bytes(behind_base_conv(64, "based"), length) for length in (256, 512)]
    assert sizes[0] == sizes[1]
