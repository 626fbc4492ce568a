"""Who computes a whole language model. Its mixers are basedbench's own; softmax attention can be others' as well.

A model without softmax attention has one contender, `ours`. One with it has those of
`basedbench.models.language.attention_step`: in generation they compute the decode step against the cache. In prefill
PyTorch's are pinned to one backend each, as in `sdpa.py`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version

from basedbench import __version__
from basedbench.config.models import ModelCase
from basedbench.contenders.base import needs_cuda, needs_half
from basedbench.contenders.sdpa import BACKENDS
from basedbench.errors import UserError, nearest
from basedbench.models.language import LanguageConfig, preset
from basedbench.models.language.attention_step import IMPLEMENTATIONS as ATTENTION

OURS = "ours"
IMPLEMENTATIONS = (OURS, *(name for name in ATTENTION if name != OURS))
_SDPA = {one.name: one for one in BACKENDS}
_NEEDS: dict[str, tuple[Callable[[ModelCase], str | None], ...]] = {
    "sdpa-efficient": (needs_cuda,),
    "sdpa-cudnn": (needs_cuda, needs_half),
    "flash-varlen": (needs_cuda, needs_half),
}


def config_of(case: ModelCase) -> LanguageConfig:
    """The shape of the case's model. UserError for an unknown preset or override."""
    return preset(case.model, **case.overrides)


def check_case(case: ModelCase) -> None:
    """UserError for a preset, an override, a contender or a baseline that does not exist."""
    config_of(case)
    model, contender = case.baseline_key
    preset(model)
    for name in (case.contender, contender):
        if name not in IMPLEMENTATIONS:
            raise UserError(f"no contender for whole models is called {name!r}; {nearest(name, IMPLEMENTATIONS)}")


def supports(case: ModelCase) -> str | None:
    """Why this case is beyond its contender, or None."""
    if "attention" not in config_of(case).layers:
        return None if case.contender == OURS else f"{case.model} has no softmax attention to be computed by others"
    if case.contender == OURS and (case.mode == "prefill" or OURS not in ATTENTION):
        return f"basedbench has no softmax attention of its own for {case.mode}"
    if case.mode == "prefill" and case.contender not in _SDPA:
        return f"{case.contender} is for generation only"
    if case.contender == "sdpa-flash" and case.device == "cuda":
        return needs_half(case)
    return next(filter(None, (need(case) for need in _NEEDS.get(case.contender, ()))), None)


def attention_of(case: ModelCase) -> str:
    """The implementation of the decode step against a cache, as a LanguageModel takes it."""
    return case.contender if case.contender in ATTENTION else "auto"


def context(case: ModelCase) -> AbstractContextManager[object]:
    """Settings that hold while it runs: the backend of a prompt's attention."""
    from torch.nn.attention import sdpa_kernel

    if case.mode == "prefill" and case.contender in _SDPA:
        return sdpa_kernel(_SDPA[case.contender].backend)
    return nullcontext()


def any_backend() -> AbstractContextManager[object]:
    """Inside `context`: whatever backend PyTorch would choose."""
    from torch.nn.attention import sdpa_kernel

    return sdpa_kernel([one.backend for one in BACKENDS])


def version_of(case: ModelCase) -> str:
    """The version of whoever computes it."""
    return __version__ if case.contender == OURS else version("torch")
