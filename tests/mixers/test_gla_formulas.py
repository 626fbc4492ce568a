"""GLA, retention and RWKV-4 against the recurrences of their papers, written out in float64 loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basedbench.mixers import Mixer, get_mixer

B, L = 2, 40  # longer than a chunk of gated linear attention


def build(name: str, d_model: int, **options: object) -> tuple[Mixer, Tensor]:
    torch.manual_seed(0)
    return get_mixer(name)(d_model, **options).double().eval(), torch.randn(B, L, d_model, dtype=torch.float64)


def gated_norm(y: Tensor, gate: Tensor, eps: float) -> Tensor:
    return y / (y.square().mean(-1, keepdim=True) + eps).sqrt() * gate * gate.sigmoid()


def causal_conv(x: Tensor, weight: Tensor) -> Tensor:
    padded = F.pad(x.mT, (weight.shape[1] - 1, 0))
    return F.conv1d(padded, weight[:, None], groups=len(weight)).mT


@pytest.mark.parametrize("conv", [0, 3])
def test_gla(conv: int) -> None:
    mixer, x = build("gla", 12, heads=3, expand_k=0.5, expand_v=2.0, decay_rank=5, d_conv=conv)
    with torch.no_grad():
        mixer.norm.weight.uniform_(0.5, 2)
        mixer.decay_proj.weight.mul_(30)  # decays from nearly none to a third of the state a token
    qkv, gate, low = (x @ mixer.in_proj.weight.T).split([6 + 6 + 24, 24, 5], -1)
    qkv = F.silu(causal_conv(qkv, mixer.conv.weight)) if conv else qkv
    q, k, v = qkv.split([6, 6, 24], -1)
    alpha = (low @ mixer.decay_proj.weight.T + mixer.decay_proj.bias).sigmoid() ** (1 / 16)
    assert alpha.max() > 0.999
    assert alpha.min() < 0.7
    outputs = []
    for head in range(3):
        keys, values = slice(2 * head, 2 * head + 2), slice(8 * head, 8 * head + 8)
        S, y = torch.zeros(B, 2, 8, dtype=torch.float64), torch.empty(B, L, 8, dtype=torch.float64)
        for t in range(L):
            S = alpha[:, t, keys, None] * S + k[:, t, keys, None] * v[:, t, None, values]
            y[:, t] = (q[:, t, keys, None] / math.sqrt(2) * S).sum(1)
        outputs.append(mixer.norm.weight * gated_norm(y, gate[..., values], 1e-5))
    torch.testing.assert_close(mixer(x), torch.cat(outputs, -1) @ mixer.out_proj.weight.T)


def test_gla_at_the_start_decays_as_published() -> None:
    mixer, x = build("gla", 64)
    mixer.initialise(2, "published")
    _, _, g_BLHK = mixer._project(x)
    assert g_BLHK.shape == (B, L, 2, 16)
    assert g_BLHK.mean().exp().item() == pytest.approx(0.5 ** (1 / 16), abs=1e-3)


def test_retention() -> None:
    mixer, x = build("retnet", 12, heads=2, expand_v=1.5)
    q, k, v, gate = (x @ mixer.in_proj.weight.T).split([12, 12, 18, 18], -1)
    theta = [10000 ** (-i / 2) for i in range(3)]
    outputs = []
    for head in range(2):
        keys, values = slice(6 * head, 6 * head + 6), slice(9 * head, 9 * head + 9)
        gamma = 1 - 2 ** (-5 - head)
        y = torch.zeros(B, L, 9, dtype=torch.float64)
        for n in range(L):
            for m in range(n + 1):
                score = torch.zeros(B, dtype=torch.float64)
                for i in range(3):  # the real part of q times e^(i theta (n - m)) times the conjugate of k
                    q_i, k_i = (
                        torch.view_as_complex(z.unflatten(-1, (3, 2)).contiguous())[:, :, i]
                        for z in (q[..., keys], k[..., keys])
                    )
                    turn = complex(math.cos(theta[i] * (n - m)), math.sin(theta[i] * (n - m)))
                    score += (q_i[:, n] * turn * k_i[:, m].conj()).real
                y[:, n] += (gamma ** (n - m) * score / math.sqrt(6))[:, None] * v[:, m, values]
        outputs.append(gated_norm(y, gate[..., values], 1e-6))
    torch.testing.assert_close(mixer(x), torch.cat(outputs, -1) @ mixer.out_proj.weight.T)


def test_retention_has_nothing_to_learn_but_projections() -> None:
    mixer, _ = build("retnet", 12)
    assert [name for name, _ in mixer.named_parameters()] == ["in_proj.weight", "out_proj.weight"]
    assert set(mixer.state_dict()) == {"in_proj.weight", "out_proj.weight"}


@pytest.mark.parametrize("depth", [0.0, 1.0])
def test_rwkv4(depth: float) -> None:
    mixer, x = build("rwkv4", 10, depth=depth)
    with torch.no_grad():
        mixer.k_proj.weight.mul_(20)
    before = torch.cat([torch.zeros(B, 1, 10, dtype=torch.float64), x[:, :-1]], 1)

    def mixed(projection: nn.Linear, mix: Tensor) -> Tensor:
        return (x * mix + before * (1 - mix)) @ projection.weight.T

    k, v = mixed(mixer.k_proj, mixer.mix_k), mixed(mixer.v_proj, mixer.mix_v)
    r, w, y = mixed(mixer.r_proj, mixer.mix_r), mixer.decay.exp(), torch.empty_like(x)
    for t in range(L):
        ages = t - 1 - torch.arange(t, dtype=torch.float64)
        exponents = torch.cat([k[:, :t] - ages[:, None] * w, (mixer.bonus + k[:, t]).unsqueeze(1)], 1)
        weights = (exponents - exponents.amax(1, keepdim=True)).exp()
        y[:, t] = (weights * v[:, : t + 1]).sum(1) / weights.sum(1)
    torch.testing.assert_close(mixer(x), (y / (1 + (-r).exp())) @ mixer.out_proj.weight.T)
