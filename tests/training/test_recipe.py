"""The whole recipe once more, as the released code has it: plain PyTorch, AdamW, its scheduler and loss, in float64.

A run of ours has the same losses, weights and accuracy after it, for the mixers that fill both layers.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from basedbench.training import run
from basedbench.training.data import RecallData, SegmentData, recall_data
from tests.training.conftest import MakeCase, trained

RATE, DECAY, EPOCHS, BATCH, REACH = 0.02, 0.1, 3, 16, 40
Parameters = Mapping[str, Tensor]


def conv(p: Parameters, x_BLD: Tensor) -> Tensor:
    """(B, D, L), as PyTorch's padded convolution cut to L."""
    weight_DW = p["conv.weight"]
    options = {"padding": weight_DW.shape[1] - 1, "groups": len(weight_DW)}
    return F.conv1d(x_BLD.mT, weight_DW[:, None], p["conv.bias"], **options)[..., : x_BLD.shape[1]]


def hyena(p: Parameters, x_BLD: Tensor) -> Tensor:
    """Positions relative to the longest length, whatever the input's; the convolution by an FFT of twice the length."""
    length, d_model = x_BLD.shape[1:]
    x1, x2, v = conv(p, F.linear(x_BLD, p["in_proj.weight"], p["in_proj.bias"])).split(d_model, 1)
    h_LF = p["filter.features"][:length]
    for layer in range(3):
        weight, bias = (p[f"filter.hidden.{layer}.{name}"] for name in ("weight", "bias"))
        h_LF = torch.sin(p["filter.frequency"] * F.linear(h_LF, weight, bias))
    time_L = torch.linspace(0, 1, REACH, dtype=torch.float64)[:length]
    rate_D = torch.linspace(math.log(0.01) / 1.5, math.log(0.01) / 0.3, d_model, dtype=torch.float64).abs()
    h_DL = (F.linear(h_LF, p["filter.out.weight"]) * torch.exp(-time_L[:, None] * rate_D)).T
    w = v * x1
    spectrum = torch.fft.rfft(w, 2 * length) * torch.fft.rfft(h_DL, 2 * length)
    y = torch.fft.irfft(spectrum, 2 * length)[..., :length] + p["filter.bias"][:, None] * w
    return F.linear((y * x2).mT, p["out_proj.weight"], p["out_proj.bias"])


def mamba(p: Parameters, x_BLD: Tensor) -> Tensor:
    """The recurrence, token by token."""
    x_BLE, z_BLE = F.linear(x_BLD, p["in_proj.weight"]).chunk(2, -1)
    x_BLE = F.silu(conv(p, x_BLE)).mT
    d_state = p["A_log"].shape[1]
    dt, keys, queries = F.linear(x_BLE, p["x_proj.weight"]).split([p["dt_proj.weight"].shape[1], d_state, d_state], -1)
    dt_BLE = F.softplus(F.linear(dt, p["dt_proj.weight"], p["dt_proj.bias"]))
    h, outputs = x_BLE.new_zeros(len(x_BLE), *p["A_log"].shape), []
    for dt_BE, x_BE, k_BN, q_BN in zip(*(part.unbind(1) for part in (dt_BLE, x_BLE, keys, queries)), strict=True):
        h = torch.exp(-dt_BE[..., None] * p["A_log"].exp()) * h + (dt_BE * x_BE)[..., None] * k_BN[:, None]
        outputs.append((h * q_BN[:, None]).sum(-1) + p["D"] * x_BE)
    return F.linear(torch.stack(outputs, 1) * F.silu(z_BLE), p["out_proj.weight"])


def mamba2(p: Parameters, x_BLD: Tensor) -> Tensor:
    """The recurrence, token by token; one group."""
    heads, inner = len(p["D"]), len(p["norm.weight"])
    keys = (len(p["conv.bias"]) - inner) // 2
    z_BLE, xBC, dt_BLH = F.linear(x_BLD, p["in_proj.weight"]).split([inner, inner + 2 * keys, heads], -1)
    x_BLE, key_BLN, query_BLN = F.silu(conv(p, xBC)).mT.split([inner, keys, keys], -1)
    x_BLHP, dt_BLH = x_BLE.unflatten(-1, (heads, -1)), F.softplus(dt_BLH + p["dt_bias"])
    h, outputs = x_BLHP.new_zeros(*x_BLHP[:, 0].shape, keys), []
    inputs = (part.unbind(1) for part in (dt_BLH, x_BLHP, key_BLN, query_BLN))
    for dt_BH, x_BHP, k_BN, q_BN in zip(*inputs, strict=True):
        dt, k, q = dt_BH[..., None, None], k_BN[:, None, None], q_BN[:, None, None]
        h = torch.exp(-dt * p["A_log"].exp()[:, None, None]) * h + dt * x_BHP[..., None] * k
        outputs.append((h * q).sum(-1) + p["D"][:, None] * x_BHP)
    y_BLE = torch.stack(outputs, 1).flatten(-2) * F.silu(z_BLE)
    return F.linear(F.rms_norm(y_BLE, (inner,), p["norm.weight"], 1e-5), p["out_proj.weight"])


def logits(p: Parameters, mixer: Callable[[Parameters, Tensor], Tensor], tokens_BL: Tensor) -> Tensor:
    """Two blocks on the stream, and the embedding as the head. Hyena's blocks add a second norm's output."""
    h, stream = p["embedding.weight"][tokens_BL], torch.zeros((), dtype=torch.float64)
    for block in ("blocks.0.", "blocks.1."):
        own = {name.removeprefix(f"{block}mixer."): value for name, value in p.items() if name.startswith(block)}
        stream = stream + h
        if mixer is hyena:
            stream = stream + mixer(own, norm(p, f"{block}norm1", stream))
            h = norm(p, f"{block}norm2", stream)
        else:
            h = mixer(own, F.rms_norm(stream, stream.shape[-1:], p[f"{block}norm.weight"], 1e-5))
    return norm(p, "norm", stream + h) @ p["embedding.weight"].T


def norm(p: Parameters, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)


def labels(part: SegmentData) -> Tensor:
    """The value at every query, -100 elsewhere."""
    return torch.full_like(part.tokens_NL, -100).scatter_(1, part.positions_NK, part.targets_NK)


def train(p: Mapping[str, Tensor], mixer: Callable[[Parameters, Tensor], Tensor], data: RecallData) -> list[float]:
    """The losses by epoch; changes p. One group of parameters, the rate changed once an epoch, batches as they come."""
    optimizer = torch.optim.AdamW(p.values(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS, eta_min=0.0)
    by_epoch = []
    for _ in range(EPOCHS):
        losses = []
        for part in data.train:
            for tokens, wanted in zip(part.tokens_NL.split(BATCH), labels(part).split(BATCH), strict=True):
                optimizer.zero_grad()
                loss = F.cross_entropy(logits(p, mixer, tokens).flatten(0, 1), wanted.flatten())
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        schedule.step()
        by_epoch.append(sum(losses) / len(losses))
    return by_epoch


@pytest.mark.parametrize(
    ("mixer", "options"),
    [(hyena, {"max_length": REACH}), (mamba, {"d_state": 4}), (mamba2, {"d_state": 4, "head_dim": 8})],
    ids=["hyena", "mamba", "mamba2"],
)
def test_a_run_is_the_released_loop(
    make_case: MakeCase, monkeypatch: pytest.MonkeyPatch, mixer: Any, options: dict[str, int]
) -> None:
    name = mixer.__name__
    model = {"mixer": name, "layers": [name, name], "grid": {"d_model": 16} | options}
    case = make_case([model], epochs=EPOCHS, learning_rates=[RATE], embed_dropout=0.0, init="published")
    built = run.build_model(case).double()
    theirs = {key: p.detach().clone().requires_grad_() for key, p in built.named_parameters()}
    monkeypatch.setattr(run, "build_model", lambda case: built)
    ours, data = trained(case), recall_data(case, "cpu")
    assert ours.progress.losses == pytest.approx(train(theirs, mixer, data), rel=1e-6)
    for key, p in built.named_parameters():
        torch.testing.assert_close(p, theirs[key], rtol=1e-4, atol=1e-6, msg=key)
    for part in data.splits["test"]:
        wanted = labels(part)
        right = logits(theirs, mixer, part.tokens_NL).argmax(-1)[wanted != -100] == wanted[wanted != -100]
        assert ours.progress.slices[part.name][-1] == pytest.approx(right.double().mean().item(), abs=1e-9)
