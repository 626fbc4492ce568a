"""Whole language models: presets, prefill, decode step, generation, released checkpoints."""

from basedbench.models.language.checkpoint import identify_checkpoint, load_checkpoint
from basedbench.models.language.config import LanguageConfig
from basedbench.models.language.generate import Generator
from basedbench.models.language.model import LanguageModel
from basedbench.models.language.presets import PRESETS, preset

__all__ = [
    "PRESETS",
    "Generator",
    "LanguageConfig",
    "LanguageModel",
    "identify_checkpoint",
    "load_checkpoint",
    "preset",
]
