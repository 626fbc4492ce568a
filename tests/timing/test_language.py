"""Whole models as they are timed: the state behind a context, a step that can be repeated, and the check before."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from basedbench.config.models import ModelCase
from basedbench.config.throughput import MeasureSection
from basedbench.contenders.language import config_of
from basedbench.models.language import LanguageModel, layers
from basedbench.store import Store, load
from basedbench.timing import language
from basedbench.timing.clock import WallClock
from basedbench.timing.correctness import Verdict
from basedbench.timing.kept import Kept
from basedbench.timing.language import PROMPT, PROMPT_SETS, RESERVED_BYTES, LanguageSubject, largest_batch, spread
from basedbench.timing.repeated import repeated_step
from basedbench.timing.session import Session
from basedbench.timing.step_check import check_steps
from basedbench.timing.sweep import Sweep, groups
from tests.timing.conftest import TINY_LAYERS, make_case, make_model_case

MEASURE = MeasureSection(round_ms=1, min_rounds=3, max_rounds=3, seconds=0.1, timeout=60)


def loaded(family: str, **changes: Any) -> LanguageSubject:
    subject = LanguageSubject(make_model_case(family, **changes), "cpu")
    with torch.no_grad():
        subject.load()
        subject.start()
    return subject


@pytest.mark.parametrize("family", TINY_LAYERS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_family_is_right_and_timed(family: str, dtype: str) -> None:
    session = Session(make_model_case(family, dtype=dtype, length=20), MEASURE, "cpu", WallClock())
    facts = session.prepare()
    assert facts["status"] == "ok"
    assert 0 < facts["error"] <= facts["error_bound"]
    assert all(sample > 0 for sample in session.round().samples_ms)
    session.close()


@pytest.mark.parametrize("family", TINY_LAYERS)
def test_what_a_row_says_of_the_model(family: str) -> None:
    subject = loaded(family)
    model, facts = subject.model, subject.facts()
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert facts["parameters"] == weights // 4
    assert facts["state_bytes"] == model.state_bytes(300)
    assert facts["memory_bytes"] == weights + 3 * facts["state_bytes"]
    assert facts["bytes"] == model.bytes_per_step(3, 300)
    prefill = loaded(family, mode="prefill", length=40, logits="last").facts()
    assert prefill["state_bytes"] == model.state_bytes(40)
    assert prefill["memory_bytes"] == weights + 3 * prefill["state_bytes"]


@pytest.mark.parametrize("family", TINY_LAYERS)
def test_a_step_is_at_its_context_however_often_it_runs(family: str) -> None:
    subject = loaded(family)
    for _ in range(3):
        subject.call()
    counters = [tensor for tensor in subject.state.values() if not tensor.is_floating_point()]
    assert all((tensor == 299).all() for tensor in counters)
    assert bool(counters) == (family in ("based", "attention"))


def test_the_state_is_that_of_a_prompt_spread_over_batch_and_context() -> None:
    subject = loaded("attention")
    k_BLHK = subject.state["0.k"]
    before, after = k_BLHK[:, :PROMPT], k_BLHK[:, PROMPT:-1]  # the last place is the step's own
    assert (before.norm(dim=-1) > 0).all()
    assert torch.equal(after, before[:, : after.shape[1]])
    assert torch.equal(before, before[:1].expand_as(before))


@pytest.mark.parametrize("family", TINY_LAYERS)
@pytest.mark.parametrize("logits", ["last", "all"])
def test_a_prompt_from_the_buffer_gives_what_it_gives_alone(family: str, logits: str) -> None:
    subject = loaded(family, mode="prefill", length=40, logits=logits)
    held = dict(subject.state)
    results = []
    for call, prompt_BL in zip(subject.calls(), subject.prompts, strict=True):
        with torch.no_grad():
            found, state = call()
        expected, alone = subject.model.prefill(prompt_BL, logits=logits)
        assert torch.equal(found, expected)
        assert set(state) == set(alone)
        assert all(state[name] is held[name] for name in held)
        assert all(torch.equal(state[name], alone[name]) for name in alone)
        results.append(expected)
    assert len(results) == PROMPT_SETS
    assert not torch.equal(results[0], results[1])


def test_all_prompts_replay_one_capture() -> None:
    subject = loaded("based", mode="prefill", length=20)
    captures, seen = [], []

    def capture(call: Any) -> Any:
        captures.append(call)
        return lambda: seen.append(subject.tokens_BL.clone())

    calls = subject.replayed(capture)
    for call in calls:
        call()
    assert captures == [subject.call]
    assert all(torch.equal(a, b) for a, b in zip(seen, subject.prompts, strict=True))
    assert loaded("based").replayed(capture) == []  # steps have a graph of their own


def test_spreading_copies_rings_and_repeats_caches() -> None:
    short = torch.arange(6.0).reshape(1, 3, 2)
    ring, cache = torch.zeros(2, 3, 2), torch.zeros(2, 8, 2)
    spread(short, ring)
    spread(short, cache)
    assert torch.equal(ring, short.expand(2, 3, 2))
    assert torch.equal(cache[1], short[0].repeat(3, 1)[:8])


def test_the_first_token_has_an_empty_state_behind_it() -> None:
    subject = loaded("attention", length=1)
    assert subject.state["0.k"].shape[1] == 1
    assert (subject.state["position"] == 0).all()


def test_new_tensors_of_a_state_are_copied_into_the_old() -> None:
    state = {"sum": torch.zeros(2), "position": torch.zeros(2, dtype=torch.int32)}
    held = dict(state)

    def step(state: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        state["position"] += 1
        return state["sum"], {"sum": state["sum"] + 1, "position": state["position"]}

    call = repeated_step(step, state, 7)
    call(), call()
    assert held["sum"].tolist() == [2, 2]
    assert held["position"].tolist() == [7, 7]


def test_a_step_that_misses_a_key_is_incorrect_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = layers.attention_step

    def misses_the_first(q: Any, k: Any, v: Any, length: Any, **options: Any) -> Any:
        return right(q, k[:, 1:], v[:, 1:], (length - 1).clamp(min=1), **options)

    case = make_model_case("attention", dtype="bf16")
    assert Session(case, MEASURE, "cpu", WallClock()).prepare()["status"] == "ok"
    monkeypatch.setattr(layers, "attention_step", misses_the_first)
    session = Session(case, MEASURE, "cpu", WallClock())
    facts = session.prepare()
    assert facts["status"] == "incorrect"
    assert "steps" in facts["reason"]
    assert facts["checked_against"] == "the parallel form in float32"
    assert session.sampler is None


def test_a_prompt_whose_logits_are_wrong_is_incorrect(monkeypatch: pytest.MonkeyPatch) -> None:
    right = layers.RotaryAttention.prefill

    def late(self: Any, x: Any, positions: Any) -> Any:
        y, state = right(self, x, positions)
        return y.roll(1, 1), state

    monkeypatch.setattr(layers.RotaryAttention, "prefill", late)
    case = make_model_case("attention", mode="prefill", logits="all", length=20)
    assert Session(case, MEASURE, "cpu", WallClock()).prepare()["status"] == "incorrect"


@pytest.mark.parametrize("mode", ["generation", "prefill"])
def test_a_closed_session_holds_a_model_for_the_next_until_it_is_told_to_forget(mode: str) -> None:
    kept = Kept("cpu")
    session = Session(make_model_case(mode=mode, length=20), MEASURE, "cpu", WallClock(), kept)
    session.prepare()
    model, state = weakref.ref(session.subject.model), [weakref.ref(x) for x in session.subject.state.values()]
    gc.collect()
    gc.disable()  # what is frozen before the rounds is never collected: nothing may refer to itself
    try:
        session.close()
        assert not any(tensor() is not None for tensor in state)
        assert kept.model(session.case) is model()
        session.forget()
        assert model() is None
    finally:
        gc.enable()


def test_one_model_is_held_at_a_time_and_only_its_attention_changes() -> None:
    kept = Kept("cpu")
    first = kept.model(make_model_case("attention", contender="sdpa-math"))
    assert first.attention == "sdpa-math"
    again = kept.model(make_model_case("attention", contender="sdpa-flash", batch=1, length=7, mode="prefill"))
    assert again is first
    assert again.attention == "sdpa-flash"
    fresh = LanguageModel(config_of(make_model_case("attention")), device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), fresh.parameters(), strict=True))
    gone = weakref.ref(first)
    del first, again
    assert kept.model(make_model_case("attention", dtype="bf16")).dtype == torch.bfloat16
    assert gone() is None
    assert kept.model(make_model_case("based")).config.layers == ("conv", "linear", "window")
    assert not kept.empty


def test_a_model_is_checked_once_for_all_batches_and_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, asked = Kept("cpu"), []

    def noted(model: LanguageModel, case: ModelCase) -> Verdict:
        asked.append(case)
        return check_steps(model, case)

    monkeypatch.setattr(language, "check_steps", noted)
    case = make_model_case("attention")
    others = {"contender": "sdpa-flash"}, {"mode": "prefill", "logits": "last"}, {"mode": "prefill", "logits": "all"}
    errors = []
    for changes in ({}, {"batch": 1}, {"length": 9}, *others, {"dtype": "bf16"}, {"length": 8}):
        changed = case.model_copy(update=changes)
        facts = Session(changed, MEASURE, "cpu", WallClock(), kept).prepare()
        assert facts["status"] == "ok"
        errors.append(facts["error"])
    assert [(one.contender, one.mode, one.logits, one.dtype) for one in asked] == [
        ("sdpa-math", "generation", None, "fp32"),
        ("sdpa-flash", "generation", None, "fp32"),
        ("sdpa-math", "prefill", "last", "fp32"),
        ("sdpa-math", "prefill", "all", "fp32"),
        ("sdpa-math", "generation", None, "bf16"),
    ]
    assert errors[0] == errors[1] == errors[2] == errors[-1]
    kept.forget()
    assert Session(case, MEASURE, "cpu", WallClock(), kept).prepare()["error"] == errors[0]
    assert len(asked) == 5


def test_a_wrong_model_stays_wrong_at_other_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, wrong = Kept("cpu"), Verdict(0.5, 0.1, "the parallel form in float32", "off by one")
    monkeypatch.setattr(language, "check_steps", lambda model, case: wrong)
    for length in (8, 16):
        facts = Session(make_model_case(length=length), MEASURE, "cpu", WallClock(), kept).prepare()
        assert (facts["status"], facts["reason"]) == ("incorrect", "off by one")


def test_out_of_memory_beside_what_was_kept_is_tried_once_more_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, held = Kept("cpu"), []
    filled = LanguageSubject._filled

    def hungry(self: LanguageSubject) -> Any:
        held.append(kept.model(self.case))
        if len({id(model) for model in held}) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return filled(self)

    case = make_model_case()
    kept.model(case)
    monkeypatch.setattr(LanguageSubject, "_filled", hungry)
    session = Session(case, MEASURE, "cpu", WallClock(), kept)
    assert session.prepare()["status"] == "ok"
    assert len(held) == 2
    held.clear()
    with pytest.raises(torch.OutOfMemoryError):  # nothing was kept: there is nothing to gain
        Session(case, MEASURE, "cpu", WallClock()).prepare()
    assert len(held) == 1


def test_the_largest_batch_is_what_memory_leaves_for_sequences() -> None:
    assert largest_batch(total=RESERVED_BYTES + 1000, weights=200, per_sequence=100.0) == 8
    assert largest_batch(total=RESERVED_BYTES, weights=200, per_sequence=100.0) == 0
    assert loaded("based").capacity(0) == {}  # a CPU's memory is everybody's


def test_models_at_one_place_take_turns_whatever_they_are() -> None:
    cases = [make_model_case(family, batch=batch) for family in ("attention", "based") for batch in (1, 2)]
    found = groups([*cases, make_case("ours")])
    assert found == [[cases[0], cases[2]], [cases[1], cases[3]], [make_case("ours")]]
    two = [make_model_case(overrides={"window": window}) for window in (4, 8)]
    assert groups(two) == [[two[0]], [two[1]]]  # one worker cannot hold both


def test_running_out_of_memory_is_a_row_and_not_the_end(tmp_path: Path) -> None:
    cases = [
        make_model_case("attention", batch=2**31 - 1),
        make_model_case("based"),
        make_model_case("based", length=8),
    ]
    cases.append(make_model_case("based", contender="sdpa-math"))
    sweep = Sweep("own", Store(tmp_path), "cpu", MEASURE)
    sweep.ceilings = {"copy": 1e10, "matmul_fp32": 1e11}
    sweep.run(cases, lambda row: None)
    frame = load(tmp_path, "throughput")
    assert sorted(frame["status"]) == ["ok", "ok", "oom", "unsupported"]
    (reason,) = frame.loc[frame["status"] == "unsupported", "reason"]
    assert reason.startswith("based-360m has no softmax attention")
    row = frame[(frame["status"] == "ok") & (frame["length"] == 300)].iloc[0]
    assert (row["model"], row["contender"], row["mode"]) == ("based-360m", "ours", "generation")
    assert row["tokens_per_s"] == pytest.approx(3 / row["median_ms"] * 1e3)
    assert row["bandwidth_fraction"] == pytest.approx(row["bytes"] / row["median_ms"] * 1e3 / 1e10)
    assert row["baseline"] == "attention-360m/sdpa-math"
    assert '"preset": "based-360m"' in row["config"]
    assert '"window": 16' in row["config"]
