"""Who computes whole models, and the least work of one."""

from typing import Any

import pytest
import torch

from basedbench.contenders import language
from basedbench.contenders.language_costs import bytes_of, flops_of
from basedbench.errors import UserError
from basedbench.models.language import LanguageModel, preset
from tests.timing.conftest import make_model_case


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "based-36m"}, "unknown language model 'based-36m': did you mean 'based-360m'"),
        ({"overrides": {"windov": 4}}, "windov"),
        ({"overrides": {"heads": 3}}, "heads = 3 does not divide"),
        ({"contender": "sdpa-flsh"}, "no contender for whole models .* did you mean 'sdpa-flash'"),
        ({"baseline": "attention-36m/ours"}, "did you mean 'attention-360m'"),
        ({"baseline": "attention-360m/fla"}, "no contender for whole models is called 'fla'"),
    ],
)
def test_what_does_not_exist_is_refused(changes: dict[str, Any], message: str) -> None:
    language.check_case(make_model_case())
    with pytest.raises(UserError, match=message):
        language.check_case(make_model_case(**changes))


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("based", {}, None),
        ("based", {"contender": "sdpa-flash"}, "no softmax attention"),
        ("attention", {"contender": "sdpa-math"}, None),
        ("attention", {"contender": "sdpa-flash"}, None),
        ("attention", {"contender": "sdpa-flash", "device": "cuda"}, "bf16 and fp16 only"),
        ("attention", {"contender": "sdpa-flash", "device": "cuda", "dtype": "bf16"}, None),
        ("attention", {"contender": "sdpa-cudnn"}, "needs a CUDA device"),
        ("attention", {"contender": "flash-varlen", "device": "cuda"}, "bf16 and fp16 only"),
        ("attention", {"contender": "flash-varlen", "mode": "prefill"}, "for generation only"),
        ("attention", {"contender": "ours", "mode": "prefill"}, "no softmax attention of its own for prefill"),
    ],
)
def test_what_is_beyond_a_contender_has_a_reason(family: str, changes: dict[str, Any], reason: str | None) -> None:
    found = language.supports(make_model_case(family, **changes))
    assert found is None if reason is None else reason in str(found)


def test_a_prompt_is_computed_by_the_backend_that_its_contender_names() -> None:
    q = torch.ones(1, 1, 4, 8)
    case = make_model_case("attention", mode="prefill", contender="sdpa-flash")
    with language.context(case):
        assert not torch.backends.cuda.math_sdp_enabled()
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    with language.context(make_model_case("based", mode="prefill")):
        assert torch.backends.cuda.math_sdp_enabled()


def model_of(family: str, **changes: Any) -> tuple[LanguageModel, Any]:
    case = make_model_case(family, **changes)
    return LanguageModel(preset(case.model, **case.overrides), device="meta"), case


def test_operations_of_attention_are_projections_logits_and_pairs() -> None:
    model, case = model_of("attention", batch=3, length=10)
    weights = 2 * (4 * 32 * 32 + 3 * 32 * 32)  # two layers: qkv and out, and an MLP of inner width 32
    step = 3 * (2 * weights + 2 * 64 * 32 + 2 * 10 * 4 * 32)
    assert flops_of(model, case) == step
    prompt = case.model_copy(update={"mode": "prefill", "logits": "last"})
    pairs = 10 * 11 // 2
    assert flops_of(model, prompt) == 3 * (10 * 2 * weights + 2 * 64 * 32 + 2 * pairs * 4 * 32)
    every = prompt.model_copy(update={"logits": "all"})
    assert flops_of(model, every) - flops_of(model, prompt) == 3 * 9 * 2 * 64 * 32


@pytest.mark.parametrize("family", ["based", "mamba", "mamba2"])
def test_a_recurrent_step_costs_the_same_at_every_context(family: str) -> None:
    costs = [
        (flops_of(model, case), bytes_of(model, case))
        for model, case in (model_of(family, length=n) for n in (300, 9000))
    ]
    assert costs[0] == costs[1]
    assert costs[0][0] > 2 * 3 * sum(p.numel() for p in model_of(family)[0].parameters() if p.dim() == 2) * 0.9


def test_a_step_counts_the_keys_in_reach_of_a_window() -> None:
    model, case = model_of("based", batch=3)
    windows, past = model.config.layers.count("window"), model.config.window
    counts = {n: flops_of(model, case.model_copy(update={"length": n})) for n in (1, 5, past, past + 1, past + 9)}
    assert windows
    assert counts[past + 9] == counts[past + 1]
    for length in (1, 5, past):
        fewer = 3 * windows * (past + 1 - length) * 4 * model.config.d_model
        assert counts[past + 1] - counts[length] == fewer


def test_a_prompt_reads_the_weights_and_writes_the_state() -> None:
    model, case = model_of("attention", mode="prefill", length=10)
    weights = 4 * model.parameters_count()
    assert bytes_of(model, case) == weights + 3 * model.state_bytes(10)


def test_the_largest_model_counts_as_published() -> None:
    case = make_model_case("attention", model="attention-1.3b", overrides={}, batch=128, length=1024, dtype="bf16")
    model = LanguageModel(preset("attention-1.3b"), device="meta", dtype=torch.bfloat16)
    cache = 128 * 36 * 2 * 1024 * 1680 * 2  # keys and values of 36 layers, two bytes each
    assert bytes_of(model, case) == pytest.approx(2 * 1.327e9 + cache, rel=1e-3)
