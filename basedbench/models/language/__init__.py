"""Whole language models: presets, prefill, decode step, generation, released checkpoints."""

from basedbench.models.language.config import LanguageConfig
from basedbench.models.language.model import LanguageModel
from basedbench.models.language.presets import PRESETS, preset

__all__ = ["PRESETS", "LanguageConfig", "LanguageModel", "preset"]
