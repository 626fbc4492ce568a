"""Decode times of whole models: checked first, and repeatable without running out of room."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from basedbench.engines.deadline import Deadline, TimeUp, unlimited
from basedbench.mixers import Mixer, State, mixer_names
from basedbench.models.recall import LayerSpec, RecallModel
from basedbench.store.schema import PROMISED, check_row
from basedbench.timing import decode, decode_session
from basedbench.timing.decode_session import Decoder, set_up, step_at_length, step_error
from basedbench.timing.worker import Failure, _attempt


class Here:
    """What a worker is to the near end, in this process."""

    def __init__(self) -> None:
        self.make = set_up("cpu", [])

    def ask(self, what: str, *arguments: Any, limit_s: float) -> Any:
        return _attempt(getattr(self.make(*arguments), what))

    def stop(self) -> None:
        pass


decode_rows = partial(decode.decode_rows, start=Here)


def made(*mixers: str, d_model: int = 16) -> RecallModel:
    torch.manual_seed(0)
    return RecallModel(32, d_model, [LayerSpec(name) for name in mixers])


def decoder_of(model: RecallModel, name: str = "x") -> Decoder:
    return Decoder(name, "{}", lambda: model, 20)


def decoder(*mixers: str, d_model: int = 16) -> Decoder:
    return Decoder("+".join(mixers) + f" d_model={d_model}", "{}", partial(made, *mixers, d_model=d_model), length=20)


def test_a_row_for_every_model() -> None:
    decoders = [decoder("base_conv", "attention"), decoder("base_conv", "based")]
    rows = list(decode_rows(decoders, "mine", "cpu", batch=3, rounds=4))
    for row, one in zip(rows, decoders, strict=True):
        stored = check_row("throughput", row | {"code_version": "x", "device_name": "x", "fingerprint": {}})
        assert set(PROMISED["throughput"]) <= set(stored)
        assert (row["status"], row["model"], row["mode"], row["batch"]) == ("ok", one.name, "decode", 3)
        assert len(row["round_medians_ms"]) == 4
        assert row["tokens_per_s"] == 3 / row["median_ms"] * 1e3
        assert row["threads"] == torch.get_num_threads()
    assert rows[0]["state_bytes"] == 4 * (2 * 16 + 2 * 16 * 20) + 4  # two conv inputs; keys, values and their count
    assert rows[0]["parameters"] == made("base_conv", "attention").parameters_count()
    assert rows[0]["case_id"] != rows[1]["case_id"]


def test_a_model_of_another_vocabulary_is_another_case() -> None:
    one, cases = decoder("base_conv", "based"), set()
    for words in (8192, 66, 34):
        (row,) = decode_rows([replace(one, vocab_size=words)], "mine", "cpu", batch=1, rounds=1)
        assert row["vocab_size"] == words
        cases.add(row["case_id"])
    assert len(cases) == 3


@pytest.mark.parametrize("name", mixer_names())
def test_every_mixer_can_be_timed(name: str) -> None:
    model = made("base_conv", name, d_model=64)
    for weight in model.mixers[1].parameters():  # a layer that starts at zero would pass with any step
        torch.nn.init.normal_(weight, std=0.3)
    (row,) = decode_rows([decoder_of(model)], "mine", "cpu", batch=2, rounds=3)
    assert (row["status"], row["reason"]) == ("ok", None)


def test_a_step_that_differs_from_the_parallel_form_is_not_timed() -> None:
    wrong = made("base_conv", "based")
    mixer: Mixer = wrong.mixers[1]
    right = mixer.step

    def forgetful(x_BD: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        return right(x_BD, {name: torch.zeros_like(tensor) for name, tensor in state.items()})

    mixer.step = forgetful  # type: ignore[method-assign]
    assert step_error(wrong, "cpu") > 1e-3
    (row,) = decode_rows([decoder_of(wrong)], "mine", "cpu", batch=2, rounds=3)
    assert row["status"] == "incorrect"
    assert row["median_ms"] is None
    assert "differs from the parallel form" in row["reason"]


def test_a_wrong_step_behind_a_projection_that_starts_at_zero_is_not_timed() -> None:
    torch.manual_seed(0)
    model = RecallModel(32, 64, [LayerSpec("base_conv"), LayerSpec("rwkv7")], init="correct")
    mixer: Mixer = model.mixers[1]
    assert not mixer.out_proj.weight.any()
    right = mixer.step
    mixer.step = lambda x_BD, state: (2 * right(x_BD, state)[0], state)  # type: ignore[method-assign]
    (row,) = decode_rows([decoder_of(model)], "mine", "cpu", batch=2, rounds=3)
    assert row["status"] == "incorrect"


def raises(*arguments: object) -> object:
    raise AttributeError("no such thing")


def leaves(*arguments: object) -> object:
    raise SystemExit(3)


def odd(*arguments: object) -> object:
    raise GeneratorExit


@pytest.mark.parametrize(
    ("method", "change", "words"),
    [
        ("init_state", odd, "GeneratorExit"),
        ("step", raises, "no such thing (test_decode.py line"),
        ("step", leaves, "SystemExit: 3"),
        ("init_state", raises, "no such thing"),
        ("step", lambda x_BD, state: (x_BD, state | {"more": x_BD}), "a step changes what the state consists of"),
    ],
)
def test_a_mixer_that_raises_costs_its_own_row(
    monkeypatch: pytest.MonkeyPatch, method: str, change: object, words: str
) -> None:
    model = made("base_conv", "based")
    monkeypatch.setattr(model.mixers[1], method, change)
    monkeypatch.setattr(decode_session, "TOLERANCE", 100.0)
    rows = list(decode_rows([decoder_of(model), decoder("base_conv", "attention")], "mine", "cpu", batch=2, rounds=3))
    assert [row["status"] for row in rows] == ["runtime_error", "ok"]
    assert words in rows[0]["reason"]
    assert (rows[0]["state_bytes"] is None) == (method == "init_state")


def test_the_same_step_can_be_taken_for_ever() -> None:
    with torch.inference_mode():
        call = step_at_length(made("base_conv", "attention"), 20, "cpu", 2)
        first = [call().clone() for _ in range(50)]
    assert all(torch.isfinite(logits).all() for logits in first)


class Counted:
    """A sampler that does as told on its n-th sampling, warming up included."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self.act, self.count = act, 0

    def sample(self, count: int) -> list[float]:
        self.count += 1
        self.act(self.count)
        return [float(self.count)] * count


def rows_until_stopped(acts: dict[str, Callable[[int], None]], monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """The rows, by mixer, of samplers that act so, and what ended them."""
    monkeypatch.setattr(decode_session, "step_at_length", lambda model, *_: model.mixers[1].name)
    monkeypatch.setattr(decode_session, "_sampler", lambda name, *_: Counted(acts[name]))
    rows: dict[str, Any] = {}
    stop: KeyboardInterrupt | None = None
    try:
        for row in decode_rows(
            [decoder("base_conv", name) for name in acts],
            "mine", "cpu", batch=3, rounds=options.pop("rounds", 20), **options,
        ):  # fmt: skip
            rows[row["model"].split("+")[1].split()[0]] = row
    except KeyboardInterrupt as interrupt:
        stop = interrupt
    return rows, stop


def nothing(count: int) -> None:
    """A sampling like any other."""


@pytest.mark.parametrize(("rounds", "stored"), [(2, set()), (3, {"based"}), (4, {"based", "attention"})])
def test_what_had_enough_rounds_when_stopped_has_a_row(
    monkeypatch: pytest.MonkeyPatch, rounds: int, stored: set[str]
) -> None:
    """The one that is stopped has had a round less than the one before it."""

    def stopped(count: int) -> None:
        if count == rounds + 1:  # the first is warming up
            raise KeyboardInterrupt

    monkeypatch.setattr(decode.random.Random, "shuffle", lambda self, order: order.sort())
    rows, stop = rows_until_stopped({"based": nothing, "attention": stopped}, monkeypatch)
    assert isinstance(stop, KeyboardInterrupt)
    assert set(rows) == stored
    for row in rows.values():
        assert row["status"] == "ok"
        assert row["stop_reason"] == f"stopped after {row['rounds']} of 20 rounds"
        assert row["ci_low_ms"] < row["median_ms"] < row["ci_high_ms"]


def test_stopped_before_any_round_only_failures_have_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(count: int) -> None:
        raise KeyboardInterrupt

    def fails(count: int) -> None:
        raise ValueError("no such step")

    rows, stop = rows_until_stopped({"based": nothing, "mamba": fails, "attention": stopped}, monkeypatch)
    assert isinstance(stop, KeyboardInterrupt)
    assert {name: row["status"] for name, row in rows.items()} == {"mamba": "runtime_error"}


def test_a_model_that_fails_in_its_third_round_costs_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(count: int) -> None:
        if count == 4:
            raise ValueError("no such step")

    rows, stop = rows_until_stopped({"based": fails, "attention": nothing}, monkeypatch)
    assert stop is None
    assert (rows["based"]["status"], rows["based"]["median_ms"]) == ("runtime_error", None)
    assert "no such step" in rows["based"]["reason"]
    assert (rows["attention"]["status"], rows["attention"]["stop_reason"]) == ("ok", "20 rounds")


def test_the_time_limit_stops_rounds_and_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Deadline[Any](3.0, time.monotonic(), unlimited().pace)

    def slow(count: int) -> None:
        time.sleep(0.001)

    rows, stop = rows_until_stopped({"based": slow}, monkeypatch, rounds=10**9, deadline=limit)
    assert isinstance(stop, TimeUp)
    assert rows["based"]["rounds"] >= 3
    assert rows["based"]["stop_reason"].startswith("stopped after")


def test_states_that_do_not_fit_cost_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decode_session.step_at_length

    def crowded(model: RecallModel, *arguments: Any) -> object:
        if model.mixers[1].name == "attention":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return whole(model, *arguments)

    monkeypatch.setattr(decode_session, "step_at_length", crowded)
    decoders = [decoder("base_conv", "attention"), decoder("base_conv", "based")]
    rows = list(decode_rows(decoders, "mine", "cpu", batch=3, rounds=4))
    assert [(row["status"], row["stop_reason"]) for row in rows] == [("oom", "not timed"), ("ok", "4 rounds")]
    assert "can't allocate memory" in rows[0]["reason"]


def test_a_model_that_ends_its_process_costs_its_own_row(tmp_path: Path) -> None:
    """In real processes: the models before and after it are timed in a new one."""
    plugin = tmp_path / "mine.py"
    plugin.write_text(MISBEHAVING)
    names = ("attention", "exits", "dies", "based")
    decoders = [Decoder(name, "{}", partial(build, name), 20) for name in names]
    found = decode.decode_rows(decoders, "mine", "cpu", batch=2, rounds=3, plugins=[str(plugin)])
    rows = {row["model"]: row for row in found}
    assert {name: row["status"] for name, row in rows.items()} == {
        "attention": "ok", "exits": "crashed", "dies": "crashed", "based": "ok"
    }  # fmt: skip
    assert {row["threads"] for row in rows.values()} == {torch.get_num_threads()}
    assert len(rows["attention"]["round_medians_ms"]) == 3
    assert "exit code 0" in rows["exits"]["reason"]
    assert "signal 6" in rows["dies"]["reason"]


def test_a_model_that_never_answers_a_round_costs_its_own_row() -> None:
    asked: list[tuple[str, str]] = []

    class Hangs(Here):
        def ask(self, what: str, *arguments: Any, limit_s: float) -> Any:
            asked.append((arguments[0].name.split()[0], what))
            if asked[-1] == ("base_conv+based", "round"):
                return Failure("timeout", f"no answer within {limit_s:g} s")
            return super().ask(what, *arguments, limit_s=limit_s)

    decoders = [decoder("base_conv", name) for name in ("attention", "based", "mamba")]
    rows = list(decode.decode_rows(decoders, "mine", "cpu", batch=2, rounds=3, start=Hangs))
    assert [row["status"] for row in rows] == ["ok", "timeout", "ok"]
    assert (rows[1]["reason"], rows[1]["stop_reason"]) == ("no answer within 300 s", "not timed")
    assert [row.get("rounds") for row in rows] == [3, None, 3]
    assert asked.count(("base_conv+based", "round")) == 1
    assert asked.count(("base_conv+attention", "prepare")) == 2  # again, in the second process


def build(name: str) -> RecallModel:
    return RecallModel(32, 16, [LayerSpec("base_conv"), LayerSpec(name)])


MISBEHAVING = """
import os
from basedbench.mixers import get_mixer, register

def behave(name, act, method):
    based = get_mixer("based")
    def call(self, *given, **named):
        act()
        return getattr(based, method)(self, *given, **named)
    register(type(name, (based,), {"name": name, method: call, "__module__": __name__}))

behave("exits", lambda: os._exit(0), "__init__")
behave("dies", os.abort, "forward")
"""
