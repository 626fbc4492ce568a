"""What a worker keeps from case to case: a language model, the verdicts on models, and what it checked ahead.

Cases of one config, dtype, checkpoint and device differ in batch, context and mode; their weights are the same.
One model is held at a time: another one takes its place, and `forget` makes room for other workers. A verdict depends
on neither batch nor context (see `step_check`): the same check is made once. An operator's case may have been called
and checked before the first sample of the sweep (see `rehearsal`): if it was right, its verdict stands.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import device as Device

from basedbench.config.models import ModelCase
from basedbench.contenders.draw import DTYPES
from basedbench.contenders.language import attention_of, config_of
from basedbench.models.language import LanguageConfig, LanguageModel, load_checkpoint
from basedbench.timing.correctness import Verdict

_Asked = tuple[LanguageConfig, str, str, str, str | None, str | None]


@dataclass(frozen=True)
class Ahead:
    """A case that was called and found right before: in this process, on this device, with these very kernels."""

    verdict: Verdict
    first_s: float  # of the first call


class Kept:
    """One model, and every verdict so far, on one device."""

    def __init__(self, device: str) -> None:
        self.device = Device(device)
        self.threads = torch.get_num_threads()  # before any case may have changed it
        self._model: LanguageModel | None = None
        self._checkpoint: str | None = None  # of its weights
        self._verdicts: dict[_Asked, Verdict] = {}
        self.ahead: dict[str, Ahead] = {}  # by case id

    def model(self, case: ModelCase) -> LanguageModel:
        """The case's model: the one there is if it has the same config, dtype and weights, otherwise a new one."""
        wanted = config_of(case), DTYPES[case.dtype], case.checkpoint
        if self._model is None or (self._model.config, self._model.dtype, self._checkpoint) != wanted:
            self._model = None  # before the next one takes its memory
            model = LanguageModel(wanted[0], dtype=wanted[1], device=self.device).eval()
            if case.weights is not None:
                load_checkpoint(model, case.weights, case.checkpoint)
            self._model, self._checkpoint = model, case.checkpoint
        self._model.attention = attention_of(case)
        return self._model

    def verdict(self, case: ModelCase, check: Callable[[], Verdict]) -> Verdict:
        """What `check` finds, or found before: for the same config, contender, dtype, mode, logits and weights."""
        asked = (config_of(case), case.contender, case.dtype, case.mode, case.logits, case.checkpoint)
        if asked not in self._verdicts:
            self._verdicts[asked] = check()
        return self._verdicts[asked]

    @property
    def empty(self) -> bool:
        """Whether no model is held."""
        return self._model is None

    def forget(self) -> None:
        """Let go of the model; verdicts stay."""
        self._model = None
