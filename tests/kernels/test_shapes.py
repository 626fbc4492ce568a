"""Wrong shapes, dtypes and options are refused in a sentence that names them; what operators document is not."""

import inspect
import re
import typing
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from basedbench import kernels
from basedbench.kernels import shapes
from basedbench.kernels.asked import questions_at
from basedbench.kernels.linear_attention import pos_elu
from basedbench.kernels.packing import packing_of
from basedbench.kernels.taylor_attention import apart
from basedbench.kernels.taylor_features import feature_count

# F is what keys of 8 have by Taylor's second order; J is the width of a decay, K or 1.
SIZES = {
    "B": 2,
    "L": 5,
    "H": 4,
    "K": 8,
    "V": 6,
    "D": 12,
    "N": 3,
    "P": 7,
    "G": 2,
    "W": 4,
    "S": 3,
    "R": 4,
    "M": 9,
    "F": 45,
}
WHOLE = {"count_B", "length_B", "position_B", "positions_BK", "target_N", "tokens_x", "out"}


@dataclass(frozen=True)
class Case:
    """An operator with its arguments, `name` or `name:suffix`, and the letters that are bound to others by a rule."""

    arguments: str
    rules: str = ""
    sizes: tuple[tuple[str, int], ...] = ()
    options: tuple[tuple[str, object], ...] = ()

    def drawn(self) -> dict[str, tuple[str, Tensor]]:
        """Each argument's letters and tensor."""
        sizes = SIZES | dict(self.sizes)
        found = {}
        for argument in self.arguments.split():
            name, _, suffix = argument.partition(":")
            letters = (suffix or name.rsplit("_", 1)[1]).replace("x", "BL")
            shape = [int(letter) if letter.isdigit() else sizes[letter] for letter in letters]
            whole = torch.int64 if name in ("target_N", "tokens_x", "positions_BK", "out") else torch.int32
            x = torch.zeros(shape, dtype=whole) if name in WHOLE else 0.1 * torch.ones(shape)
            found[name] = letters, x
        return found


HEADS = "q_BLHK k_BLHK v_BLHV "
TOKEN = "q_BHK k_BHK v_BHV "
TWICE, THRICE = (("E", 24),), (("E", 36),)
CASES = {
    "taylor_attention": Case(HEADS + "initial_state:BHFW", "WVFK", (("W", 7),)),
    "taylor_attention_step": Case(TOKEN + "state_BHFV sums_BHF count_B", "FK"),
    "linear_attention": Case(HEADS + "initial_state:BHFW", "WVFK", (("W", 7), ("F", 8))),
    "linear_attention_step": Case(TOKEN + "state_BHKW:BHFW", "WVFK", (("W", 7), ("F", 8))),
    "gated_linear_attention": Case(HEADS + "g_BLHK initial_state:BHKV"),
    "gated_linear_attention_step": Case(TOKEN + "g_BHK state_BHKV"),
    "retention": Case(HEADS + "log_decay_H initial_state:BHVK"),
    "sliding_window": Case(HEADS, options=(("window", 2),)),
    "sliding_window_step": Case(TOKEN + "k_BWHK v_BWHV position_B"),
    "sliding_window_asked": Case("q_BKHF k_BLHF:PLHF v_BLHV:PLHV positions_BK", "PB", (("P", 2),), (("window", 2),)),
    "taylor_attention_asked": Case("q_BKHF k_BLHF:PLHF v_BLHV:PLHV positions_BK", "PB", (("P", 2),)),
    "selective_scan": Case("u_BLD delta_BLD A_DN B_BLN C_BLN D_D z_BLD delta_bias_D initial_state:BDN"),
    "selective_scan_step": Case("u_BD delta_BD A_DN B_BN C_BN state_BDN D_D z_BD delta_bias_D count_B"),
    "selective_ssm": Case(
        "xz_BLE conv_DW conv_bias_D x_weight_FD dt_weight_DR dt_bias_D A_log_DN D_D", "EDFRN", (*TWICE, ("F", 10))
    ),
    "ssd": Case("x_BLHP dt_BLH A_H B_BLGN C_BLGN D_H z_BLHP dt_bias_H initial_state:BHPN"),
    "ssd_step": Case("x_BHP dt_BH A_H B_BGN C_BGN state_BHPN D_H z_BHP dt_bias_H count_B"),
    "delta_rule": Case(HEADS + "a_BLHK b_BLHK g_BLHK:BLHJ initial_state:BHKV", "JK", (("J", 8),)),
    "shared_delta_rule": Case(HEADS + "a_BLHK b_BLHK g_BLHK:BLHJ", "JK", (("J", 8),)),
    "delta_rule_step": Case(TOKEN + "a_BHK b_BHK g_BHK:BHJ state_BHKV", "JK", (("J", 8),)),
    "layer_delta_rule": Case(HEADS + "beta_BLH g_BLHK:BLHJ initial_state:BHKV", "JK", (("J", 8),)),
    "layer_delta_rule_step": Case(TOKEN + "beta_BH g_BHK:BHJ state_BHKV", "JK", (("J", 8),)),
    "delta_inputs": Case("q_xHK k_xHK beta_xH decay_xE A_log_H bias_E", "EHK", (("E", 32),)),
    "rwkv7_inputs": Case("k_xHK rate_xHK decay_xHK xi_HK alpha_HK"),
    "wkv4": Case("k_BLD v_BLD w_D u_D initial_state:B3D"),
    "wkv4_step": Case("k_BD v_BD w_D u_D state_B3D"),
    "token_shift": Case("x_BLD mu_MD"),
    "head_norm": Case("y_xHV weight:HV bias:HV gate_xE", "EHV", TWICE),
    "short_conv": Case("x_BLD weight_DW bias_D initial_state:BDS", "SW"),
    "short_conv_step": Case("x_BD weight_DW bias_D state_BDS", "SW"),
    "conv_gate": Case("x_BLE weight_DW bias_D initial_state:BDS", "EDSW", TWICE),
    "conv_gate_step": Case("x_BE weight_DW bias_D state_BDS", "EDSW", TWICE),
    "gated_conv": Case("u_BLD gate_BLD weight_DW bias_D gate_bias_D"),
    "base_conv": Case("u_BLD gate_weight_DD gate_bias_D weight_DW bias_D"),
    "plane_conv": Case("x_BLD input_bias_D weight_DW bias_D"),
    "long_conv": Case("x_BLD taps_NG skip_G", "GD"),
    "gated_long_conv": Case("x_BLE taps_NH skip_H shift_ND:MD shift_skip_D bias_E", "EDH", THRICE),
    "shift_filter": Case("B_DN C_DN"),
    "diagonal_filter": Case("log_dt_H A_log_HM A_imag_HM B_HM2 C_HM2", options=(("length", 5),)),
    "linear": Case("x_xD weight_ED bias_E", sizes=TWICE),
    "plane_linear": Case("x_BLD weight_ED bias_E", sizes=TWICE),
    "linear_cross_entropy": Case("x_ND weight_VD target_N"),
    "embedding": Case("tokens_x weight_VD"),
    "add_layer_norm": Case("h_xD residual_xD weight_D bias_D"),
    "row_argmax": Case("x_BV out:B"),
    "attention_decode": Case("q_BHK k_BGK v_BGV k_BLGK v_BLGV length_B", "GH"),
    "cache_append": Case("q_BHK k_BGK v_BGV k_BLGK v_BLGV length_B"),
}


def called(name: str, given: dict[str, Tensor]) -> object:
    """The operator, with its arguments by name."""
    return getattr(kernels, name)(**given, **dict(CASES[name].options))


def changed(name: str, argument: str, x: Tensor) -> dict[str, Tensor]:
    """The case's tensors, one of them another."""
    return {one: y for one, (_, y) in CASES[name].drawn().items()} | {argument: x}


@pytest.mark.parametrize("name", CASES)
def test_every_size_that_something_else_has_too_is_compared(name):
    case = CASES[name]
    forms = case.drawn()
    called(name, {argument: x for argument, (_, x) in forms.items()})
    letters = "".join(form for form, _ in forms.values())
    for argument, (form, x) in forms.items():
        for place, letter in enumerate(form):
            if letters.count(letter) == 1 and letter not in case.rules and not letter.isdigit():
                continue
            first = x.narrow(place, 0, 1)
            for wrong in (torch.cat([x, first], place), first):
                if letter in "JP" and wrong is first:  # a decay for a whole head; packed examples, which are one row
                    continue
                with pytest.raises(ValueError, match=re.escape(argument)) as refused:
                    called(name, changed(name, argument, wrong.clone()))
                text = str(refused.value)
                assert f"{letter} is" in text or f"{letter} = " in text or "x is" in text or f"not ({form[0]}" in text


@pytest.mark.parametrize("name", CASES)
def test_other_dtypes_and_dimensions_are_refused(name):
    leading = [one for one in inspect.signature(getattr(kernels, name)).parameters if "_x" in one]
    for argument, (_, x) in CASES[name].drawn().items():
        other, wanted = (x.float(), "whole numbers") if argument in WHOLE else (x.int(), "floating point")
        with pytest.raises(ValueError, match=rf"{argument} is {other.dtype}, not {wanted}"):
            called(name, changed(name, argument, other))
        if argument not in leading:
            with pytest.raises(ValueError, match=argument):
                called(name, changed(name, argument, x.unsqueeze(-1)))


@pytest.mark.parametrize("name", sorted({*kernels.__all__} - {"adamw_step", "rotary_angles"}))
def test_signatures_and_docstrings_stay(name):
    function = getattr(kernels, name)
    parameters = inspect.signature(function).parameters
    assert parameters == inspect.signature(function.__wrapped__).parameters
    assert function.__doc__ == function.__wrapped__.__doc__
    assert (function.__name__, function.__module__) == (name, function.__wrapped__.__module__)
    assert typing.get_type_hints(function).keys() - {"return"} == parameters.keys()


def test_code_objects_are_not_shared():
    assert len({id(getattr(kernels, name).__code__) for name in kernels.__all__}) == len(kernels.__all__)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda r: kernels.taylor_attention(r(2, 8, 4, 16), r(2, 7, 4, 16), r(2, 8, 4, 6)),
            "k_BLHK is (2, 7, 4, 16): L is 7, but q_BLHK has 8",
        ),
        (
            lambda r: kernels.short_conv(r(2, 5, 8), r(8, 4), initial_state=r(2, 8, 4)),
            "S = W - 1 does not hold: initial_state is (2, 8, 4) with S = 4, weight_DW is (8, 4) with W = 4",
        ),
        (
            lambda r: kernels.wkv4_step(r(2, 8), r(2, 8), r(8), r(8), r(2, 4, 8)),
            "state_B3D is (2, 4, 8), not (B, 3, D)",
        ),
        (lambda r: kernels.wkv4(r(2, 5, 8), r(2, 5, 8), r(8, 1), r(8)), "w_D is (8, 1), not (D)"),
        (
            lambda r: kernels.add_layer_norm(r(2, 5, 8), r(2, 4, 8), r(8)),
            "residual_xD is (2, 4, 8): x is (2, 4), but h_xD has (2, 5)",
        ),
        (
            lambda r: kernels.split_conv(r(2, 5, 9), [1, 8], r(8, 4), r(7), start=1),
            "bias_D is (7,): D is 7, but weight_DW has 8",
        ),
        (
            lambda r: kernels.last_boundary(
                r(2, 5, 8), r(1, 5, 8), (r(8), None), questions_at(torch.zeros(2, 1, dtype=torch.int64), 5)
            ),
            "residual_BLD is (1, 5, 8): B is 1, but h_BLD has 2",
        ),
        (
            lambda r: kernels.selective_ssm_asked(
                r(2, 5, 8), r(2, 1, 8), None, r(8, 4), None, r(10, 8), r(8, 3), r(8), r(8, 3), r(8)
            ),
            "F = R + 2 N does not hold: x_weight_FD is (10, 8) with F = 10",
        ),
        (lambda r: kernels.taylor_feature_map(r(2, 8).int()), "x is torch.int32, not floating point"),
        (lambda r: kernels.swiglu(r()), "x_xE is (), not (..., E)"),
        (lambda r: kernels.add_layer_norm(r(8), None, r(8), kept_xD=r(8)), "kept_xD is torch.float64, not whole"),
        (
            lambda r: kernels.rotary(r(2, 5, 4, 8), r(2, 5, 4, 8), kernels.rotary_angles(torch.arange(5), 10)),
            "2 R <= K does not hold: angles_LR[0] is (5, 5) with R = 5, q_xHK is (2, 5, 4, 8) with K = 8",
        ),
        (
            lambda r: kernels.rotary(r(2, 5, 4, 8), r(2, 5, 4, 8), kernels.rotary_angles(torch.arange(6), 8)),
            "angles_LR[0] is (6, 4): L is 6, but q_xHK has 5",
        ),
        (
            lambda r: kernels.head_norm(r(2, 4, 6), None, None, bonus=(r(2, 4, 6), r(2, 4, 6), r(6), r(2, 4, 6))),
            "bonus[2] is (6,), not (H, V)",
        ),
        (lambda r: kernels.head_norm(r(2, 4, 6), r(4)), "weight is (4,): V is 4, but y_xHV has 6"),
        (lambda r: kernels.head_norm(r(2, 4, 6), r(2, 4, 6)), "weight is (2, 4, 6), not (V) or (H, V)"),
        (
            lambda r: kernels.block_boundary(r(2, 8), r(2, 8), (r(8), r(7))),
            "norm[1] is (7,): D is 7, but h_xD has 8",
        ),
        (
            lambda r: kernels.attention_decode(
                r(2, 4, 8), r(2, 3, 8), r(2, 3, 6), r(2, 5, 3, 8), r(2, 5, 3, 6), torch.zeros(2, dtype=torch.int32)
            ),
            "G divides H does not hold: k_BGK is (2, 3, 8) with G = 3, q_BHK is (2, 4, 8) with H = 4",
        ),
        (
            lambda r: kernels.taylor_attention(*[r(2, 5, 4, 8)] * 3, order=3, initial_state=r(2, 4, 45, 9)),
            "initial_state is (2, 4, 45, 9): F is 45, but keys 8 wide have 165 features of order 3",
        ),
        (
            lambda r: kernels.implicit_filter(
                r(9, 3), [r(6, 3), r(5)], r(6), r(4, 6), length=5, slowest=1.0, fastest=2.0
            ),
            "hidden[1] is (5,): F is 5, but hidden[0] has 6",
        ),
    ],
)
def test_what_is_said(randn, call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call(randn)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: kernels.taylor_attention(x, x, x, order=4), "order must be one of 1, 2, 3, not 4"),
        (
            lambda x: kernels.taylor_attention_step(
                *[x[:, 0]] * 3, x.new_zeros(2, 4, 1, 8), x.new_zeros(2, 4, 1), order=0
            ),
            "order must be one of 1, 2, 3, not 0",
        ),
        (lambda x: kernels.taylor_attention(x, x, x, chunk=0), "chunk must be at least 1"),
        (lambda x: kernels.linear_attention(x, x, x, chunk=-1), "chunk must be at least 1"),
        (lambda x: kernels.gated_linear_attention(x, x, x, x, chunk=0), "chunk must be at least 1"),
        (lambda x: kernels.delta_rule(x, x, x, x, x, chunk=2.5), "chunk must be at least 1 and a whole number"),
        (lambda x: kernels.ssd(x, x[..., 0], x[0, 0, :, 0], x, x, chunk=0), "chunk must be at least 1"),
        (lambda x: kernels.sliding_window(x, x, x, 2.5), "window must be at least 1 and a whole number, not 2.5"),
        (lambda x: kernels.sliding_window(x, x, x, window=0), "window must be at least 1"),
        (lambda x: kernels.retention(x, x, x, x[0, 0, :, 0], scale=0), "scale must not be 0"),
        (
            lambda x: kernels.gated_long_conv(x.flatten(2)[..., :15], x[0, :, 0, :5], order="qkk"),
            "order must name q, k and v once each, not 'qkk'",
        ),
    ],
)
def test_options_are_refused(randn, call, words):
    with pytest.raises(ValueError, match=words):
        call(randn(2, 7, 4, 8))


def test_what_is_documented_passes(randn):
    r = randn
    q, one = r(2, 5, 4, 8), r(2, 4, 8)
    length_B = torch.zeros(2, dtype=torch.int32)
    rows = torch.arange(2, dtype=torch.int32)
    for heads, groups in ((4, 1), (4, 2), (6, 6)):
        new, caches = (r(2, groups, 8), r(2, groups, 6)), (r(2, 5, groups, 8), r(2, 5, groups, 6).float())
        angles = kernels.rotary_angles(rows, 8)
        assert kernels.attention_decode(r(2, heads, 8), *new, *caches, length_B, angles=angles).shape == (2, heads, 6)
        groups_BLGN = r(2, 5, groups, 3)
        assert kernels.ssd(r(2, 5, heads, 7), r(2, 5, heads), -r(heads).abs(), groups_BLGN, groups_BLGN).shape
    kernels.rotary(one, r(2, 1, 8), kernels.rotary_angles(rows, 7))  # one token each; an odd width
    kernels.rotary(r(5, 4, 8)[None, None], r(5, 2, 8)[None, None], kernels.rotary_angles(torch.arange(5), 4))
    for decays in (8, 1):  # of channels and of heads
        kernels.delta_rule(q, q, q, q, q, r(2, 5, 4, decays))
        kernels.delta_rule_step(one, one, one, one, one, r(2, 4, decays), r(2, 4, 8, 8))
        kernels.layer_delta_rule(q, q, q, r(2, 5, 4), r(2, 5, 4, decays))
        kernels.layer_delta_rule_step(one, one, one, r(2, 4), r(2, 4, decays), r(2, 4, 8, 8))
        kernels.delta_inputs(q, q, r(2, 5, 4), r(2, 5, 4 * decays), r(4), r(4 * decays))
    kernels.delta_rule_step(one, one, one, one, one, None, r(2, 4, 8, 8))
    kernels.short_conv_step(r(2, 8), r(8, 1), None, r(2, 8, 0))
    kernels.conv_gate(r(2, 5, 16), r(8, 3), initial_state=None)
    for taps in (2, 9):  # filters shorter and longer than the sequence
        kernels.long_conv(r(2, 5, 8), r(taps, 4))
        kernels.gated_long_conv(r(2, 5, 24), r(taps, 4), shift_ND=r(3, 8), order="kqv")
    kernels.head_norm(q, r(8), gate_xE=r(2, 5, 32))
    kernels.head_norm(q, r(4, 8), r(4, 8), bonus=(q, q, r(4, 8), q))
    kernels.add_layer_norm(r(8), None, r(8), kept_xD=torch.ones(8, dtype=torch.uint8))
    kernels.swiglu(r(6))
    kernels.linear(r(8), r(6, 8), r(6))
    kernels.embedding(torch.tensor(1), r(6, 8))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_states_of_every_order_pass(randn, order):
    q = randn(2, 5, 4, 8)
    _, state = kernels.taylor_attention(q, q, q, order=order, return_state=True)
    assert state.shape[2] == feature_count(8, order)
    kernels.taylor_attention(q, q, q, order=order, initial_state=state)
    kernels.taylor_attention_step(q[:, 0], q[:, 0], q[:, 0], *apart(state), order=order)


@pytest.mark.parametrize("feature_map", [pos_elu, None, lambda x: torch.cat([x.exp(), (-x).exp()], -1)])
def test_states_of_any_features_pass(randn, feature_map):
    q = randn(2, 5, 4, 8)
    _, state = kernels.linear_attention(q, q, q, feature_map=feature_map, return_state=True)
    kernels.linear_attention(q, q, q, feature_map=feature_map, initial_state=state)
    kernels.linear_attention_step(q[:, 0], q[:, 0], q[:, 0], state, feature_map=feature_map)
    with pytest.raises(ValueError, match=r"state_BHKW is .* features"):
        kernels.linear_attention_step(q[:, 0], q[:, 0], q[:, 0], state[:, :, 1:], feature_map=feature_map)


def test_packed_examples_pass(randn):
    packing, positions_BK = packing_of([16, 8], "cpu"), torch.tensor([[3, 15], [0, 7]])
    q, k, v = randn(2, 2, 4, 8), randn(1, 24, 4, 8), randn(1, 24, 4, 6)
    assert kernels.taylor_attention_asked(q, k, v, positions_BK, packing=packing).shape == (2, 2, 4, 6)
    assert kernels.sliding_window_asked(q, k, v, positions_BK, 3, packing=packing).shape == (2, 2, 4, 6)
    with pytest.raises(ValueError, match="P is B, or 1 for packed examples does not hold"):
        kernels.taylor_attention_asked(q, k.expand(3, -1, -1, -1), v.expand(3, -1, -1, -1), positions_BK)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole(randn, dynamic):
    """A few operators with all that is checked, at two lengths: by letters, a rule, a digit, an x, and a count."""
    for name in ("taylor_attention", "short_conv", "sliding_window", "delta_rule_step", "wkv4_step", "swiglu"):
        case = Case("x_xE", sizes=TWICE) if name == "swiglu" else CASES[name]
        compiled = torch.compile(getattr(kernels, name), fullgraph=True, backend="eager", dynamic=dynamic)
        for length in (5, 7):
            longer = Case(case.arguments, case.rules, (*case.sizes, ("L", length)), case.options)
            found, expected = (
                function(**{argument: x for argument, (_, x) in longer.drawn().items()}, **dict(case.options))
                for function in (compiled, getattr(kernels, name))
            )
            torch.testing.assert_close(found, expected)


def test_vmap_and_fake_tensors(randn):
    q, k, v = randn(3, 2, 5, 4, 8), randn(3, 2, 5, 4, 8), randn(3, 2, 5, 4, 6)
    mapped = torch.vmap(kernels.gated_linear_attention)(q, k, v, -k.abs())
    torch.testing.assert_close(mapped[1], kernels.gated_linear_attention(q[1], k[1], v[1], -k[1].abs()))
    with pytest.raises(ValueError, match="k_BLHK is"):
        torch.vmap(kernels.gated_linear_attention)(q, k[:, :, 1:], v, -k.abs())
    one = q[0].clone()
    with FakeTensorMode() as mode:
        x = mode.from_tensor(one)
        assert kernels.delta_rule(x, x, x, x, x).shape == (2, 5, 4, 8)
        with pytest.raises(ValueError, match="v_BLHV is"):
            kernels.delta_rule(x, x, x[:, 1:], x, x)


def test_what_was_right_makes_nothing_else_right() -> None:
    """Calls that are known are not looked at again: other sizes, dtypes and kinds of numbers are."""
    q, k, v = (torch.randn(1, 6, 2, 4) for _ in range(3))
    for _ in range(2):
        kernels.sliding_window(q, k, v, window=2)
    kernels.sliding_window(q, k, v, window=np.int64(2))  # type: ignore[arg-type]
    for wrong in (2.0, 2.5, 0, np.int64(0), np.float32(2.5), True, "2"):
        with pytest.raises(ValueError, match="window must be at least 1"):
            kernels.sliding_window(q, k, v, window=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k_BLHK is"):
        kernels.sliding_window(q, k[:, :5], v, window=2)
    with pytest.raises(ValueError, match="floating point"):
        kernels.sliding_window(q, k, v.long(), window=2)


def test_no_more_calls_are_kept_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "MOST_KNOWN", 3)

    @shapes.checked_shapes()
    def add(x_BD: Tensor, y_BD: Tensor) -> Tensor:
        return x_BD + y_BD

    for size in [*range(1, 9), *range(1, 9)]:
        assert add(torch.ones(size, 2), torch.ones(size, 2)).shape == (size, 2)
        with pytest.raises(ValueError, match="B is"):
            add(torch.ones(size, 2), torch.ones(size + 1, 2))
