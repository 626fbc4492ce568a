"""Each mixer against its formula, written out in float64 with loops or plain PyTorch instead of our operators."""

import math

import torch
import torch.nn.functional as F

from basedbench.mixers import get_mixer

B, L = 2, 13


def build(name, d_model, **options):
    torch.manual_seed(0)
    return get_mixer(name)(d_model, **options).double().eval(), torch.randn(B, L, d_model, dtype=torch.float64)


def conv(module, x_BLD):
    """A depthwise causal convolution by PyTorch's conv1d."""
    weight_DW = module.weight
    padded = F.pad(x_BLD.mT, (weight_DW.shape[1] - 1, 0))
    return F.conv1d(padded, weight_DW[:, None], module.bias, groups=len(weight_DW)).mT


def softmax_attention(q, k, v, window=L):
    distance = torch.arange(L)[:, None] - torch.arange(L)
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill((distance < 0) | (distance > window), -torch.inf)
    return scores.softmax(-1) @ v


def test_base_conv():
    mixer, x = build("base_conv", 6)
    torch.testing.assert_close(mixer(x), conv(mixer.conv, x) * (x @ mixer.proj.weight.T + mixer.proj.bias) + x)


def test_attention_and_window_with_two_heads():
    for name, window, options in (("attention", L, {}), ("sliding_window", 3, {"window": 3})):
        mixer, x = build(name, 8, heads=2, **options)
        q, k, v = (x @ mixer.qkv.weight.T + mixer.qkv.bias).split(8, -1)
        heads = [softmax_attention(*(t[..., i : i + 4] for t in (q, k, v)), window) for i in (0, 4)]
        torch.testing.assert_close(mixer(x), torch.cat(heads, -1) @ mixer.out_proj.weight.T + mixer.out_proj.bias)


def test_based_with_heads_and_window():
    mixer, x = build("based", 8, feature_dim=3, heads=2, window=4)
    q, k, v, wq, wk, wv = (x @ mixer.in_proj.weight.T).split([6, 6, 8, 8, 8, 8], -1)
    heads = []
    for i in (0, 1):
        s = q[..., 3 * i : 3 * i + 3] @ k[..., 3 * i : 3 * i + 3].mT / math.sqrt(3)
        A = (1 + s + s**2 / 2).tril()
        part = slice(4 * i, 4 * i + 4)
        linear = A @ v[..., part] / (A.sum(-1, keepdim=True) + 1e-12)
        heads.append(linear + softmax_attention(wq[..., part], wk[..., part], wv[..., part], 4))
    torch.testing.assert_close(mixer(x), torch.cat(heads, -1) @ mixer.out_proj.weight.T)


def test_linear_attention():
    mixer, x = build("linear_attention", 8, feature_dim=3)
    q, k, v = (x @ mixer.in_proj.weight.T).split([3, 3, 8], -1)
    A = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril()
    torch.testing.assert_close(mixer(x), A @ v / A.sum(-1, keepdim=True) @ mixer.out_proj.weight.T)


def test_mamba():
    mixer, x = build("mamba", 20, d_state=4)
    u, z = (x @ mixer.in_proj.weight.T).split(40, -1)
    u = F.silu(conv(mixer.conv, u))
    dt, keys, queries = (u @ mixer.x_proj.weight.T).split([2, 4, 4], -1)  # dt_rank = ceil(20 / 16)
    dt = F.softplus(mixer.dt_proj(dt))
    h, outputs = torch.zeros(B, 40, 4, dtype=torch.float64), []
    for t in range(L):
        h = torch.exp(-dt[:, t, :, None] * mixer.A_log.exp()) * h + (dt * u)[:, t, :, None] * keys[:, t, None]
        outputs.append((h * queries[:, t, None]).sum(-1) + mixer.D * u[:, t])
    torch.testing.assert_close(mixer(x), torch.stack(outputs, 1) * F.silu(z) @ mixer.out_proj.weight.T)


def test_mamba2_with_groups():
    mixer, x = build("mamba2", 8, head_dim=4, d_state=3, groups=2)  # 4 heads of 4 channels
    with torch.no_grad():
        mixer.norm.weight.uniform_(0.5, 2)
    z, xBC, dt = (x @ mixer.in_proj.weight.T).split([16, 28, 4], -1)
    u, keys, queries = F.silu(conv(mixer.conv, xBC)).split([16, 6, 6], -1)
    dt, outputs = F.softplus(dt + mixer.dt_bias), torch.zeros(B, L, 16, dtype=torch.float64)
    for head in range(4):
        part, group = slice(4 * head, 4 * head + 4), slice(3 * (head // 2), 3 * (head // 2) + 3)
        h = torch.zeros(B, 4, 3, dtype=torch.float64)
        for t in range(L):
            step = dt[:, t, head, None, None]
            h = torch.exp(-step * mixer.A_log[head].exp()) * h + step * u[:, t, part, None] * keys[:, t, None, group]
            outputs[:, t, part] = (h * queries[:, t, None, group]).sum(-1) + mixer.D[head] * u[:, t, part]
    gated = outputs * F.silu(z)
    normed = gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
    torch.testing.assert_close(mixer(x), normed @ mixer.out_proj.weight.T)
