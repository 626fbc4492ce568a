"""A recall model inside the process that times its decode step: built, checked, then sampled round by round.

The user's code runs here and nowhere else: what ends or holds up this process costs a model, not the command.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from basedbench.ambient import settings_kept
from basedbench.config.recall import VOCABULARY
from basedbench.errors import passed_over
from basedbench.models.recall import RecallModel
from basedbench.models.state import state_bytes
from basedbench.timing.clock import Clock, WallClock
from basedbench.timing.failures import classify
from basedbench.timing.repeated import repeated_step
from basedbench.timing.samplers import CpuSampler, GraphSampler, Sampler
from basedbench.timing.samples import Round
from basedbench.timing.telemetry import Telemetry

CHECKED_TOKENS = 24
TOLERANCE = 1e-3  # float32 steps against the float32 parallel form, relative
SAMPLES = 5


@dataclass(frozen=True)
class Decoder:
    """A model to be timed: `name` as in the rows ("base_conv+based d_model=64"), its options as JSON, its context,
    its words, and the files of the user's own mixers in it.

    `build` makes it, in the process that times it.
    """

    name: str
    config: str
    build: Callable[[], RecallModel]
    length: int
    vocab_size: int = VOCABULARY
    source: str | None = None


class DecodeSession:
    """One model on one device, for a batch of sequences."""

    def __init__(self, decoder: Decoder, batch: int, device: str, clock: Clock, telemetry: Telemetry) -> None:
        self.decoder, self.batch, self.device, self.clock = decoder, batch, device, clock
        self.telemetry = telemetry
        self.sampler: Sampler | None = None

    def prepare(self) -> dict[str, Any]:
        """Everything before the first round. Returns the columns known by then; `status` says whether to go on."""
        known: dict[str, Any] = {"threads": torch.get_num_threads() if self.device == "cpu" else None}
        try:
            with settings_kept():
                return known | self._prepared(known)
        except KeyboardInterrupt:
            raise
        except BaseException as failure:  # the states do not fit, or a mixer raises
            status, reason = classify(failure)
            return known | {"status": status, "reason": reason}

    def round(self) -> Round:
        """The samples of one round; its first call is none of them, for another model had the device before."""
        assert self.sampler is not None  # prepared
        with torch.inference_mode(), settings_kept():
            before = self.telemetry.read()
            samples = self.sampler.sample(1 + SAMPLES)[1:]
        return Round(samples, [before, self.telemetry.read()])

    def _prepared(self, known: dict[str, Any]) -> dict[str, Any]:
        model = self.decoder.build()
        known["parameters"] = model.parameters_count()
        known["state_bytes"] = _state_bytes(model, self.decoder.length)
        with torch.inference_mode():
            _draw_what_starts_at_zero(model)
            model.to(self.device).eval()
            known["error"] = error = step_error(model, self.device)
            if not error <= TOLERANCE:
                reason = f"stepping differs from the parallel form by {error:.2g} (relative), more than {TOLERANCE:g}"
                return {"status": "incorrect", "reason": reason}
            call = step_at_length(model, self.decoder.length, self.device, self.batch)
            self.sampler = _sampler(call, self.device, self.clock)
            self.sampler.sample(SAMPLES)  # a warm-up
        return {"status": "ok"}


def set_up(device: str, plugins: Sequence[str]) -> Callable[[Decoder, int], DecodeSession]:
    """What the process does first: the device, the user's mixers. A model asked for again is the one of before."""
    from basedbench.engines.kernel_keys import make_alike
    from basedbench.plugins import load_plugins
    from basedbench.timing.waking import open_device

    if device != "cpu":
        make_alike()
        open_device(device)
    load_plugins(plugins)
    telemetry, clock = Telemetry(device), WallClock()
    sessions: dict[tuple[str, str], DecodeSession] = {}

    def make(decoder: Decoder, batch: int) -> DecodeSession:
        new = DecodeSession(decoder, batch, device, clock, telemetry)
        return sessions.setdefault((decoder.name, decoder.config), new)

    return make


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


def _sampler(call: Callable[[], Tensor], device: str, clock: Clock) -> Sampler:
    if device != "cpu":
        return GraphSampler([call])
    start = clock.now()
    call()
    return CpuSampler([call], clock, (clock.now() - start) * 1e3)


def step_at_length(model: RecallModel, length: int, device: str, batch: int) -> Callable[[], Tensor]:
    """One decode step behind `length` - 1 tokens, repeatable for ever."""
    state = model.init_state(batch, length, device=device)
    tokens_B = torch.arange(batch, device=device) % len(model.head_weight)
    return repeated_step(lambda state: model.step(tokens_B, state), state, length - 1)


def _state_bytes(model: RecallModel, length: int) -> int | None:
    with passed_over():  # its step fails then, too, and the row says how
        return state_bytes(model, length)
    return None
