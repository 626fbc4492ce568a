"""A whole language model as a session times it: one decode step behind a context, or one prompt.

The weights are random, made on the device, or a checkpoint's, and shared by the cases of a worker (`kept`). Every model
is checked first, before its state takes up the memory: what prefill and steps give, against the parallel form
(`step_check`). Then, for generation, a state as it is behind `length` - 1 tokens: a short prompt is read, its recurrent
states and rings are copied to every sequence, its keys and values repeated up to the context. Reading whole prompts
would give the same step and take hours. A step ends with the choice of the largest logit, which is the next step's
token. A prompt stands in one buffer, which every call fills with one of a few, and its state in another: so one CUDA
graph serves all calls.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from basedbench.config.models import ModelCase
from basedbench.contenders import language as contenders
from basedbench.contenders.language_costs import bytes_of, flops_of, weight_bytes
from basedbench.kernels import row_argmax
from basedbench.mixers import State
from basedbench.timing.correctness import Verdict
from basedbench.timing.kept import Kept
from basedbench.timing.repeated import repeated_step
from basedbench.timing.step_check import check_steps

# What is read before a state is blown up to the context: longer than a sliding window, whose ring it fills.
PROMPT = 256
PROMPT_SETS = 3
# Not to be had for states: the device's context, libraries, and what the allocator cannot use.
RESERVED_BYTES = 2**30


class LanguageSubject:
    """One implementation of a model at one shape."""

    grad = False

    def __init__(self, case: ModelCase, device: str, kept: Kept | None = None) -> None:
        self.case, self.device, self.kept = case, device, kept or Kept(device)
        self.generator = torch.Generator(device)
        self.state: State = {}

    def context(self) -> AbstractContextManager[object]:
        return contenders.context(self.case)

    def load(self) -> None:
        case = self.case
        self.model = self.kept.model(case)
        self.verdict = self.kept.verdict(case, lambda: check_steps(self.model, case))
        self.generator.manual_seed(int(case.problem_id, 16) % 2**63)
        if case.mode == "generation":
            self.call = self._step()
            return
        self.state = self.model.init_state(case.batch, case.length)
        self.prompts = [self._tokens(case.batch, case.length) for _ in range(PROMPT_SETS)]
        self.tokens_BL = self.prompts[0].clone()
        logits = case.logits or "last"
        self.call = partial(self.model.prefill, self.tokens_BL, logits=logits, state=self.state)

    def start(self) -> None:
        self.call()

    def check(self) -> Verdict:
        return self.verdict

    def calls(self) -> list[Callable[[], object]]:
        if self.case.mode == "generation":
            return [self.call]
        return self._in_turn(self.call)

    def replayed(self, capture: Callable[[Callable[[], object]], Callable[[], object]]) -> list[Callable[[], object]]:
        return [] if self.case.mode == "generation" else self._in_turn(capture(self.call))

    def _in_turn(self, read: Callable[[], object]) -> list[Callable[[], object]]:
        return [partial(_read, read, self.tokens_BL, prompt_BL) for prompt_BL in self.prompts]

    def facts(self) -> dict[str, Any]:
        model, case = self.model, self.case
        held = sum(tensor.nbytes for tensor in self.state.values())
        return {
            "bytes": bytes_of(model, case),
            "flops": flops_of(model, case),
            "parameters": model.parameters_count(),
            "state_bytes": held // case.batch if held else model.state_bytes(case.length),
            "memory_bytes": weight_bytes(model) + held,
            "contender_version": contenders.version_of(case),
        }

    def capacity(self, peak_bytes: int) -> dict[str, Any]:
        if self.case.device == "cpu":
            return {}  # its memory is everybody's
        total = torch.cuda.get_device_properties(self.device).total_memory
        held = sum(tensor.nbytes for tensor in self.state.values())
        per_sequence = (held + peak_bytes) / self.case.batch
        return {"largest_batch": largest_batch(total, weight_bytes(self.model), per_sequence)}

    def _tokens(self, *shape: int) -> Tensor:
        vocabulary = self.model.config.vocab_size
        return torch.randint(vocabulary, shape, generator=self.generator, device=self.device)

    def _step(self) -> Callable[[], object]:
        """One token for every sequence, the largest logit its successor; repeatable for ever."""
        case, model = self.case, self.model
        tokens_B = self._tokens(case.batch)
        self.state = self._filled()

        def step(state: State) -> tuple[Tensor, State]:
            logits_BV, after = model.step(tokens_B, state, extent=case.length)
            row_argmax(logits_BV, out=tokens_B)
            return logits_BV, after

        return repeated_step(step, self.state, case.length - 1)

    def _filled(self) -> State:
        """The state behind `length` - 1 tokens, but for what counts them."""
        case, model = self.case, self.model
        state = model.init_state(case.batch, case.length)
        if case.length > 1:
            _, short = model.prefill(self._tokens(1, min(PROMPT, case.length - 1)))
            for name, tensor in state.items():
                spread(short[name], tensor)
        return state


def _read(read: Callable[[], object], buffer_BL: Tensor, prompt_BL: Tensor) -> object:
    """Put a prompt where `read` finds it, and call that."""
    buffer_BL.copy_(prompt_BL)
    return read()


def spread(short: Tensor, whole: Tensor) -> None:
    """Copy one sequence's state to all of `whole`, repeated along the second dimension where that is longer."""
    if short.shape[1:] == whole.shape[1:]:
        whole.copy_(short.expand_as(whole))
        return
    for start in range(0, whole.shape[1], short.shape[1]):
        part = whole[:, start : start + short.shape[1]]
        part.copy_(short[:, : part.shape[1]].expand_as(part))


def largest_batch(total: int, weights: int, per_sequence: float) -> int:
    """Sequences that fit into a device's `total` bytes beside the weights."""
    return max(0, int((total - RESERVED_BYTES - weights) / per_sequence))
