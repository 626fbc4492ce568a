"""The key by which Triton finds a compiled kernel on disk, made the same in every process.

Triton hashes a function with all that it calls and the constants that they read. It takes the constants of a called
function before it has looked into that one, so that they are missing if nothing had called it yet: the key depends on
what was compiled before and, between threads, on chance. A process that compiles ahead would then do so for nobody.
"""

from typing import Any


def make_alike() -> None:
    """From here on a called function is looked into first; for processes that have compiled nothing yet."""
    from triton.runtime.jit import DependenciesFinder

    update: Any = getattr(DependenciesFinder, "_update_hash", None)
    if update is None or hasattr(update, "looks_first"):
        return

    def look_first(self: Any, function: Any) -> None:
        _ = function.cache_key
        update(self, function)

    look_first.looks_first = True  # type: ignore[attr-defined]
    DependenciesFinder._update_hash = look_first
