"""The statistics of freshly built models: the recipe's init, and both inits of Mamba."""

import math

import pytest
import torch
import torch.nn.functional as F

from basedbench.models import LayerSpec, RecallModel

VOCAB, D = 48, 16
CONV = LayerSpec("base_conv")
MAMBA2 = LayerSpec("mamba2", {"head_dim": 8, "d_state": 4})


def is_normal(weight, std):
    """Std within 4 %, and tails beyond a uniform's sqrt(3) std."""
    return abs(weight.std().item() / std - 1) < 0.04 and weight.abs().max().item() > 2.5 * std


@pytest.mark.parametrize("init", ["published", "correct"])
def test_init_of_the_layer_norm_family(init):
    torch.manual_seed(0)
    model = RecallModel(
        512,
        128,
        [CONV, LayerSpec("attention"), LayerSpec("sliding_window"), LayerSpec("based", {"window": 8})],
        init=init,
    )
    conv, attention, window, based = model.mixers
    assert is_normal(model.head_weight, 0.02)
    assert is_normal(conv.proj.weight, 0.02)
    assert conv.conv.weight.abs().max() <= 3**-0.5
    assert conv.conv.weight.std().item() == pytest.approx(1 / 3, rel=0.1)
    for mixer in (attention, window):
        assert is_normal(mixer.qkv.weight, 0.02)
        assert is_normal(mixer.out_proj.weight, 0.02 / 8**0.5)
        assert not mixer.qkv.bias.any()
        assert not mixer.out_proj.bias.any()
    assert is_normal(based.in_proj.weight, 0.02)
    assert is_normal(based.out_proj.weight, 0.02)


def test_two_layers_halve_the_projection_onto_the_stream():
    torch.manual_seed(0)
    model = RecallModel(VOCAB, 128, [CONV, LayerSpec("attention")])
    assert is_normal(model.mixers[1].out_proj.weight, 0.01)


def test_published_init_of_mamba():
    torch.manual_seed(0)
    mixer = RecallModel(VOCAB, 128, [LayerSpec("mamba")] * 2, init="published").mixers[0]
    for linear in (mixer.in_proj, mixer.x_proj, mixer.dt_proj):
        assert is_normal(linear.weight, 0.02)
    assert is_normal(mixer.out_proj.weight, 0.01)
    assert not mixer.dt_proj.bias.any()
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17.0).repeat(256, 1))
    assert (mixer.D == 1).all()


def is_uniform(weight, bound):
    return weight.abs().max().item() <= bound and abs(weight.std().item() / (bound / 3**0.5) - 1) < 0.04


def is_log_uniform_step(bias):
    dt = F.softplus(bias)
    return dt.min() >= 0.99e-3 and dt.max() <= 1.01e-1 and abs(dt.log10().mean().item() + 2) < 0.15


def test_correct_init_of_mamba():
    torch.manual_seed(0)
    mixer = RecallModel(VOCAB, 128, [LayerSpec("mamba")] * 2, init="correct").mixers[0]
    assert is_uniform(mixer.in_proj.weight, 128**-0.5)
    assert is_uniform(mixer.x_proj.weight, 256**-0.5)
    assert is_uniform(mixer.dt_proj.weight, 8**-0.5)
    assert is_uniform(mixer.out_proj.weight, 256**-0.5 / 2**0.5)
    assert is_log_uniform_step(mixer.dt_proj.bias)


@pytest.mark.parametrize("init", ["published", "correct"])
def test_init_of_mamba2(init):
    torch.manual_seed(0)
    mixer = RecallModel(VOCAB, 128, [LayerSpec("mamba2", {"head_dim": 1})] * 2, init=init).mixers[0]
    if init == "published":
        assert is_normal(mixer.in_proj.weight, 0.02)
        assert is_normal(mixer.out_proj.weight, 0.01)
    else:
        assert is_uniform(mixer.in_proj.weight, 128**-0.5)
        assert is_uniform(mixer.out_proj.weight, 256**-0.5 / 2**0.5)
    assert is_log_uniform_step(mixer.dt_bias)
    decay = mixer.A_log.exp()
    assert decay.min() >= 1
    assert decay.max() <= 16
    assert decay.mean().item() == pytest.approx(8.5, abs=1)
    assert (mixer.D == 1).all()


@pytest.mark.parametrize("init", ["published", "correct"])
def test_init_leaves_decays_bonuses_and_gains_alone(init):
    torch.manual_seed(0)
    layers = [CONV, LayerSpec("gla"), LayerSpec("retnet"), LayerSpec("rwkv4")]
    _, gla, retnet, rwkv4 = RecallModel(VOCAB, 128, layers, init=init).mixers
    for linear in (gla.in_proj, gla.decay_proj, gla.out_proj, retnet.in_proj, retnet.out_proj, rwkv4.k_proj):
        assert is_normal(linear.weight, 0.02)
    assert not gla.decay_proj.bias.any()
    assert (gla.norm.weight == 1).all()
    assert rwkv4.decay[0] == -5
    assert rwkv4.decay[-1] == 3
    channel = 31  # of the last of four layers: the shift's power is 1/4, the decays' 2
    assert rwkv4.decay[channel].item() == pytest.approx(8 * (channel / 127) ** 2 - 5)
    assert rwkv4.mix_k[channel].item() == pytest.approx((channel / 128) ** 0.25)
    assert rwkv4.mix_v[channel].item() == pytest.approx((channel / 128) ** 0.25 + 0.3)
    assert rwkv4.mix_r[channel].item() == pytest.approx((channel / 128) ** 0.125)
    assert rwkv4.bonus[:3].tolist() == pytest.approx([math.log(0.3), math.log(0.3) + 0.5, math.log(0.3) - 0.5])


def test_the_seed_decides_the_weights():
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(RecallModel(VOCAB, D, [CONV, MAMBA2]))
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert not torch.equal(models[0].head_weight, models[2].head_weight)
