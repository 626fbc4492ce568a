"""H3 against the recurrences of its two state space models, and their parameters as the recipe starts them."""

import math

import pytest
import torch

from basedbench.mixers import get_mixer
from basedbench.models import LayerSpec, RecallModel


def build(d_model, **options):
    """A mixer whose every parameter is away from its start."""
    torch.manual_seed(0)
    mixer = get_mixer("h3")(d_model, **options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return mixer


def shifted(ssm, k):
    """s_t = (B k_t + s_{t-1} moved on by one),  y_t = C s_t + D k_t."""
    s, outputs = torch.zeros(len(k), *ssm.B.shape, dtype=k.dtype), []
    for t in range(k.shape[1]):
        s = torch.cat((torch.zeros_like(s[..., :1]), s[..., :-1]), -1) + ssm.B * k[:, t, :, None]
        outputs.append((ssm.C * s).sum(-1) + ssm.D * k[:, t])
    return torch.stack(outputs, 1)


def diagonal(ssm, head, x):
    """h_t = p h_{t-1} + g x_t,  y_t = 2 Re(C h_t) + D x_t, by the bilinear rule, for one product (B, L) of a head."""
    A = torch.complex(-ssm.A_log[head].exp(), ssm.A_imag[head])
    B, C = (torch.view_as_complex(parameter[head]) for parameter in (ssm.B, ssm.C))
    dt = ssm.log_dt[head].exp()
    p, g = (2 + dt * A) / (2 - dt * A), 2 * dt * B / (2 - dt * A)
    h, outputs = torch.zeros(len(x), len(A), dtype=torch.complex128), []
    for t in range(x.shape[1]):
        h = p * h + g * x[:, t, None]
        outputs.append(2 * (C * h).sum(-1).real + ssm.D[head] * x[:, t])
    return torch.stack(outputs, 1)


@pytest.mark.parametrize(
    ("length", "d_model", "options"),
    [
        (13, 8, {}),
        (13, 6, {"d_state": 8, "head_dim": 3}),
        (5, 4, {"d_state": 12, "head_dim": 1}),  # more taps than tokens
        (270, 4, {"head_dim": 4}),
    ],
)
def test_formula(length, d_model, options):
    mixer = build(d_model, **options)
    x = torch.randn(2, length, d_model, dtype=torch.float64)
    q, k, v = (x @ mixer.in_proj.weight.T + mixer.in_proj.bias).split(d_model, -1)
    k = shifted(mixer.shift, k)
    heads = d_model // options.get("head_dim", 2)
    y = torch.zeros_like(x)
    for head in range(heads):
        channels = range(head, d_model, heads)
        for value in channels:
            for key in channels:
                y[..., value] += q[..., key] * diagonal(mixer.diagonal, head, k[..., key] * v[..., value])
    torch.testing.assert_close(mixer(x), y @ mixer.out_proj.weight.T + mixer.out_proj.bias)


def test_init_of_the_recipe():
    torch.manual_seed(0)
    mixer = RecallModel(48, 128, [LayerSpec("h3")] * 2).mixers[0]
    shift, model = mixer.shift, mixer.diagonal
    for linear in (mixer.in_proj, mixer.out_proj):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.04)
        assert not linear.bias.any()
    assert shift.B.shape == shift.C.shape == (128, 32)
    assert (shift.B[:, 0] == 1).all()
    assert not shift.B[:, 1:].any()
    assert shift.C.abs().max() <= 32**-0.5
    assert shift.C.std().item() == pytest.approx(96**-0.5, rel=0.04)
    assert model.C.shape == (64, 16, 2)
    assert model.C.std().item() == pytest.approx(0.5**0.5, rel=0.05)
    torch.testing.assert_close(model.A_log.exp(), torch.full((64, 16), 0.5))
    torch.testing.assert_close(model.A_imag, (math.pi * torch.arange(16.0)).expand(64, 16))
    torch.testing.assert_close(model.B, torch.tensor([1.0, 0.0]).expand(64, 16, 2))
    steps = model.log_dt.exp()
    assert steps.min() >= 0.99e-3
    assert steps.max() <= 1.01e-1
    assert steps.log10().mean().item() == pytest.approx(-2, abs=0.2)
    for skip in (shift.D, model.D):
        assert skip.std().item() == pytest.approx(1, rel=0.25)


def test_parameters():
    """d 64, N 16: q, k, v and out; B, C and D of the shift; dt, A, B, C and D of 32 heads with 8 complex modes."""
    expected = 4 * (64 * 64 + 64) + 64 * (16 + 16 + 1) + 32 * (1 + 3 * 8 * 2 + 1)
    assert sum(parameter.numel() for parameter in get_mixer("h3")(64).parameters()) == expected


@pytest.mark.parametrize(("d_model", "d_state"), [(64, 16), (256, 64), (20, 4), (6, 2)])
def test_the_state_is_a_quarter_of_the_width(d_model, d_state):
    assert get_mixer("h3").resolve(d_model, {}).d_state == d_state
    assert get_mixer("h3").resolve(d_model, {"d_state": 10}).d_state == 10
