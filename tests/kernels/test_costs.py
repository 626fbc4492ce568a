"""The counts of least work, against numbers worked out by hand and against counts by enumeration."""

import importlib

import pytest

from basedbench.kernels import costs

OPERATORS = {
    name: importlib.import_module(f"basedbench.kernels.{name}")
    for name in (
        "taylor_attention",
        "linear_attention",
        "gated_linear_attention",
        "retention",
        "sliding_window",
        "selective_scan",
        "ssd",
        "delta_rule",
        "layer_delta_rule",
        "wkv4",
        "short_conv",
        "linear_cross_entropy",
    )
}
ATTENTION = {"batch": 1, "length": 4096, "heads": 1, "key_dim": 16, "value_dim": 64}
SHAPES = {
    "taylor_attention": ATTENTION,
    "linear_attention": ATTENTION,
    "gated_linear_attention": ATTENTION,
    "retention": ATTENTION,
    "sliding_window": {**ATTENTION, "window": 64},
    "selective_scan": {"batch": 1, "length": 4096, "channels": 128, "states": 16},
    "ssd": {"batch": 1, "length": 4096, "heads": 2, "head_dim": 64, "states": 128},
    "delta_rule": ATTENTION,
    "layer_delta_rule": ATTENTION,
    "wkv4": {"batch": 1, "length": 4096, "channels": 128},
    "short_conv": {"batch": 1, "length": 4096, "channels": 128, "taps": 4},
    "linear_cross_entropy": {"positions": 4096, "width": 64, "vocabulary": 8192},
}


@pytest.mark.parametrize(("length", "window"), [(1, None), (9, None), (9, 1), (9, 3), (9, 8), (9, 20)])
def test_causal_pairs_by_enumeration(length, window):
    reach = length if window is None else window
    pairs = [(i, j) for i in range(length) for j in range(length) if i - reach <= j <= i]
    assert costs.causal_pairs(length, window) == len(pairs)


@pytest.mark.parametrize("name", OPERATORS)
def test_both_passes_are_three_times_the_operations_and_more_than_twice_the_bytes(name):
    operator, shape = OPERATORS[name], SHAPES[name]
    assert operator.flops(**shape, backward=True) == 3 * operator.flops(**shape)
    assert operator.bytes_moved(**shape, backward=True) > 2 * operator.bytes_moved(**shape)


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "linear_cross_entropy"])
def test_work_is_linear_in_long_sequences(name):
    operator, shape = OPERATORS[name], SHAPES[name]
    longer = {**shape, "length": 2 * shape["length"]}
    assert operator.flops(**longer) == pytest.approx(2 * operator.flops(**shape), rel=0.02)
    assert operator.bytes_moved(**longer) == pytest.approx(2 * operator.bytes_moved(**shape), rel=0.01)


def test_taylor_attention():
    taylor = OPERATORS["taylor_attention"]
    assert taylor.bytes_moved(**ATTENTION) == 4096 * 320  # q 32, k 32, v 128, y 128 bytes per token
    assert taylor.flops(**ATTENTION) == 4096 * 4 * 153 * 65
    assert taylor.flops(**{**ATTENTION, "length": 64}) == 64 * 65 // 2 * 2 * (16 + 64)  # quadratic
    step = {**ATTENTION, "length": 1, "state": True}
    assert taylor.bytes_moved(**step) == 320 + 2 * 153 * 65 * 4
    assert taylor.flops(**step) == 4 * 153 * 65


def test_linear_attention_and_window():
    assert OPERATORS["linear_attention"].flops(**ATTENTION) == 4096 * 4 * 16 * 65
    window = OPERATORS["sliding_window"]
    assert window.flops(**{**ATTENTION, "length": 3}, window=1) == 5 * 2 * (16 + 64)
    step = {**ATTENTION, "length": 1, "window": 64, "state": True}
    assert window.flops(**step) == 65 * 2 * (16 + 64)
    assert window.bytes_moved(**step) == 320 + 2 * (64 + 1) * (16 + 64)


def test_gated_linear_attention():
    gated = OPERATORS["gated_linear_attention"]
    assert gated.bytes_moved(**ATTENTION) == 4096 * 352  # q 32, k 32, g 32, v 128, y 128 bytes per token
    assert gated.flops(**ATTENTION) == 4096 * 4 * 16 * 64
    step = {**ATTENTION, "length": 1, "state": True}
    assert gated.bytes_moved(**step) == 352 + 2 * 16 * 64 * 4


def test_retention():
    retention = OPERATORS["retention"]
    assert retention.bytes_moved(**ATTENTION) == 4096 * 320  # q 32, k 32, v 128, y 128 bytes per token
    step = {**ATTENTION, "length": 1, "state": True}
    assert retention.bytes_moved(**step) == 320 + 2 * 16 * 64 * 4
    assert retention.flops(**step) == 4 * 16 * 64


def test_scan_and_ssd():
    scan = SHAPES["selective_scan"]
    assert OPERATORS["selective_scan"].flops(**scan, gate=False) == 4096 * 128 * (7 * 16 + 3)
    assert OPERATORS["selective_scan"].flops(**scan) == 4096 * 128 * (7 * 16 + 7)
    per_token = 3 * 128 + 2 * 16 + 128  # u, delta, z; B, C; y
    assert OPERATORS["selective_scan"].bytes_moved(**scan) == 2 * 4096 * per_token + 4 * 18 * 128
    assert OPERATORS["ssd"].flops(**SHAPES["ssd"]) == 4096 * 2 * 4 * 64 * 128
    per_token = 3 * 128 + 2 + 2 * 128  # x, z, y; dt; B, C
    assert OPERATORS["ssd"].bytes_moved(**SHAPES["ssd"]) == 2 * 4096 * per_token + 4 * 3 * 2


def test_delta_rule():
    delta = OPERATORS["delta_rule"]
    assert delta.flops(**ATTENTION) == 4096 * 8 * 16 * 64
    assert delta.flops(**{**ATTENTION, "length": 3}) == 6 * 8 * (16 + 64)  # six pairs, four weights and what they weigh
    assert delta.bytes_moved(**ATTENTION) == 2 * 4096 * (4 * 16 + 2 * 64)
    assert delta.bytes_moved(**ATTENTION, decay_dim=16) == 2 * 4096 * (5 * 16 + 2 * 64)
    step = {**ATTENTION, "length": 1, "decay_dim": 1, "state": True}
    assert delta.flops(**{name: step[name] for name in step if name != "decay_dim"}) == 8 * 16 * 64
    assert delta.bytes_moved(**step) == 2 * (4 * 16 + 1 + 2 * 64) + 2 * 4 * 16 * 64


def test_layer_delta_rule():
    delta = OPERATORS["layer_delta_rule"]
    assert delta.flops(**ATTENTION) == 4096 * 6 * 16 * 64
    assert delta.flops(**{**ATTENTION, "length": 3}) == 6 * 4 * (16 + 64)  # six pairs, two weights and what they weigh
    assert delta.bytes_moved(**ATTENTION) == 2 * 4096 * (2 * 16 + 1 + 2 * 64)
    assert delta.bytes_moved(**ATTENTION, decay_dim=16) == 2 * 4096 * (3 * 16 + 1 + 2 * 64)


def test_wkv4():
    wkv4 = OPERATORS["wkv4"]
    assert wkv4.flops(**SHAPES["wkv4"]) == 4096 * 128 * 23
    assert wkv4.bytes_moved(**SHAPES["wkv4"]) == 2 * 3 * 4096 * 128 + 4 * 2 * 128  # k, v, y; w, u
    step = {"batch": 2, "length": 1, "channels": 128, "state": True}
    assert wkv4.bytes_moved(**step) == 2 * 3 * 2 * 128 + 4 * 2 * 128 + 2 * 2 * 3 * 128 * 4


def test_convolution_and_cross_entropy():
    convolution, loss = OPERATORS["short_conv"], OPERATORS["linear_cross_entropy"]
    assert convolution.flops(**SHAPES["short_conv"]) == 4096 * 128 * 8
    assert convolution.bytes_moved(**SHAPES["short_conv"]) == 2 * (2 * 4096 * 128 + 5 * 128)
    step = {"batch": 1, "length": 1, "channels": 128, "taps": 4, "state": True}
    assert convolution.bytes_moved(**step) == 2 * 128 * (2 + 5 + 2 * 3)
    assert loss.flops(**SHAPES["linear_cross_entropy"]) == 2 * 4096 * 64 * 8192
    assert loss.bytes_moved(**SHAPES["linear_cross_entropy"]) == 2 * 64 * (4096 + 8192) + 4096 * 13
