"""Bytes by formula: the state against what `init_state` allots, a step against what it must touch."""

import pytest
import torch

from basedbench.models.language import PRESETS, LanguageModel
from basedbench.models.language.costs import state_size, state_traffic


def positions_bytes(config):
    rounded = {"linear", "mamba", "mamba2"} if config.state_dtype == "bf16" else set()
    return 4 * bool(({"window", "attention"} | rounded) & set(config.layers))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 9, 100])
@pytest.mark.parametrize("state_dtype", ["fp32", "bf16"])
def test_formula_is_the_measured_state(tiny, family, length, dtype, state_dtype):
    model = tiny(family, dtype, state_dtype=state_dtype)
    assert state_size(model.config, length, dtype) + positions_bytes(model.config) == model.state_bytes(length)


@pytest.mark.parametrize("name", PRESETS)
def test_formula_is_the_measured_state_of_presets(name):
    model = LanguageModel(PRESETS[name], device="meta", dtype=torch.bfloat16)
    formula = state_size(model.config, 1024, torch.bfloat16) + positions_bytes(model.config)
    assert formula == model.state_bytes(1024)


def test_a_step_of_attention_reads_every_earlier_token(config):
    d, layers = 28, 2
    traffic = [state_traffic(config("attention"), context, torch.bfloat16) for context in (1, 100)]
    assert traffic == [2 * 2 * d * layers, 2 * 2 * d * 100 * layers]


def test_a_step_of_a_window_reads_no_further_than_it_reaches(config):
    near, full, far = (state_traffic(config("based"), context, torch.float32) for context in (5, 6, 1000))
    assert far == full
    assert full - near == 4 * 2 * 32


def test_recurrent_states_are_read_and_written(config):
    for name in ("mamba", "mamba2"):
        assert state_traffic(config(name), 50, torch.bfloat16) == 2 * state_size(config(name), 50, torch.bfloat16)


def test_weights_are_read_once_for_the_whole_batch(tiny):
    model = tiny("based", torch.bfloat16)
    one, many = model.bytes_per_step(1, 64), model.bytes_per_step(5, 64)
    assert many - one == 4 * state_traffic(model.config, 64, torch.bfloat16)
    assert one - state_traffic(model.config, 64, torch.bfloat16) == 2 * model.parameters_count()
