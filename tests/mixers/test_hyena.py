"""Hyena against its formula, its filter's parameters as the recipe starts them, and how far it reaches."""

import math

import pytest
import torch
import torch.nn.functional as F

from basedbench.errors import UserError
from basedbench.mixers import get_mixer
from basedbench.models import LayerSpec, RecallModel
from basedbench.models.state import state_bytes
from basedbench.training.optimizer import AdamW
from basedbench.training.run import Weights


def build(d_model, **options):
    """A mixer whose every parameter is away from its start."""
    torch.manual_seed(0)
    mixer = get_mixer("hyena")(d_model, **options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return mixer


def taps(mixer, length, max_length):
    """The filter without the bias, position by position."""
    network, d_model = mixer.filter, mixer.d_model
    rates = torch.linspace(math.log(100) / 1.5, math.log(100) / 0.3, d_model, dtype=torch.float64)
    rows = []
    for t in range(length):
        h = network.features[t]
        for layer in network.hidden:
            h = torch.sin(network.frequency * (layer.weight @ h + layer.bias))
        rows.append(network.out.weight @ h * torch.exp(-rates * t / (max_length - 1)))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("length", "options"),
    [
        (13, {"max_length": 20, "filter_order": 7, "emb_dim": 5, "short_filter": 4}),
        (13, {"max_length": 13, "filter_order": 3}),
        (270, {"max_length": 300, "filter_order": 5}),
    ],
)
def test_formula(length, options):
    mixer = build(6, **options)
    x = torch.randn(2, length, 6, dtype=torch.float64)
    projected = (x @ mixer.in_proj.weight.T + mixer.in_proj.bias).mT
    width = mixer.conv.weight.shape[1]
    short = F.conv1d(F.pad(projected, (width - 1, 0)), mixer.conv.weight[:, None], mixer.conv.bias, groups=18).mT
    x1, x2, v = short[..., :6], short[..., 6:12], short[..., 12:]
    w, h = x1 * v, taps(mixer, length, options["max_length"])
    conv = torch.stack([sum(h[t - s] * w[:, s] for s in range(t + 1)) for t in range(length)], 1)
    y = x2 * (conv + mixer.filter.bias * w)
    torch.testing.assert_close(mixer(x), y @ mixer.out_proj.weight.T + mixer.out_proj.bias)


def test_positional_features():
    """Time from 0 to 1, then cosine and minus sine of each band: 1e-4 alone, or from there to the highest."""
    for emb_dim, bands in ((3, [1e-4]), (7, [1e-4, (1e-4 + 2) / 2, 2.0])):
        features = get_mixer("hyena")(4, emb_dim=emb_dim, max_length=50).filter.features
        for t in (0, 1, 30, 49):
            angles = [2 * math.pi * f * t / 50 for f in bands]
            expected = [t / 49, *(math.cos(a) for a in angles), *(-math.sin(a) for a in angles)]
            torch.testing.assert_close(features[t], torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_init_of_the_recipe():
    torch.manual_seed(0)
    mixer = RecallModel(48, 128, [LayerSpec("hyena")] * 2).mixers[0]
    linears = [mixer.in_proj, *mixer.filter.hidden, mixer.filter.out]
    for linear in linears:
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert mixer.out_proj.weight.std().item() == pytest.approx(0.01, rel=0.04)
    assert not any(linear.bias.any() for linear in (*linears, mixer.out_proj) if linear.bias is not None)
    assert (mixer.filter.frequency == 1).all()
    assert mixer.filter.bias.std().item() == pytest.approx(1, rel=0.2)
    assert mixer.conv.weight.std().item() == pytest.approx(1 / 3, rel=0.1)


def test_parameters():
    """d 64: in, short conv, out; features, three hidden layers and their frequency, the last one, the bias."""
    filter_parameters = 1024 * 3 + (3 * 64 + 64) + 2 * (64 * 64 + 64) + 64 + 64 * 64 + 64
    expected = 64 * 192 + 192 + 192 * 4 + 64 * 64 + 64 + filter_parameters
    assert sum(parameter.numel() for parameter in get_mixer("hyena")(64).parameters()) == expected


def test_the_cache_grows_where_no_room_is_reserved():
    mixer = build(4, max_length=8)
    _, state = mixer.prefill(torch.randn(2, 3, 4, dtype=torch.float64))
    assert set(state) == {"conv", "w"}
    _, state = mixer.step(torch.randn(2, 4, dtype=torch.float64), state)
    assert state["w"].shape == (2, 4, 4)


@pytest.mark.parametrize(
    "use",
    [
        lambda mixer, x: mixer(x),
        lambda mixer, x: mixer.prefill(x),
        lambda mixer, x: mixer.prefill(x[:, :2], 9),
        lambda mixer, x: mixer.init_state(2, 9),
        lambda mixer, x: mixer.step(x[:, 8], mixer.prefill(x[:, :8])[1]),
        lambda mixer, x: state_bytes(mixer, 9),
    ],
    ids=["forward", "prefill", "room", "state", "step", "size"],
)
def test_no_further_than_its_filter_reaches(use):
    with pytest.raises(UserError, match=r"9 tokens.*max_length = 8"):
        use(build(4, max_length=8), torch.randn(2, 9, 4, dtype=torch.float64))


def test_the_filter_keeps_its_precision_where_the_trainer_multiplies_in_half():
    """Its weights are no candidates for the half-precision copies that stand in for those of other products."""
    model = RecallModel(32, 16, [LayerSpec("hyena")], init="published")
    optimizer = AdamW(list(model.parameters()), 0.1)
    optimizer._moments = optimizer._flat(torch.bfloat16)
    mixers = [module for module in model.modules() if type(module).__name__ == "Hyena"]
    with Weights(model, optimizer).in_place():
        assert {mixer.in_proj.weight.dtype for mixer in mixers} == {torch.bfloat16}
        assert {weight.dtype for mixer in mixers for weight in mixer.filter.parameters()} == {torch.float32}
