"""The delta family against its papers' recurrences, written out token by token in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from basedbench.mixers import get_mixer
from basedbench.models import LayerSpec, RecallModel, state_bytes_zoology

B, L = 2, 19
Heads = list[Tensor]


def build(name, d_model, **options):
    """A mixer in float64 with every parameter away from where it starts, and its inputs."""
    torch.manual_seed(0)
    mixer = get_mixer(name)(d_model, **options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return mixer, torch.randn(B, L, d_model, dtype=torch.float64)


def convolved(mixer, x: Tensor) -> Tensor:
    """silu of the depthwise causal convolution, tap by tap."""
    weight, width = mixer.conv.weight, mixer.conv.weight.shape[1]
    assert mixer.conv.bias is None
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        for tap in range(width):
            past = t - width + 1 + tap
            if past >= 0:
                y[:, t] += weight[:, tap] * x[:, past]
    return y / (1 + (-y).exp())


def normed(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def rms(y: Tensor, mixer) -> Tensor:
    return y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight


def rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, alpha: Tensor) -> Tensor:
    """One head: q, k, alpha (B,L,K), v (B,L,V), beta (B,L). S_t = (I - beta k k^T) diag(alpha) S + beta k v^T."""
    eye, state = torch.eye(k.shape[-1], dtype=k.dtype), torch.zeros(B, k.shape[-1], v.shape[-1], dtype=k.dtype)
    outputs = []
    for t in range(L):
        outer = k[:, t, :, None] * k[:, t, None, :]
        written = beta[:, t, None, None] * k[:, t, :, None] * v[:, t, None, :]
        state = (eye - beta[:, t, None, None] * outer) @ (alpha[:, t, :, None] * state) + written
        outputs.append((q[:, t, None] @ state).squeeze(1))
    return torch.stack(outputs, 1)


def expected(mixer, x: Tensor, heads: int, alphas: Heads | None, gates: Heads | None) -> Tensor:
    """The whole mixer from the log-free definition, head by head."""
    width, values = x.shape[-1] // heads, mixer.options.expand_v * x.shape[-1] // heads
    sizes = [width * heads, width * heads, values * heads]
    projected = x @ mixer.in_proj.weight.T
    mixed, beta = projected[..., : sum(sizes)], projected[..., -heads:]
    q, k, v = convolved(mixer, mixed).split(sizes, -1)
    outputs = []
    for h in range(heads):
        keys, part = slice(h * width, (h + 1) * width), slice(h * values, (h + 1) * values)
        alpha = torch.ones_like(k[..., keys]) if alphas is None else alphas[h]
        query = normed(q[..., keys]) / math.sqrt(width)
        y = rule(query, normed(k[..., keys]), v[..., part], beta[..., h].sigmoid(), alpha)
        y = rms(y, mixer)
        outputs.append(y if gates is None else y * gates[h])
    return torch.cat(outputs, -1) @ mixer.out_proj.weight.T


@pytest.mark.parametrize(("heads", "expand_v"), [(2, 1), (1, 3)])
def test_delta_net(heads, expand_v):
    mixer, x = build("delta_net", 8, heads=heads, expand_v=expand_v)
    torch.testing.assert_close(mixer(x), expected(mixer, x, heads, None, None))


@pytest.mark.parametrize("gate", [False, True])
def test_gated_delta_net(gate):
    mixer, x = build("gated_delta_net", 8, gate=gate)
    further = (x @ mixer.in_proj.weight.T)[..., 32:-2]  # behind q, k (8 each) and v (16), before beta (2)
    steps = (further[..., -2:] + mixer.dt_bias).exp().log1p()
    alphas = [(-mixer.A_log[h].exp() * steps[..., h : h + 1]).exp().expand(B, L, 4) for h in range(2)]
    silu = further[..., :16] / (1 + (-further[..., :16]).exp())
    gates = [silu[..., :8], silu[..., 8:]] if gate else None
    assert further.shape[-1] == (18 if gate else 2)
    torch.testing.assert_close(mixer(x), expected(mixer, x, 2, alphas, gates))


@pytest.mark.parametrize("rank", [0, 3])
def test_kda(rank):
    mixer, x = build("kda", 8, rank=rank)
    down, gate_down = (x @ mixer.in_proj.weight.T)[..., 24:-2].chunk(2, -1)
    assert down.shape[-1] == (rank or 4)
    steps = (down @ mixer.decay_proj.weight.T + mixer.dt_bias).exp().log1p()
    alphas = [(-mixer.A_log[h].exp() * steps[..., 4 * h : 4 * h + 4]).exp() for h in range(2)]
    gate = (gate_down @ mixer.gate_proj.weight.T + mixer.gate_proj.bias).sigmoid()
    torch.testing.assert_close(mixer(x), expected(mixer, x, 2, alphas, list(gate.chunk(2, -1))))


def low_rank(lora, x: Tensor, activation=lambda x: x) -> Tensor:
    y = activation(x @ lora.down.weight.T) @ lora.up.weight.T
    return y if lora.up.bias is None else y + lora.up.bias


def rwkv7_head(r, k, v, w, eta, kappa) -> Tensor:
    """The paper's row convention, equation 17: S (V,K), S = S (diag(w) - kappa^T (eta kappa)) + v^T k; y = S r."""
    state, outputs = torch.zeros(B, v.shape[-1], k.shape[-1], dtype=k.dtype), []
    for t in range(L):
        removal = kappa[:, t, :, None] * (eta[:, t] * kappa[:, t])[:, None]
        state = state @ (torch.diag_embed(w[:, t]) - removal) + v[:, t, :, None] * k[:, t, None]
        outputs.append((state @ r[:, t, :, None]).squeeze(-1))
    return torch.stack(outputs, 1)


def test_rwkv7():
    mixer, x = build("rwkv7", 8, head_dim=4, decay_rank=3, gate_rank=5, rate_rank=2)
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    x_r, x_w, x_k, x_v, x_a, x_g = (x + (before - x) * mu for mu in mixer.x_x)
    r, k, v = x_r @ mixer.r_proj.weight.T, x_k @ mixer.k_proj.weight.T, x_v @ mixer.v_proj.weight.T
    w = (-math.exp(-0.5) * low_rank(mixer.w_lora, x_w, torch.tanh).sigmoid()).exp()
    eta, gate = low_rank(mixer.a_lora, x_a).sigmoid(), low_rank(mixer.g_lora, x_g, torch.sigmoid)
    removed, k = k * mixer.k_k, k * (1 + (eta - 1) * mixer.k_a)
    outputs = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        parts = (z[..., part] for z in (r, k, v, w, eta))
        y = rwkv7_head(*parts, normed(removed[..., part]))
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 4e-5).sqrt()
        bonus = (r * k)[..., part] @ mixer.r_k[h]
        outputs.append(y * mixer.norm.weight[part] + mixer.norm.bias[part] + bonus[..., None] * v[..., part])
    torch.testing.assert_close(mixer(x), torch.cat(outputs, -1) * gate @ mixer.out_proj.weight.T)


ZOOLOGY = {
    "delta_net": [8_960, 34_304, 134_144],
    "gated_delta_net": [17_152, 67_072, 265_216],
    "rwkv7": [17_152, 34_304, 68_608],
}


@pytest.mark.parametrize("name", ZOOLOGY)
def test_published_state_sizes(name):
    for d_model, total in zip((64, 128, 256), ZOOLOGY[name], strict=True):
        layers = [LayerSpec("base_conv", {}), LayerSpec(name, {})]
        assert state_bytes_zoology(RecallModel(32, d_model, layers)) == total


@pytest.mark.parametrize("name", ["delta_net", "gated_delta_net", "kda"])
def test_initialising_touches_linears_only(name):
    mixer = get_mixer(name)(64)
    before = {key: value.clone() for key, value in mixer.named_parameters()}
    mixer.initialise(2, "published")
    for key, value in mixer.named_parameters():
        if "proj" not in key:
            assert torch.equal(value, before[key]), key
        elif key.endswith("bias"):
            assert (value == 0).all()
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.1), key


def test_decays_start_as_in_mamba():
    torch.manual_seed(0)
    for name, heads in (("gated_delta_net", 64), ("kda", 64)):
        mixer = get_mixer(name)(64, heads=heads)
        steps, rates = F.softplus(mixer.dt_bias), mixer.A_log.exp()
        assert 1e-3 < steps.min() < 5e-3 < 0.05 < steps.max() < 0.1001
        assert 0 < rates.min() < 3 < 13 < rates.max() <= 16


def test_init_of_rwkv7():
    torch.manual_seed(0)
    mixer = get_mixer("rwkv7")(128)
    x = torch.randn(2, 30, 128)
    mixer.initialise(2, "correct")
    assert not mixer(x).any()
    assert torch.allclose(mixer.k_k, 0.71 - 0.1 * (torch.arange(128) / 127 - 0.5))
    assert mixer.w_lora.up.bias[[0, 127]].tolist() == pytest.approx([-8.0, 3.0])  # -6 + .5 - 2.5 ... 0 + .5 + 2.5
    assert mixer.x_x[0, 64].item() == pytest.approx(1 - 0.5**0.1)  # .2 in the first of many layers, half in the second
    assert mixer.k_proj.weight.abs().max() <= 0.05 / 128**0.5
    mixer.initialise(2, "published")
    assert mixer.out_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(vector.any() for vector in (mixer.x_x, mixer.k_k, mixer.k_a, mixer.r_k, mixer.w_lora.up.bias))
    mixer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())
