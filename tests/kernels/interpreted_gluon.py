"""Gluon kernels without a GPU: their modules, imported with a stand-in for Gluon on Triton's interpreter.

Layouts mean nothing here, shared memory is an array of its own, and a program runs alone: what is shown is arithmetic
and addressing, not layouts or barriers, which the compiler checks and places. Only what the kernels loaded here need.
"""

# mypy: allow-untyped-defs

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction, TensorHandle

NAMES = "triton.experimental.gluon", "triton.experimental.gluon.language"
AMPERE = "triton.experimental.gluon.language.nvidia.ampere"


def _number(x: Any) -> int:
    return int(x.value if isinstance(x, tl.constexpr) else x)


def _tensor(data: np.ndarray, like: Any) -> Any:
    return tl.tensor(TensorHandle(data, like), tl.block_type(like, list(data.shape)))


class Shared:
    """A block of shared memory, or a part of one; it starts as NaN."""

    def __init__(self, data: np.ndarray, dtype: Any) -> None:
        self.data, self.dtype, self.shape = data, dtype, data.shape

    def store(self, value: Any) -> None:
        assert value.handle.data.shape == self.data.shape, (value.handle.data.shape, self.data.shape)
        self.data[...] = value.handle.data

    def load(self, layout: Any) -> Any:
        return _tensor(self.data.copy(), self.dtype)

    def slice(self, start: Any, length: Any, dim: Any = 0) -> "Shared":
        index = [np.s_[:]] * self.data.ndim
        index[_number(dim)] = np.s_[_number(start) : _number(start) + _number(length)]
        return Shared(self.data[tuple(index)], self.dtype)

    def index(self, index: Any) -> "Shared":
        return Shared(self.data[int(index.handle.data.item() if isinstance(index, tl.tensor) else index)], self.dtype)

    def permute(self, order: Any) -> "Shared":
        return Shared(self.data.transpose([_number(i) for i in order]), self.dtype)


def _language() -> types.ModuleType:
    """`triton.language`, looked up at every call, for the interpreter patches it while a kernel runs."""
    module = types.ModuleType(NAMES[1])
    here: Any = module
    for name in ("float32", "int64", "int32", "bfloat16", "float16"):
        setattr(module, name, getattr(tl, name))
    for name in (
        *("program_id", "num_programs", "load", "store", "exp", "exp2", "abs", "where", "maximum", "minimum", "cdiv"),
        *("max", "sum", "expand_dims", "reshape", "permute", "join", "split", "broadcast", "associative_scan"),
    ):
        setattr(module, name, lambda *given, _name=name, **more: getattr(tl, _name)(*given, **more))
    here.to_tensor = lambda x: x if isinstance(x, tl.tensor) else tl.full((), x, tl.int32)
    here.constexpr, here.static_range = (lambda x: x), range
    here.arange = lambda start, end, layout=None: tl.arange(start, end)
    here.zeros = lambda shape, dtype, layout=None: tl.zeros(shape, dtype)
    here.full = lambda shape, value, dtype, layout=None: tl.full(shape, value, dtype)
    here.convert_layout = lambda x, layout, assert_trivial=False: x
    here.barrier = lambda: None
    here.allocate_shared_memory = lambda dtype, shape, layout: Shared(
        np.full([_number(n) for n in shape], np.nan, np.float16 if dtype == tl.float16 else np.float32), dtype
    )
    layouts = "BlockedLayout", "SliceLayout", "SwizzledSharedLayout", "NVMMADistributedLayout", "DotOperandLayout"
    for name in layouts:
        setattr(module, name, lambda *given: None)
    return module


def _ampere() -> types.ModuleType:
    """Products of one warp, and copies that have arrived at once."""
    module: Any = types.ModuleType(AMPERE)
    module.mma_v2 = lambda x, y, acc, input_precision=None: tl.dot(x, y, acc, input_precision="ieee")
    module.async_copy = types.SimpleNamespace(
        async_copy_global_to_shared=lambda shared, pointer, mask: shared.store(tl.load(pointer, mask=mask, other=0.0)),
        commit_group=lambda: None,
        wait_group=lambda count: None,
    )
    return module


@contextlib.contextmanager
def interpreted_gluon() -> Iterator[None]:
    """Modules that are imported in here get the stand-in."""
    stand_in: Any = types.ModuleType(NAMES[0])
    stand_in.jit, stand_in.language = triton.jit, _language()
    stand_in.constexpr_function = lambda function: function
    modules = dict(zip((*NAMES, AMPERE), (stand_in, stand_in.language, _ampere()), strict=True))
    before = {name: sys.modules.get(name) for name in modules}
    parent: Any = importlib.import_module("triton.experimental")
    real = vars(parent).pop("gluon", None)
    sys.modules.update(modules)
    try:
        yield
    finally:
        if real is not None:
            parent.gluon = real
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _rename_annotations(module: Any) -> None:
    """The interpreter rewrites functions, and knows a constant by the text of its annotation."""
    for function in list(vars(module).values()):
        if isinstance(function, InterpretedFunction):
            annotations = function.rewrite().__annotations__
            annotations.update({name: str(text).replace("gl.", "tl.") for name, text in annotations.items()})


def load(names: list[str]) -> None:
    """Import these modules anew, interpreted; `names` in the order of their dependence."""
    with interpreted_gluon():
        for name in names:
            sys.modules.pop(name, None)
            module: Any = importlib.import_module(name)
            module.tl = tl  # the interpreter patches what a kernel's module calls triton.language
            _rename_annotations(module)
