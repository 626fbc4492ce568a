"""Peers that choose among configurations of a kernel by timing them: Triton's autotuner, watched and shortened.

Beside other processes nothing can be timed: there every configuration is only compiled (`every_choice`). Alone on the
device a worker times them, 0.13 s each, and of a backward pass there are hundreds. So each has a short look first, and
what is clearly slower than the best so far needs no longer one (`look_briefly_first`): the choice is the same.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

BRIEF_WARM_UP_MS, BRIEF_MS = 2, 8  # Triton's are 25 and 100
CLEARLY = 1.1  # times as slow


@dataclass
class Choice:
    """The configuration that is in hand, empty for a kernel that has no others."""

    name: str = ""


@contextmanager
def every_choice() -> Iterator[Choice]:
    """Within the block a tuned kernel is launched with every configuration, none is timed, and no choice is kept."""
    from triton.runtime.autotuner import Autotuner

    in_hand, known = Choice(), dict[int, tuple[Any, dict[Any, Any]]]()

    def launch(self: Any, *arguments: Any, config: Any, **options: Any) -> list[float]:
        known.setdefault(id(self), (self, dict(self.cache)))
        in_hand.name = str(config)
        with suppress(Exception):
            self.fn.run(*arguments, **options | config.all_kwargs())
        in_hand.name = ""
        return [0.0, 0.0, 0.0]

    def choose(self: Any, key: Any, configs: Any, tune: Any) -> bool:
        tune()
        return False

    own = {"_bench": launch, "check_disk_cache": choose}
    before = {name: getattr(Autotuner, name) for name in own if hasattr(Autotuner, name)}
    for name in before:
        setattr(Autotuner, name, own[name])
    try:
        yield in_hand
    finally:
        for name, method in before.items():
            setattr(Autotuner, name, method)
        for tuner, cache in known.values():
            tuner.cache = cache


def look_briefly_first() -> None:
    """From here on; what brings a way of its own to time configurations keeps it."""
    from triton.runtime.autotuner import Autotuner

    if not isinstance(vars(Autotuner).get("do_bench"), cached_property):
        return  # another Triton, or done
    prune = Autotuner.prune_configs

    def begin(self: Any, *arguments: Any) -> Any:
        self.best_look = math.inf
        return prune(self, *arguments)

    def bench(self: Any) -> Any:
        return self._do_bench or (lambda call, quantiles: _two_looks(self, call, quantiles))

    Autotuner.prune_configs = begin  # type: ignore[method-assign]
    Autotuner.do_bench = property(bench)  # type: ignore[method-assign, assignment]


def _two_looks(tuner: Any, call: Any, quantiles: Any) -> list[float]:
    """Quantiles of a configuration's times, from a short look if these are clearly not the best, median first."""
    from triton.testing import do_bench

    brief = do_bench(call, warmup=BRIEF_WARM_UP_MS, rep=BRIEF_MS, quantiles=quantiles)
    best = getattr(tuner, "best_look", math.inf)
    if brief[0] > CLEARLY * best:
        return list(brief)
    tuner.best_look = min(best, brief[0])
    return list(do_bench(call, quantiles=quantiles))
