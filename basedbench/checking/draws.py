"""The inputs of a problem by the names of the operator's signature: what a model would feed it, in shape and scale.

The same values on every machine: they are drawn on the CPU. Parameters that models keep in float32 (decay rates, biases
of step sizes, states) are float32.
"""

import math
from typing import Any
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor

from basedbench.checking.problems import BATCH, Problem
from basedbench.contenders.draw import DTYPES
from basedbench.kernels.adamw import offsets as adamw_offsets

Arguments = dict[str, Any]
PREFIX = 70  # tokens behind an initial state: enough for one that a sequence would leave
KEEP = 0.75


class Source:
    """Seeded random tensors for a problem, with its sizes as attributes: `source.K`."""

    def __init__(self, problem: Problem, length: int | None = None, salt: str = "") -> None:
        self.problem = problem
        self.length = problem.length if length is None else length
        self.dtype = DTYPES[problem.dtype]
        self.size = dict(problem.sizes)
        self.generator = torch.Generator().manual_seed(crc32(f"{salt}{problem.operator} {problem.length}".encode()))

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Standard normal, in the problem's dtype unless told otherwise."""
        return torch.randn(shape, generator=self.generator).to(dtype or self.dtype)

    def rows(self, *shape: int) -> Tensor:
        """Standard normal (B,L,...)."""
        return self.normal(BATCH, self.length, *shape)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform, float32."""
        return torch.rand(shape, generator=self.generator) * (high - low) + low

    def below(self, bound: int, *shape: int) -> Tensor:
        """Whole numbers from 0 to bound - 1."""
        return torch.randint(bound, shape, generator=self.generator)

    def step_bias(self, width: int) -> Tensor:
        """Mamba's initial step-size bias: its softplus is log-uniform between 0.001 and 0.1."""
        step = self.uniform(math.log(1e-3), math.log(1e-1), width).exp()
        return step + torch.log(-torch.expm1(-step))

    def has(self, option: str) -> bool:
        """Whether the problem has this option."""
        return option in self.problem.options


def heads(source: Source) -> Arguments:
    """q, k (B,L,H,K), v (B,L,H,V): slices of one projection, as a mixer makes them."""
    size = source.size
    widths = [size["H"] * size[name] for name in ("K", "K", "V")]
    parts = source.rows(sum(widths)).split(widths, -1)
    return dict(zip(("q_BLHK", "k_BLHK", "v_BLHV"), (x.unflatten(-1, (size["H"], -1)) for x in parts), strict=True))


def gated_heads(source: Source) -> Arguments:
    """Queries, keys, values and logarithms of decays as an initialised layer makes them; if asked for, strong ones."""
    given, shape = heads(source), (source.size["H"], source.size["K"])
    gate_BLHK = F.logsigmoid(source.rows(*shape).float()) / 16
    if source.has("strong decays"):
        gate_BLHK = gate_BLHK * source.uniform(0, 1000, BATCH, source.length, *shape)
    return given | {"g_BLHK": gate_BLHK.to(source.dtype)}


def sliding_window(source: Source) -> Arguments:
    """Queries, keys, values and the window."""
    return heads(source) | {"window": source.size["W"]}


def asked_heads(source: Source) -> Arguments:
    """q (B,K,H,F) of asked tokens, k (B,L,H,F) and v (B,L,H,V) as slices of one projection, and where it is asked."""
    count, width, values = (source.size[name] for name in ("H", "F", "V"))
    positions_BK = _positions(source)
    given: Arguments = {"q_BKHF": source.normal(*positions_BK.shape, count, width)}
    parts = source.rows(count * (width + values)).split([count * width, count * values], -1)
    given |= {name: x.unflatten(-1, (count, -1)) for name, x in zip(("k_BLHF", "v_BLHV"), parts, strict=True)}
    given["positions_BK"] = positions_BK
    return given | ({"window": source.size["W"]} if "W" in source.size else {})


def _positions(source: Source) -> Tensor:
    """Distinct tokens of each sequence, in any order."""
    order_BL = source.uniform(0, 1, BATCH, source.length).argsort(1)
    return order_BL[:, : source.size["A"]].contiguous()


def selective_scan(source: Source) -> Arguments:
    """Mamba's scan; B and C are slices of one projection."""
    channels, states = source.size["D"], source.size["N"]
    B_BLN, C_BLN = source.rows(2 * states).chunk(2, -1)
    rates = -torch.arange(1, states + 1, dtype=torch.float32).repeat(channels, 1)
    given: Arguments = {"u_BLD": source.rows(channels), "delta_BLD": source.rows(channels)}
    if not source.has("softplus"):  # then the step sizes themselves are given
        given["delta_BLD"] = (given["delta_BLD"].float().abs() * 0.1).to(source.dtype)
    given |= {"A_DN": rates, "B_BLN": B_BLN, "C_BLN": C_BLN, "delta_softplus": source.has("softplus")}
    given["D_D"] = source.normal(channels, dtype=torch.float32) if source.has("skip") else None
    given["z_BLD"] = source.rows(channels) if source.has("gate") else None
    given["delta_bias_D"] = source.step_bias(channels) if source.has("bias") else None
    return given


def ssd(source: Source) -> Arguments:
    """Mamba-2's scan."""
    heads, width, states, groups = (source.size[name] for name in ("H", "P", "N", "G"))
    parts = source.rows(heads * width + 2 * groups * states).split(
        [heads * width, groups * states, groups * states], -1
    )
    given: Arguments = {"x_BLHP": parts[0].unflatten(-1, (heads, width)), "dt_BLH": source.rows(heads)}
    if not source.has("softplus"):
        given["dt_BLH"] = (given["dt_BLH"].float().abs() * 0.1).to(source.dtype)
    given["A_H"] = -source.uniform(1, 16, heads)
    given |= {name: x.unflatten(-1, (groups, states)) for name, x in zip(("B_BLGN", "C_BLGN"), parts[1:], strict=True)}
    given["D_H"] = source.normal(heads, dtype=torch.float32) if source.has("skip") else None
    given["z_BLHP"] = source.rows(heads, width) if source.has("gate") else None
    given["dt_bias_H"] = source.step_bias(heads) if source.has("bias") else None
    return given | {"dt_softplus": source.has("softplus")}


def delta_rule(source: Source) -> Arguments:
    """Keys of unit norm; a takes back a part of what stands under b, with channel decays another of each channel."""
    heads, width = source.size["H"], source.size["K"]
    channels = width if source.has("channel decay") else 1
    q_BLHK, k_BLHK, b_BLHK = (F.normalize(source.rows(heads, width).float(), dim=-1) for _ in range(3))
    a_BLHK = -b_BLHK * source.rows(heads, channels).float().sigmoid()
    given: Arguments = {"q_BLHK": q_BLHK, "k_BLHK": k_BLHK, "v_BLHV": source.rows(heads, source.size["V"])}
    given = {name: x.to(source.dtype) for name, x in (given | {"a_BLHK": a_BLHK, "b_BLHK": b_BLHK}).items()}
    decays = source.has("channel decay") or source.has("head decay")
    given["g_BLHK"] = F.logsigmoid(2 + source.rows(heads, channels).float()) if decays else None
    return given


def layer_delta_rule(source: Source) -> Arguments:
    """Keys of unit norm, step sizes, and decays as `delta_rule` has them."""
    given = delta_rule(source)
    beta_BLH = source.rows(source.size["H"]).float().sigmoid().to(source.dtype)
    read = {name: given[name] for name in ("q_BLHK", "k_BLHK", "v_BLHV")}
    return read | {"beta_BLH": beta_BLH, "g_BLHK": given["g_BLHK"]}


def delta_inputs(source: Source) -> Arguments:
    """Slices of projections, and decays as an initialised layer's."""
    heads, width = source.size["H"], source.size["K"]
    parts = source.rows(3 * heads * width).split([heads * width] * 3, -1)
    q_xHK, k_xHK = (x.unflatten(-1, (heads, width)) for x in parts[1:])
    given: Arguments = {"q_xHK": q_xHK, "k_xHK": k_xHK, "beta_xH": source.rows(3 * heads)[..., heads : 2 * heads]}
    if source.has("head decay") or source.has("channel decay"):
        decays = heads * (width if source.has("channel decay") else 1)
        rates_H, bias_E = source.uniform(1, 16, heads).log(), source.step_bias(decays)
        given |= {"decay_xE": source.rows(decays), "A_log_H": rates_H, "bias_E": bias_E}
    return given


def rwkv7_inputs(source: Source) -> Arguments:
    """Keys, logits, and the vectors of a layer."""
    shape = (source.size["H"], source.size["K"])
    given: Arguments = {name: source.rows(*shape) for name in ("k_xHK", "rate_xHK", "decay_xHK")}
    return given | {name: source.normal(*shape, dtype=torch.float32) for name in ("xi_HK", "alpha_HK")}


def token_shift(source: Source) -> Arguments:
    """x and shares of the token before."""
    channels = source.size["D"]
    return {"x_BLD": source.rows(channels), "mu_MD": source.uniform(0, 1, source.size["M"], channels)}


def head_norm(source: Source) -> Arguments:
    """Outputs of heads; a slice of a projection as the gate; with the bonus, all that RWKV-7 has."""
    shape = (source.size["H"], source.size["V"])
    bonus, channels = source.has("bonus"), shape[0] * shape[1]
    given: Arguments = {"y_xHV": source.rows(*shape)}
    given["weight"] = 1 + 0.1 * source.normal(*(shape if bonus else shape[1:]), dtype=torch.float32)
    if source.has("gate"):
        given["gate_xE"] = source.rows(3 * channels)[..., channels : 2 * channels]
    if bonus:
        given |= {name: source.rows(*shape) for name in ("r_xHV", "k_xHV", "v_xHV")}
        given |= {name: source.normal(*shape, dtype=torch.float32) for name in ("bias", "rho_HV")}
        given |= {"center": True, "activation": "identity"}
    return given


def wkv4(source: Source) -> Arguments:
    """RWKV-4's mean: keys, or if asked for keys whose exponentials overflow, and decays as an initialised layer's."""
    channels = source.size["D"]
    keys = source.rows(channels) * (100 if source.has("large keys") else 1)
    given: Arguments = {"k_BLD": keys, "v_BLD": source.rows(channels)}
    return given | {"w_D": -source.uniform(-5, 3, channels).exp(), "u_D": source.normal(channels, dtype=torch.float32)}


def short_conv(source: Source) -> Arguments:
    """x, a filter, and a bias if asked for."""
    channels, taps = source.size["D"], source.size["W"]
    return {
        "x_BLD": source.rows(channels),
        "weight_DW": source.normal(channels, taps),
        "bias_D": source.normal(channels) if source.has("bias") else None,
        "activation": "silu" if source.has("silu") else None,
    }


def split_conv(source: Source) -> Arguments:
    """A projection of five parts, the three in the middle convolved, as Mamba-2 has them."""
    channels, taps = source.size["D"], source.size["W"]
    return {
        "x_BLE": source.rows(32 + channels + 2),
        "widths": [32, channels // 2, channels // 4, channels // 4, 2],
        "weight_DW": source.normal(channels, taps),
        "bias_D": source.normal(channels) if source.has("bias") else None,
        "start": 32,
        "activation": "silu" if source.has("silu") else None,
    }


def selective_ssm(source: Source) -> Arguments:
    """xz and the parameters of an initialised layer of Mamba."""
    channels, states, rank = source.size["D"], source.size["N"], source.size["R"]
    return {
        "xz_BLE": source.rows(2 * channels),
        "conv_DW": source.normal(channels, 4) / 2,
        "conv_bias_D": source.normal(channels) if source.has("bias") else None,
        "x_weight_FD": source.normal(rank + 2 * states, channels) * channels**-0.5,
        "dt_weight_DR": source.normal(channels, rank) * rank**-0.5,
        "dt_bias_D": source.step_bias(channels),
        "A_log_DN": torch.arange(1.0, states + 1).log().repeat(channels, 1),
        "D_D": source.normal(channels, dtype=torch.float32),
    }


def selective_ssm_asked(source: Source) -> Arguments:
    """x of all tokens, z of those that are asked for, and the parameters of `selective_ssm`."""
    given, positions_BK = selective_ssm(source), _positions(source)
    x_BLD = given.pop("xz_BLE")[..., : source.size["D"]].contiguous()
    z_BKD = source.normal(*positions_BK.shape, source.size["D"])
    return {"x_BLD": x_BLD, "z_BKD": z_BKD, "positions_BK": positions_BK} | given


def split_ssd_asked(source: Source) -> Arguments:
    """z of the asked tokens, and x, B, C and dt of all, as an initialised layer of Mamba-2 has them."""
    count, width, states, groups = (source.size[name] for name in ("H", "P", "N", "G"))
    inner, positions_BK = count * width + 2 * groups * states, _positions(source)
    return {
        "z_BKE": source.normal(*positions_BK.shape, count * width),
        "p_BLF": source.rows(inner + count),
        "positions_BK": positions_BK,
        "weight_DW": source.normal(inner, 4) / 2,
        "bias_D": source.normal(inner),
        "A_H": -source.uniform(1, 16, count),
        "D_H": source.normal(count, dtype=torch.float32),
        "dt_bias_H": source.step_bias(count),
        "head_dim": width,
        "groups": groups,
    }


def conv_gate(source: Source) -> Arguments:
    """x = [u, g], a filter and its bias."""
    channels, taps = source.size["D"], source.size["W"]
    parameters = {"weight_DW": source.normal(channels, taps), "bias_D": source.normal(channels)}
    return {"x_BLE": source.rows(2 * channels)} | parameters


def base_conv(source: Source) -> Arguments:
    """u, the gate's product and bias, a filter and its bias."""
    channels, taps = source.size["D"], source.size["W"]
    return {
        "u_BLD": source.rows(channels),
        "gate_weight_DD": source.normal(channels, channels) * channels**-0.5,
        "gate_bias_D": source.normal(channels),
        "weight_DW": source.normal(channels, taps),
        "bias_D": source.normal(channels),
    }


def gated_conv(source: Source) -> Arguments:
    """u and its gate, a filter and two biases."""
    channels, taps = source.size["D"], source.size["W"]
    return {
        "u_BLD": source.rows(channels),
        "gate_BLD": source.rows(channels),
        "weight_DW": source.normal(channels, taps),
        "bias_D": source.normal(channels),
        "gate_bias_D": source.normal(channels),
    }


def plane_conv(source: Source) -> Arguments:
    """A projection's output without its bias, that bias, a filter and its own."""
    channels, taps = source.size["D"], source.size["W"]
    return {
        "x_BLD": source.rows(channels),
        "input_bias_D": source.normal(channels),
        "weight_DW": source.normal(channels, taps),
        "bias_D": source.normal(channels),
    }


def shift_filter(source: Source) -> Arguments:
    """Two numbers a tap of each channel, in float32; of no length."""
    shape = source.size["D"], source.size["N"]
    return {name: source.normal(*shape, dtype=torch.float32) for name in ("B_DN", "C_DN")}


def long_conv(source: Source) -> Arguments:
    """x, damped filters, and the token's own weight."""
    groups = source.size["G"]
    skip_G = source.normal(groups, dtype=torch.float32)
    return {"x_BLD": source.rows(source.size["D"]), "taps_NG": _damped(source, groups), "skip_G": skip_G}


def gated_long_conv(source: Source) -> Arguments:
    """q, k and v side by side, damped filters, and if asked for a shorter one in front of the keys."""
    heads, width = source.size["H"], source.size["H"] * source.size["R"]
    given: Arguments = {"x_BLE": source.rows(3 * width), "taps_NH": _damped(source, heads)}
    given["skip_H"] = source.normal(heads, dtype=torch.float32) if source.has("skip") else None
    shifting = source.has("shift")
    given["shift_ND"] = source.normal(16, width, dtype=torch.float32) / 4 if shifting else None
    return given | {"shift_skip_D": source.normal(width, dtype=torch.float32) if shifting else None}


def _damped(source: Source, filters: int) -> Tensor:
    """Taps (N, filters) in float32, to 1 / 100 from the first to the last."""
    taps = source.size["N"]
    decay = torch.exp(-math.log(100) / taps * torch.arange(taps))
    return source.normal(taps, filters, dtype=torch.float32) * decay[:, None] * taps**-0.5


def implicit_filter(source: Source) -> Arguments:
    """Positions and a network in float32, with room for as many positions again."""
    inputs, units, channels = (source.size[name] for name in ("E", "U", "D"))
    given: Arguments = {"features_NE": source.normal(2 * source.length, inputs, dtype=torch.float32)}
    for layer, width in enumerate((inputs, units, units)):
        given[f"weight_{layer}"] = source.normal(units, width, dtype=torch.float32) * width**-0.5
        given[f"bias_{layer}"] = source.normal(units, dtype=torch.float32)
    given["frequency_F"] = 1 + 0.1 * source.normal(units, dtype=torch.float32)
    given["out_DF"] = source.normal(channels, units, dtype=torch.float32) * units**-0.5
    return given | {"length": source.length}


def diagonal_filter(source: Source) -> Arguments:
    """An initialised diagonal model's parameters, in float32, and the taps that a sequence meets."""
    heads, modes = source.size["H"], source.size["M"]
    return {
        "log_dt_H": source.uniform(math.log(1e-3), math.log(1e-1), heads),
        "A_log_HM": math.log(0.5) + 0.1 * source.normal(heads, modes, dtype=torch.float32),
        "A_imag_HM": math.pi * torch.arange(modes) + 0.1 * source.normal(heads, modes, dtype=torch.float32),
        "B_HM2": source.normal(heads, modes, 2, dtype=torch.float32),
        "C_HM2": source.normal(heads, modes, 2, dtype=torch.float32),
        "length": source.length,
    }


def linear_cross_entropy(source: Source) -> Arguments:
    """Hidden states, an output matrix in the scale of an initialised one, and targets."""
    width, vocabulary = source.size["D"], source.size["V"]
    positions = source.length * source.size.get("B", 1)
    return {
        "x_ND": source.normal(positions, width),
        "weight_VD": source.normal(vocabulary, width) * width**-0.5,
        "target_N": source.below(vocabulary, positions),
    }


def row_argmax(source: Source) -> Arguments:
    """Logits."""
    return {"x_NV": source.normal(source.length, source.size["V"])}


def swiglu(source: Source) -> Arguments:
    """Both halves of a product's output."""
    return {"x_xE": source.rows(2 * source.size["I"])}


def rotary(source: Source) -> Arguments:
    """Queries and keys."""
    parts = source.rows(source.size["H"] + source.size["G"], source.size["K"]).split(
        [source.size["H"], source.size["G"]], -2
    )
    return dict(zip(("q_BLHK", "k_BLGK"), parts, strict=True)) | {"rotated": source.size["R"]}


def attention_decode(source: Source) -> Arguments:
    """A token behind `length` others and one behind a third of them, in a cache with room for three more."""
    heads, groups, width, values = (source.size[name] for name in ("H", "G", "K", "V"))
    parts = source.normal(BATCH, heads * width + groups * (width + values)).split(
        [heads * width, groups * width, groups * values], -1
    )
    names = ("q_BHK", "k_BGK", "v_BGV")
    given: Arguments = {
        name: x.unflatten(-1, (count, -1)) for name, x, count in zip(names, parts, (heads, groups, groups), strict=True)
    }
    given["k_BLGK"] = source.normal(BATCH, source.length + 3, groups, width)
    given["v_BLGV"] = source.normal(BATCH, source.length + 3, groups, values)
    given["length_B"] = torch.tensor([source.length, source.length // 3], dtype=torch.int32)
    return given | {"rotated": width // 2 if source.has("angles") else 0}


def add_layer_norm(source: Source) -> Arguments:
    """A branch, the residual stream, gain and bias, and a dropout's mask."""
    width = source.size["D"]
    dropped = source.has("dropout")
    return {
        "h_xD": source.rows(width),
        "residual_xD": source.rows(width) if source.has("residual") else None,
        "weight_D": 1 + 0.1 * source.normal(width),
        "bias_D": source.normal(width) if source.has("bias") else None,
        "kept_xD": source.uniform(0, 1, BATCH, source.length, width) < KEEP if dropped else None,
        "keep": KEEP if dropped else 1.0,
        "center": not source.has("root mean square"),
    }


def embedding(source: Source) -> Arguments:
    """Tokens, half of them one and the same, and a table."""
    tokens = source.below(source.size["V"], BATCH, source.length)
    tokens = tokens.masked_fill(source.below(2, BATCH, source.length).bool(), 3)
    return {"tokens_x": tokens, "weight_VD": source.normal(source.size["V"], source.size["D"])}


def linear(source: Source) -> Arguments:
    """x (B,L,D), a matrix and a bias."""
    width, outputs = source.size["D"], source.size["E"]
    weight_ED = source.normal(outputs, width) * width**-0.5
    return {"x_xD": source.rows(width), "weight_ED": weight_ED, "bias_E": source.normal(outputs)}


def block_boundary(source: Source) -> Arguments:
    """A branch and the stream, one norm or two, all tokens or a few."""
    width, centered = source.size["D"], not source.has("root mean square")
    given: Arguments = {"h_BLD": source.rows(width), "residual_BLD": source.rows(width)}
    given |= {"weight_D": 1 + 0.1 * source.normal(width), "bias_D": source.normal(width) if centered else None}
    two = source.has("two norms")
    given["first_weight_D"] = 1 + 0.1 * source.normal(width) if two else None
    given["first_bias_D"] = source.normal(width) if two else None
    if source.has("some positions"):
        order = source.uniform(0, 1, BATCH, source.length).argsort(1)
        given["positions_BK"] = order[:, : max(1, source.length // 3)].contiguous()
    return given | {"center": centered}


def adamw(source: Source) -> Arguments:
    """Three tensors of awkward sizes, `length` rows the largest, after ten steps."""
    shapes = ((source.length, 16), (5,), (1024,))
    sizes = [math.prod(shape) for shape in shapes]
    *starts, elements = adamw_offsets(sizes)
    taken = torch.zeros(elements)  # between tensors there are zeros
    for start, size in zip(starts, sizes, strict=True):
        taken[start : start + size] = 1
    flat = [source.normal(elements, dtype=torch.float32) * taken for _ in range(3)]
    buffers = {"parameters": flat[0], "first": 0.1 * flat[1], "second": 0.01 * flat[2].square()}
    buffers["steps"] = torch.tensor(10)
    gradients = {f"gradient_{index}": source.normal(*shape) for index, shape in enumerate(shapes)}
    return buffers | {"rate": torch.tensor(1e-3)} | gradients


def batch(source: Source) -> Arguments:
    """Tables of tokens, questions and answers, an order, and where in it the batch begins."""
    examples = 16
    asked = min(source.size["K"], source.length)
    return {
        "tokens_NL": source.below(8192, examples, source.length),
        "positions_NK": source.uniform(0, 1, examples, source.length).argsort(1)[:, :asked].contiguous(),
        "targets_NK": source.below(8192, examples, asked),
        "order_N": source.uniform(0, 1, examples).argsort(),
        "cursor": torch.tensor(5),
        "loss_N": source.normal(examples, dtype=torch.float32).square(),
    }
