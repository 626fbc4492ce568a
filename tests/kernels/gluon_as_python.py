"""Kernels in Gluon without a GPU: their source as Python, with torch tensors for registers and shared memory.

Gluon has no interpreter. There are no layouts, barriers or asynchrony here: a run shows what is computed, not that it
is synchronised.
"""

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from basedbench.kernels import taylor_gluon, taylor_gluon_states

SOURCES = Path(taylor_gluon.__file__).parent
BACKWARD = "sums", "values", "rows", "queries", "keys", "kernels"
MODULES = (
    *(f"taylor_gluon_{part}" for part in ("tiles", "features", "sums", "serial")),
    *(f"taylor_backward_gluon_{part}" for part in BACKWARD),
)
POISON = float("nan")


class Layout:
    """Any layout: nothing here has one."""

    def __init__(self, *_, **__):
        self.value = self


class Pointer:
    def __init__(self, tensor: Tensor, offset: Any = 0):
        self.flat, self.offset = tensor.view(-1), torch.as_tensor(offset)

    def __add__(self, offset: Any) -> "Pointer":
        return Pointer(self.flat, self.offset + offset)


class Shared:
    """A view of shared memory."""

    def __init__(self, tensor: Tensor):
        self.tensor, self.shape = tensor, tensor.shape

    def index(self, i) -> "Shared":
        return Shared(self.tensor[int(i)])

    def reshape(self, shape) -> "Shared":
        return Shared(self.tensor.view(shape))

    def slice(self, start, size, dim=0) -> "Shared":
        return Shared(self.tensor.narrow(dim, start, size))

    def _reinterpret(self, dtype, shape, layout) -> "Shared":
        return self.reshape(shape)

    def permute(self, order) -> "Shared":
        return Shared(self.tensor.permute(order))

    def load(self, layout=None) -> Tensor:
        return self.tensor.clone()

    def store(self, value: Tensor) -> None:
        assert (value.shape, value.dtype) == (self.tensor.shape, self.tensor.dtype)
        self.tensor.copy_(value)


def where(condition, a, b):
    if not any(map(torch.is_tensor, (condition, a, b))):
        return a if condition else b
    return torch.where(*map(torch.as_tensor, (condition, a, b)))


def load(pointer, mask=None, other=0.0) -> Tensor:
    mask = torch.tensor(True) if mask is None else mask
    mask, offset = torch.broadcast_tensors(mask, pointer.offset)
    values = pointer.flat[torch.where(mask, offset, 0)]
    return torch.where(mask, values, torch.tensor(other, dtype=values.dtype))


def store(pointer, value, mask=None) -> None:
    value = torch.as_tensor(value, dtype=pointer.flat.dtype)
    mask = torch.tensor(True) if mask is None else mask
    value, offset, mask = torch.broadcast_tensors(value, pointer.offset, mask)
    pointer.flat[offset[mask]] = value[mask]


def fetch(tensor, place, bar, shared, pred=True) -> None:
    """From a tensor map, here a tensor (B,L,H,W): zero beyond the edges."""
    if bool(pred):
        shared.tensor.zero_()
        copy(tensor, place, shared, lambda inside, rows, columns: shared.tensor[0, 0, :rows, :columns].copy_(inside))


def write(tensor, place, shared) -> None:
    copy(tensor, place, shared, lambda inside, rows, columns: inside.copy_(shared.tensor[0, 0, :rows, :columns]))


def copy(tensor, place, shared, move) -> None:
    batch, head, row, column = map(int, place)
    assert row >= 0
    inside = tensor[batch, row : row + shared.shape[2], head, column : column + 64]
    move(inside, *inside.shape)


def multiply(a, b, accumulator, use_acc=True, is_async=False) -> Tensor:
    a, b = (x.tensor if isinstance(x, Shared) else x for x in (a, b))
    assert a.dtype == b.dtype == torch.bfloat16
    product = a.float() @ b.float()
    assert product.shape == accumulator.shape
    return accumulator + product if use_acc else product


def assembly(code, form, values, pack=1, **_) -> Tensor:
    """Instructions on words of 32 bits: pack / 2 pairs of bf16, or one integer."""
    if pack == 1:
        assert code == "mov.b32 $0, $1;"
        return values[0]
    if "cvt.rn.bf16x2.f32" in code:
        return values[0].bfloat16().float()
    words = [word for x in torch.broadcast_tensors(*values) for word in x.contiguous().view(torch.int32).unbind(-1)]
    registers = dict(enumerate(words, form.count("=")))
    for one in filter(None, code.split(";")):
        name, (target, *given) = one.split()[0], one.split(maxsplit=1)[1].split(", ")
        a, *rest = (registers[int(x[1:])] if x[0] == "$" else torch.full_like(words[0], int(x, 0)) for x in given)
        registers[int(target[1:])] = INSTRUCTIONS[name](a, *rest)
    return torch.stack([registers[i] for i in range(form.count("="))], -1).view(torch.bfloat16)


def multiply_pairs(a, b) -> Tensor:
    a, b = (x.unsqueeze(-1).contiguous().view(torch.bfloat16) for x in (a, b))
    return (a * b).view(torch.int32).squeeze(-1)


def last_and_first(a, b, selector) -> Tensor:
    """The upper half of a below the lower half of b."""
    assert (selector == 0x5432).all()
    return (a >> 16) & 0xFFFF | b << 16


INSTRUCTIONS = {"mul.rn.bf16x2": multiply_pairs, "prmt.b32": last_and_first, "mov.b32": lambda a: a}


def nothing(*_, **__) -> None:
    pass


def kernels_as_python() -> SimpleNamespace:
    """The functions of the Gluon modules, and `program`, a list that holds the number of the one that runs."""
    program = [0]

    def allocate(dtype, shape, layout):
        return Shared(torch.full(shape, POISON if dtype.is_floating_point else 0, dtype=dtype))

    language = SimpleNamespace(
        constexpr=lambda x: x, float32=torch.float32, bfloat16=torch.bfloat16, int64=torch.int64,
        arange=lambda a, b, layout: torch.arange(a, b), zeros=lambda s, d, layout: torch.zeros(s, dtype=d),
        full=lambda s, x, d, layout: torch.full(s, x, dtype=d), where=where, load=load, store=store,
        expand_dims=torch.unsqueeze, convert_layout=lambda x, layout, assert_trivial=False: x, sum=torch.sum,
        join=lambda a, b: torch.stack([a, b], -1), allocate_shared_memory=allocate, static_range=range,
        program_id=lambda axis: torch.tensor(program[0]), minimum=torch.minimum, to_tensor=torch.tensor,
        SliceLayout=Layout, NVMMADistributedLayout=Layout, NVMMASharedLayout=Layout, DotOperandLayout=Layout,
        BlockedLayout=Layout, DistributedLinearLayout=Layout, barrier=nothing, int32=torch.int32,
        inline_asm_elementwise=assembly, SwizzledSharedLayout=Layout,
    )  # fmt: skip
    names: dict[str, Any] = {
        "gl": language,
        "gluon": SimpleNamespace(
            jit=lambda function=None, **_: function or (lambda f: f), constexpr_function=lambda f: f
        ),
        "mbarrier": SimpleNamespace(MBarrierLayout=Layout, init=nothing, expect=nothing, wait=nothing),
        "tma": SimpleNamespace(
            async_copy_global_to_shared=fetch, async_copy_shared_to_global=write, store_wait=nothing
        ),
        "warpgroup_mma": multiply,
        "mma_v2": multiply,
        "warpgroup_mma_wait": lambda number, values: values if len(values) > 1 else values[0],
        "fence_async_shared": nothing,
    }
    states = {name: int(x.value) for name, x in vars(taylor_gluon_states).items() if isinstance(x, tl.constexpr)}
    modules: dict[str, dict[str, Any]] = {"taylor_gluon_states": states}
    for name in MODULES:
        tree = ast.parse((SOURCES / f"{name}.py").read_text())
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        tree.body = [node for node in tree.body if node not in imports]
        modules[name] = dict(names)
        for node in imports:
            if isinstance(node, ast.ImportFrom) and node.level:
                modules[name] |= {alias.name: modules[str(node.module)][alias.name] for alias in node.names}
        exec(compile(tree, name, "exec"), modules[name])
    found = {key: value for module in reversed(modules.values()) for key, value in module.items()}
    return SimpleNamespace(**found, program=program)


class Launcher:
    def __init__(self, kernels, kernel):
        self.kernels, self.kernel = kernels, kernel

    def __getitem__(self, grid):
        def launch(*arguments, num_warps, **options):
            for self.kernels.program[0] in range(grid[0]):
                self.kernel(*arguments, **options)

        return launch


def kernel_arguments(arguments, outputs=()) -> list[Any]:
    """Tensor maps are tensors of four dimensions; other tensors, and those that are written as such, are pointers."""

    def argument(x) -> Any:
        if torch.is_tensor(x) and (x.dim() < 4 or any(x is output for output in outputs)):
            return Pointer(x)
        return torch.tensor(x) if isinstance(x, int) else x

    return [argument(x) for x in arguments]
