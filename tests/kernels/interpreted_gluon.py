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
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

from tests.kernels import guard

PARTS = ("", ".language", ".language.nvidia.ampere", ".language.nvidia.hopper")
NAMES = tuple(f"triton.experimental.gluon{part}" for part in PARTS)
NUMPY = {
    "fp32": np.float32,
    "fp16": np.float16,
    "bf16": np.uint16,
    "int32": np.int32,
}  # what the interpreter keeps numbers in


def _number(x: Any) -> int:
    x = x.value if isinstance(x, tl.constexpr) else x
    return int(x.handle.data.item() if isinstance(x, tl.tensor) else x)


def _tensor(data: np.ndarray, like: Any) -> Any:
    return tl.tensor(TensorHandle(data, like), tl.block_type(like, list(data.shape)))


def _shortened(x: np.ndarray) -> np.ndarray:
    """Of float32 what TF32 keeps."""
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _product(a: Any, b: Any, sums: Any, input_precision: str | None = None) -> Any:
    """Of matrix units: TF32 operands are float32 without their last 13 bits; others are what they are."""
    if input_precision is None:
        assert a.dtype == b.dtype == tl.float16
        a, b = (x.handle.data.astype(np.float32) for x in (a, b))
    else:
        assert input_precision == "tf32"
        a, b = (_shortened(x.handle.data) for x in (a, b))
    return _tensor(sums.handle.data + a @ b, tl.float32)


def _copies() -> types.SimpleNamespace:
    """Copies to shared memory that have arrived at once."""
    return types.SimpleNamespace(
        async_copy_global_to_shared=lambda shared, pointer, mask: shared.store(tl.load(pointer, mask=mask, other=0.0)),
        commit_group=lambda: None,
        wait_group=lambda count: None,
    )


tl.block_type.layout = None  # what kernels ask a tensor for


def know_instructions() -> None:
    """The two that kernels name themselves: a reciprocal, and a move that keeps what follows from going before it."""

    def create(self: Any, code: str, form: str, values: list[Any], *more: Any) -> Any:
        result = values[0]
        if not code.startswith("mov.b32"):
            assert code.startswith("rcp.approx.ftz.f32"), code
            result = TensorHandle(np.float32(1) / values[0].data, tl.float32)
        return types.SimpleNamespace(get_result=lambda index: result)

    InterpreterBuilder.create_inline_asm = create


def know_dependents() -> None:
    """A wait for the kernel in front tells those who watch launches, and nothing else; before kernels are imported."""
    module: Any = importlib.import_module("triton.language.extra.cuda")
    module.gdc_wait = lambda: [watcher.waited() for watcher in guard.watchers]
    module.gdc_launch_dependents = lambda: None


class Map:
    """A tensor map: tiles of a tensor that lies on the CPU, its strides in elements, zero where there is none."""

    def __init__(self, base: Any, sizes: Any, strides: Any, block: Any) -> None:
        self.base, self.sizes, self.strides, self.block = base, tuple(sizes), tuple(strides), tuple(block)
        self.dtype, self.layout = getattr(tl, str(base.dtype).removeprefix("torch.")), None

    def tile(self, corner: list[int]) -> np.ndarray:
        for watcher in guard.watchers:
            watcher.touched(np.array([self.base.data_ptr()]), "read")
        tensor = self.base.as_strided(self.sizes, self.strides)
        bits = self.dtype == tl.bfloat16
        whole = tensor.view(torch.int16).numpy().view(np.uint16) if bits else tensor.float().numpy()
        cut = whole[tuple(np.s_[first : first + count] for first, count in zip(corner, self.block, strict=True))]
        edges = [(0, count - found) for count, found in zip(self.block, cut.shape, strict=True)]
        return np.pad(cut, edges).astype(NUMPY[self.dtype.name])


class Barrier(dict[str, int]):
    """A barrier of shared memory: bytes it still waits for, and the phases it has completed."""

    def __init__(self) -> None:
        super().__init__(pending=0, phase=0)

    def expect(self, count: int) -> None:
        assert self["pending"] == 0, "a stage is asked for before it was waited for"
        self["pending"] = count

    def complete(self, count: int) -> None:
        self["pending"] -= count
        assert self["pending"] >= 0
        self["phase"] ^= self["pending"] == 0


class Barriers(list[Barrier]):
    def index(self, index: Any) -> Barrier:  # type: ignore[override]
        return self[_number(index)]


def _true(condition: Any) -> bool:
    return bool(condition.handle.data.item() if isinstance(condition, tl.tensor) else condition)


def _hopper() -> types.ModuleType:
    """Tensor maps, barriers and warpgroup products, all of which are done at once."""
    module: Any = types.ModuleType(NAMES[3])

    def copied(source: Map, corner: list[Any], bar: Barrier, shared: Shared, pred: Any = True) -> None:
        if _true(pred):
            shared.data[...] = source.tile([_number(at) for at in corner])
            bar.complete(shared.data.nbytes)

    def expected(bar: Barrier, count: Any, pred: Any = True) -> None:
        if _true(pred):
            bar.expect(_number(count))

    def waited(bar: Barrier, phase: Any) -> None:
        assert bar["phase"] != _number(phase), "waits for ever"

    def values(x: Any) -> np.ndarray:
        data = x.data if isinstance(x, Shared) else x.handle.data
        if x.dtype == tl.bfloat16:
            return (data.astype(np.uint32) << 16).view(np.float32)
        return data.astype(np.float32)

    def product(a: Any, b: Shared, sums: Any, is_async: bool, use_acc: bool = True) -> Any:
        return _tensor(values(a) @ values(b) + (sums.handle.data if use_acc else 0), tl.float32)

    module.tma = types.SimpleNamespace(async_copy_global_to_shared=copied)
    module.mbarrier = types.SimpleNamespace(
        init=lambda bar, count: None, expect=expected, wait=waited, MBarrierLayout=lambda: "barriers"
    )
    module.warpgroup_mma, module.warpgroup_mma_wait = product, lambda count, sums: sums[0]
    module.warpgroup_mma_init = lambda sums: sums
    module.fence_async_shared = lambda: None
    return module


class Shared:
    """A block of shared memory, or a part of one; numbers start as NaN."""

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
        return Shared(self.data[_number(index)], self.dtype)

    def _reinterpret(self, dtype: Any, shape: Any, layout: Any) -> "Shared":
        return Shared(self.data.view(NUMPY[dtype.name]).reshape([_number(n) for n in shape]), dtype)

    def permute(self, order: Any) -> "Shared":
        return Shared(self.data.transpose([_number(i) for i in order]), self.dtype)


class BlockedLayout(NamedTuple):
    """What others are made of."""

    size_per_thread: list[int]
    threads_per_warp: list[int]
    warps_per_cta: list[int]
    order: list[int]


def _allocated(dtype: Any, shape: Any, layout: Any) -> Any:
    if layout == "barriers":
        return Barriers(Barrier() for _ in range(_number(shape[0])))
    nothing = {"bf16": 0x7FC0, "int32": -(2**31)}.get(dtype.name, np.nan)
    return Shared(np.full([_number(n) for n in shape], nothing, NUMPY[dtype.name]), dtype)


def _language() -> types.ModuleType:
    """`triton.language`, looked up at every call, for the interpreter patches it while a kernel runs."""
    module = types.ModuleType(NAMES[1])
    here: Any = module
    for name in ("float32", "int64", "int32", "int16", "bfloat16", "float16"):
        setattr(module, name, getattr(tl, name))
    for name in (
        *("program_id", "num_programs", "load", "store", "exp", "exp2", "abs", "where", "maximum", "minimum", "cdiv"),
        *("max", "sum", "sqrt", "expand_dims", "reshape", "permute", "join", "split", "broadcast", "associative_scan"),
        *("multiple_of", "max_contiguous", "atomic_add", "inline_asm_elementwise"),
    ):
        setattr(module, name, lambda *given, _name=name, **more: getattr(tl, _name)(*given, **more))
    here.to_tensor = lambda x: x if isinstance(x, tl.tensor) else tl.full((), x, tl.int32)
    here.constexpr, here.static_range = (lambda x: x), range
    here.arange = lambda start, end, layout=None: tl.arange(start, end)
    here.zeros = lambda shape, dtype, layout=None: tl.zeros(shape, dtype)
    here.full = lambda shape, value, dtype, layout=None: tl.full(shape, value, dtype)
    here.convert_layout = lambda x, layout, assert_trivial=False: x
    here.multiple_of = lambda x, number: x
    here.barrier = lambda: None
    here.allocate_shared_memory = _allocated
    here.pointer_type = tl.pointer_type
    here.BlockedLayout = BlockedLayout
    for name in (
        *("SliceLayout", "SwizzledSharedLayout", "SharedLinearLayout", "DotOperandLayout", "NVMMADistributedLayout"),
    ):
        setattr(module, name, lambda *given: None)
    return module


@contextlib.contextmanager
def interpreted_gluon() -> Iterator[None]:
    """Modules that are imported in here get the stand-in."""
    stand_in: Any = types.ModuleType(NAMES[0])
    stand_in.jit, stand_in.language = triton.jit, _language()
    stand_in.constexpr_function = lambda function: function
    ampere: Any = types.ModuleType(NAMES[2])
    ampere.mma_v2, ampere.async_copy = _product, _copies()
    hopper = _hopper()
    before = {name: sys.modules.get(name) for name in NAMES}
    parent: Any = importlib.import_module("triton.experimental")
    real = vars(parent).pop("gluon", None)
    sys.modules.update(zip(NAMES, (stand_in, stand_in.language, ampere, hopper), strict=True))
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
