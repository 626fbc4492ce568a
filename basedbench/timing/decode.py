"""How many tokens per second a recall model decodes: its own step, from its own state, for a batch of sequences.

Every model is checked first: stepping through a sequence must give what the parallel form gives. Then the models take
turns in shuffled rounds, each step at the context length it would have at the end of the longest test. What is stopped
before its last round has a row, too, if it had enough of them for an interval.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from basedbench.config import case_id
from basedbench.engines.deadline import Deadline, unlimited
from basedbench.models.recall import RecallModel
from basedbench.models.state import state_bytes
from basedbench.store.schema import blank_row
from basedbench.timing.clock import Clock
from basedbench.timing.failures import classify
from basedbench.timing.repeated import repeated_step
from basedbench.timing.rows import times
from basedbench.timing.samplers import CpuSampler, GraphSampler, Sampler
from basedbench.timing.samples import Round
from basedbench.timing.telemetry import Telemetry

CHECKED_TOKENS = 24
TOLERANCE = 1e-3  # float32 steps against the float32 parallel form, relative
SAMPLES = 5
FEWEST_ROUNDS = 3  # of a row; no less can be asked for


@dataclass(frozen=True)
class Decoder:
    """A model to be timed: `name` as in the rows ("base_conv+based d_model=64"), its options as JSON, its context."""

    name: str
    config: str
    model: RecallModel
    length: int


@dataclass
class _Found:
    """What is known of the decoders, by their place, at any moment."""

    errors: dict[int, float] = field(default_factory=dict)
    samplers: dict[int, Sampler] = field(default_factory=dict)
    rounds: dict[int, list[Round]] = field(default_factory=dict)
    failures: dict[int, tuple[str, str]] = field(default_factory=dict)


def decode_rows(
    decoders: Sequence[Decoder],
    suite: str,
    device: str,
    batch: int,
    rounds: int,
    clock: Clock,
    deadline: Deadline[Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Time every decoder at `batch` sequences and yield a throughput row for each; a wrong one has no time.

    Stopped by Ctrl-C or the deadline, it yields what rows there are by then, and raises KeyboardInterrupt or TimeUp.
    """
    found, stop = _Found(), None
    try:
        with torch.inference_mode(), (deadline or unlimited()).kept():
            for index, decoder in enumerate(decoders):
                _get_ready(found, index, decoder, device, batch, clock)
            _take_turns(found, rounds, Telemetry(device))
    except KeyboardInterrupt as interrupt:
        stop = interrupt
    for index, decoder in enumerate(decoders):
        if outcome := _outcome(found, index, batch, rounds):
            yield _blank(decoder, suite, torch.device(device).type, batch) | outcome
    if stop is not None:
        raise stop


def _get_ready(found: _Found, index: int, decoder: Decoder, device: str, batch: int, clock: Clock) -> None:
    with _failing(found, index):  # the states do not fit, or a mixer raises
        _draw_what_starts_at_zero(decoder.model)
        decoder.model.to(device).eval()
        found.errors[index] = error = step_error(decoder.model, device)
        if error <= TOLERANCE:
            found.samplers[index] = _sampler(decoder, device, batch, clock)
        else:
            reason = f"stepping differs from the parallel form by {error:.2g} (relative), more than {TOLERANCE:g}"
            found.failures[index] = ("incorrect", reason)


@contextmanager
def _failing(found: _Found, index: int) -> Iterator[None]:
    """What is raised inside is the decoder's failure, and no other's."""
    try:
        yield
    except (Exception, SystemExit) as failure:
        found.failures[index] = classify(failure)


def _outcome(found: _Found, index: int, batch: int, rounds: int) -> dict[str, Any] | None:
    """What a decoder's row says of it; None for one that was stopped before its time was known."""
    known = {"error": found.errors.get(index)}
    if index in found.failures:
        status, reason = found.failures[index]
        return known | {"status": status, "reason": reason, "stop_reason": "not timed"}
    had = found.rounds.get(index, [])
    if len(had) < min(FEWEST_ROUNDS, rounds):
        return None
    timed = times(had)
    stopped = f"{rounds} rounds" if len(had) == rounds else f"stopped after {len(had)} of {rounds} rounds"
    rate = batch / timed["median_ms"] * 1e3
    return known | timed | {"status": "ok", "stop_reason": stopped, "tokens_per_s": rate}


def _draw_what_starts_at_zero(model: RecallModel) -> None:
    """A projection that starts at zero hides its mixer: any step would pass the check."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.dim() > 1 and not weight.any():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) / weight.shape[-1] ** 0.5)


@torch.no_grad()
def step_error(model: RecallModel, device: str) -> float:
    """||stepped - parallel|| / ||parallel|| of the logits over a short sequence."""
    generator = torch.Generator().manual_seed(0)
    tokens_BL = torch.randint(len(model.head_weight), (2, CHECKED_TOKENS), generator=generator).to(device)
    expected = model(tokens_BL)
    state = model.init_state(2, CHECKED_TOKENS, device=device)
    stepped = []
    for tokens_B in tokens_BL.unbind(1):
        logits, state = model.step(tokens_B, state)
        stepped.append(logits)
    found = torch.stack(stepped, 1)
    return float((found - expected).norm() / expected.norm())


def _sampler(decoder: Decoder, device: str, batch: int, clock: Clock) -> Sampler:
    call = _step_at_length(decoder, device, batch)
    if torch.device(device).type == "cuda":
        return GraphSampler([call])
    start = clock.now()
    call()
    return CpuSampler([call], clock, (clock.now() - start) * 1e3)


def _step_at_length(decoder: Decoder, device: str, batch: int) -> Callable[[], Tensor]:
    """One decode step behind `length` - 1 tokens, repeatable for ever."""
    model, length = decoder.model, decoder.length
    state = model.init_state(batch, length, device=device)
    tokens_B = torch.arange(batch, device=device) % len(model.head_weight)
    return repeated_step(lambda state: model.step(tokens_B, state), state, length - 1)


def _take_turns(found: _Found, rounds: int, telemetry: Telemetry) -> None:
    """Every sampler once in each round, in a new order each time, warmed up first."""
    shuffle = random.Random(0).shuffle
    for index, sampler in found.samplers.items():
        with _failing(found, index):
            sampler.sample(SAMPLES)
    for _ in range(rounds):
        order = [index for index in found.samplers if index not in found.failures]
        shuffle(order)
        for index in order:
            with _failing(found, index):
                before = telemetry.read()
                one = Round(found.samplers[index].sample(SAMPLES), [before, telemetry.read()])
                found.rounds.setdefault(index, []).append(one)


def _blank(decoder: Decoder, suite: str, device: str, batch: int) -> dict[str, Any]:
    shape = {"mode": "decode", "dtype": "fp32", "batch": batch, "length": decoder.length}
    meaning = {"kind": "decode", "model": decoder.name, "config": json.loads(decoder.config), "device": device, **shape}
    return (
        blank_row("throughput")
        | shape
        | {
            "case_id": case_id(meaning),
            "suite": suite,
            "model": decoder.name,
            "contender": "ours",
            "config": decoder.config,
            "device": device,
            "cache": "hot",
            "graph": device == "cuda",
            "state_bytes": _state_bytes(decoder),
        }
    )


def _state_bytes(decoder: Decoder) -> int | None:
    with suppress(Exception, SystemExit):  # its step has failed then, and the row says how
        return state_bytes(decoder.model, decoder.length)
    return None
