"""How many tokens per second a recall model decodes: its own step, from its own state, for a batch of sequences.

Every model is checked first: stepping through a sequence must give what the parallel form gives. Then the models take
turns in shuffled rounds, each step at the context length it would have at the end of the longest test. All are in one
process, apart from the command's; when a model ends or spoils that, the others go on in a new one. What is stopped
before its last round has a row, too, if it had enough of them for an interval.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Protocol

import torch

from basedbench.config import case_id
from basedbench.config.recall import VOCABULARY
from basedbench.engines.deadline import Deadline, unlimited
from basedbench.store.schema import blank_row
from basedbench.timing.decode_session import Decoder, set_up
from basedbench.timing.failures import harmless
from basedbench.timing.rows import threads_of, times
from basedbench.timing.samples import Round
from basedbench.timing.worker import Failure, Worker

FEWEST_ROUNDS = 3  # of a row; no less can be asked for
LIMIT_S = 300.0  # for building and checking a model, or one round of it


class Runner(Protocol):
    """A Worker, or a test's stand-in."""

    def ask(self, what: str, *arguments: Any, limit_s: float) -> Any:
        """A method of the session of these arguments."""

    def stop(self) -> None:
        """End it."""


class _Models:
    """The models in their process, by their place, and what is known of them."""

    def __init__(self, decoders: Sequence[Decoder], batch: int, start: Callable[[], Runner]) -> None:
        self.decoders, self.batch, self.start = decoders, batch, start
        self.facts: dict[int, dict[str, Any]] = {}
        self.rounds: dict[int, list[Round]] = {}
        self._runner: Runner | None = None
        self._ready: set[int] = set()  # in the process that there is now

    @property
    def sound(self) -> list[int]:
        """Those that have not failed so far."""
        return [index for index, facts in self.facts.items() if facts["status"] == "ok"]

    def prepare(self, index: int) -> None:
        """Build, check and warm up a model."""
        answer = self._ask("prepare", index)
        self._ready.add(index)
        self._learn(index, _failed(answer) if isinstance(answer, Failure) else answer)

    def round(self, index: int) -> None:
        """One round of a model, prepared again where a new process has to."""
        if index not in self._ready:
            self.prepare(index)
        if self.facts[index]["status"] != "ok":
            return
        answer = self._ask("round", index)
        if isinstance(answer, Failure):
            self._learn(index, _failed(answer))
        else:
            self.rounds.setdefault(index, []).append(answer)

    def close(self) -> None:
        """End the process; the next call starts one."""
        if self._runner is not None:
            self._runner.stop()
        self._runner, self._ready = None, set()

    def _ask(self, what: str, index: int) -> Any:
        if self._runner is None:
            self._runner = self.start()
        return self._runner.ask(what, self.decoders[index], self.batch, limit_s=LIMIT_S)

    def _learn(self, index: int, facts: dict[str, Any]) -> None:
        """What a model's row will say; after a failure that may have spoiled the process it is ended."""
        self.facts[index] = self.facts.get(index, {}) | facts
        if facts["status"] != "ok" and not harmless(facts["status"], facts["reason"], facts.get("error")):
            self.close()


def decode_rows(
    decoders: Sequence[Decoder],
    suite: str,
    device: str,
    batch: int,
    rounds: int,
    deadline: Deadline[Any] | None = None,
    plugins: Sequence[str] = (),
    start: Callable[[], Runner] | None = None,
) -> Iterator[dict[str, Any]]:
    """Time every decoder at `batch` sequences and yield a throughput row for each; a wrong one has no time.

    Stopped by Ctrl-C or the deadline, it yields what rows there are by then, and raises KeyboardInterrupt or TimeUp.
    """
    models, stop = _Models(decoders, batch, start or partial(Worker, device, plugins, set_up)), None
    try:
        with closing(models), (deadline or unlimited()).kept():
            for index in range(len(decoders)):
                models.prepare(index)
            _take_turns(models, rounds)
    except KeyboardInterrupt as interrupt:
        stop = interrupt
    for index, decoder in enumerate(decoders):
        if outcome := _outcome(models, index, rounds):
            yield _blank(decoder, suite, torch.device(device).type, batch) | outcome
    if stop is not None:
        raise stop


def _failed(failure: Failure) -> dict[str, Any]:
    return {"status": failure.status, "reason": failure.reason}


def _take_turns(models: _Models, rounds: int) -> None:
    """Every model once in each round, in a new order each time."""
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        order = models.sound
        shuffle(order)
        for index in order:
            models.round(index)


def _outcome(models: _Models, index: int, rounds: int) -> dict[str, Any] | None:
    """What a decoder's row says of it; None for one that was stopped before its time was known."""
    facts, had = models.facts.get(index), models.rounds.get(index, [])
    if facts is not None and facts["status"] != "ok":
        return facts | {"stop_reason": "not timed"}
    if facts is None or len(had) < min(FEWEST_ROUNDS, rounds):
        return None
    timed = times(had)
    stopped = f"{rounds} rounds" if len(had) == rounds else f"stopped after {len(had)} of {rounds} rounds"
    return facts | timed | {"stop_reason": stopped, "tokens_per_s": models.batch / timed["median_ms"] * 1e3}


def _blank(decoder: Decoder, suite: str, device: str, batch: int) -> dict[str, Any]:
    shape = {"mode": "decode", "dtype": "fp32", "batch": batch, "length": decoder.length}
    meaning = {"kind": "decode", "model": decoder.name, "config": json.loads(decoder.config), "device": device, **shape}
    if decoder.vocab_size != VOCABULARY:  # without it are the cases that were there first
        meaning["vocab_size"] = decoder.vocab_size
    return (
        blank_row("throughput")
        | shape
        | {
            "case_id": case_id(meaning),
            "suite": suite,
            "model": decoder.name,
            "contender": "ours",
            "contender_version": decoder.source,
            "config": decoder.config,
            "vocab_size": decoder.vocab_size,
            "device": device,
            "threads": threads_of(device),
            "cache": "hot",
            "graph": device == "cuda",
        }
    )
