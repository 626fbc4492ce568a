"""Triton's interpreter without what it does again and again: the same kernels in two thirds of the time.

It makes `triton.language` its own when a kernel starts, and once more at every call of a function of the kernel, by
looking through all members of the language. Here it does so for a kernel, and the calls inside find it done. And it
makes a table of dtypes for every value, and constants of its shape anew.
"""

from functools import cache, lru_cache
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
    _share_shapes()


def _share_shapes() -> None:
    """What values of one shape have in common is made once."""
    begin_block, begin_tensor = tl.core.block_type.__init__, tl.core.tensor.__init__

    @cache
    def of_block(shape: tuple[int, ...]) -> tuple[Any, Any]:
        made = tl.core.block_type.__new__(tl.core.block_type)
        begin_block(made, tl.int32, list(shape))
        return made.shape, made.numel

    @cache
    def of_tensor(shape: tuple[int, ...]) -> tuple[Any, Any]:
        made = tl.core.tensor.__new__(tl.core.tensor)
        begin_tensor(made, None, tl.core.block_type(tl.int32, list(shape)) if shape else tl.int32)
        return made.shape, made.numel

    def block(self: Any, element_ty: Any, shape: Any) -> None:
        numbers = tuple(int(getattr(count, "value", count)) for count in shape)
        self.element_ty, (self.shape, self.numel) = element_ty, of_block(numbers)
        self.name = f"<{numbers}, {element_ty}>"

    def tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = of_tensor(tuple(type.shape.values) if type.is_block() else ())

    tl.core.block_type.__init__, tl.core.tensor.__init__ = block, tensor
