"""How many tokens per second a recall model decodes: its own step, from its own state, for a batch of sequences.

Every model is checked first: stepping through a sequence must give what the parallel form gives. Then the models take
turns in shuffled rounds, each step at the context length it would have at the end of the longest test.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from basedbench.config import case_id
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


@dataclass(frozen=True)
class Decoder:
    """A model to be timed: `name` as in the rows ("base_conv+based d_model=64"), its options as JSON, its context."""

    name: str
    config: str
    model: RecallModel
    length: int


def decode_rows(
    decoders: Sequence[Decoder], suite: str, device: str, batch: int, rounds: int, clock: Clock
) -> Iterator[dict[str, Any]]:
    """Time every decoder at `batch` sequences and yield a throughput row for each; a wrong one has no time."""
    device_type = torch.device(device).type
    ready: dict[int, Sampler] = {}
    errors: list[float | None] = []
    failures: dict[int, tuple[str, str]] = {}
    with torch.inference_mode():
        for index, decoder in enumerate(decoders):
            errors.append(None)
            try:
                _draw_what_starts_at_zero(decoder.model)
                decoder.model.to(device).eval()
                errors[index] = error = step_error(decoder.model, device)
                if error <= TOLERANCE:
                    ready[index] = _sampler(decoder, device, batch, clock)
            except (Exception, SystemExit) as failure:  # the states do not fit, or a mixer raises
                failures[index] = classify(failure)
        measured = _rounds(ready, rounds, Telemetry(device))
    for index, decoder in enumerate(decoders):
        row = _blank(decoder, suite, device_type, batch) | {"error": errors[index]}
        if index in measured:
            timed = times(measured[index])
            yield (
                row
                | timed
                | {"status": "ok", "stop_reason": f"{rounds} rounds", "tokens_per_s": batch / timed["median_ms"] * 1e3}
            )
        elif index in failures:
            status, reason = failures[index]
            yield row | {"status": status, "reason": reason, "stop_reason": "not timed"}
        else:
            reason = (
                f"stepping differs from the parallel form by {errors[index]:.2g} (relative), more than {TOLERANCE:g}"
            )
            yield row | {"status": "incorrect", "reason": reason, "stop_reason": "not timed"}


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


def _rounds(samplers: dict[int, Sampler], rounds: int, telemetry: Telemetry) -> dict[int, list[Round]]:
    """Every sampler once in each round, in a new order each time, warmed up first."""
    order, shuffle = list(samplers), random.Random(0)
    for sampler in samplers.values():
        sampler.sample(SAMPLES)
    found: dict[int, list[Round]] = {index: [] for index in order}
    for _ in range(rounds):
        shuffle.shuffle(order)
        for index in order:
            before = telemetry.read()
            found[index].append(Round(samplers[index].sample(SAMPLES), [before, telemetry.read()]))
    return found


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
