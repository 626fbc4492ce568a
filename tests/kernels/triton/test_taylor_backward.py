"""Gradients of taylor_attention in Gluon.

Gluon has no interpreter. Without a GPU the kernels' source runs as Python, with torch tensors in place of registers and
shared memory, and no layouts, barriers or asynchrony: it shows what is computed, not that it is synchronised.
"""

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from basedbench.kernels import taylor_attention_triton, taylor_backward_gluon, taylor_gluon, taylor_gluon_states
from basedbench.kernels.taylor_attention import reference

FLOOR = 2e-6
SOURCES = Path(taylor_gluon.__file__).parent
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
        copy(tensor, place, lambda inside, rows, columns: shared.tensor[0, 0, :rows, :columns].copy_(inside))


def write(tensor, place, shared) -> None:
    copy(tensor, place, lambda inside, rows, columns: inside.copy_(shared.tensor[0, 0, :rows, :columns]))


def copy(tensor, place, move) -> None:
    batch, head, row, column = map(int, place)
    assert row >= 0
    inside = tensor[batch, row : row + 64, head, column : column + 64]
    move(inside, *inside.shape)


def multiply(a, b, accumulator, use_acc=True, is_async=False) -> Tensor:
    a, b = (x.tensor if isinstance(x, Shared) else x for x in (a, b))
    assert a.dtype == b.dtype == torch.bfloat16
    product = a.float() @ b.float()
    assert product.shape == accumulator.shape
    return accumulator + product if use_acc else product


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
        BlockedLayout=Layout, DistributedLinearLayout=Layout, barrier=nothing,
    )  # fmt: skip
    names: dict[str, Any] = {
        "gl": language,
        "gluon": SimpleNamespace(jit=lambda function=None, **_: function or (lambda f: f)),
        "mbarrier": SimpleNamespace(MBarrierLayout=Layout, init=nothing, expect=nothing, wait=nothing),
        "tma": SimpleNamespace(
            async_copy_global_to_shared=fetch, async_copy_shared_to_global=write, store_wait=nothing
        ),
        "warpgroup_mma": multiply,
        "mma_v2": multiply,
        "warpgroup_mma_wait": lambda number, values: values if len(values) > 1 else values[0],
        "fence_async_shared": nothing,
    }
    for name in ("LINEAR", "CONSTANT", "MOMENTS", "KEY_SUM", "COUNT", "SLOT"):
        names[name] = int(getattr(taylor_gluon_states, name).value)
    for name in ("taylor_gluon_kernels.py", "taylor_backward_gluon_query.py", "taylor_backward_gluon_kernels.py"):
        tree = ast.parse((SOURCES / name).read_text())
        tree.body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(tree, name, "exec"), names)
    return SimpleNamespace(**names, program=program)


class Launcher:
    def __init__(self, kernels, kernel):
        self.kernels, self.kernel = kernels, kernel

    def __getitem__(self, grid):
        def launch(*arguments, num_warps, **options):
            for self.kernels.program[0] in range(grid[0]):
                self.kernel(*arguments, **options)

        return launch


def running_sums(slots: Tensor) -> None:
    slots[:, 0] = 0.0
    slots[:, 1:-1] = slots[:, 1:-1].cumsum(1)


def tensors(randn, length, value_dim, heads=2) -> list[Tensor]:
    return [randn(1, length, heads, width).bfloat16() for width in (16, 16, value_dim, value_dim)]


def gradients(q, k, v, dy, dtype) -> list[Tensor]:
    leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    return list(torch.autograd.grad(reference(*leaves), leaves, dy.to(dtype)))


def normaliser(q, k) -> Tensor:
    s = torch.einsum("blhk,bmhk->bhlm", q.double(), k.double()) / 4
    return (1 + s + s * s / 2).tril().sum(-1)


def compare(ours, q, k, v, dy) -> None:
    exact, same = gradients(q, k, v, dy, torch.float64), gradients(q, k, v, dy, torch.bfloat16)
    for name, a, b, c in zip(("dq", "dk", "dv"), ours, same, exact, strict=True):
        error, reference_error = (((x.double() - c).norm() / c.norm()).item() for x in (a, b))
        assert error <= 2 * reference_error + FLOOR, name


# Whole sequences, segments, a last tile that is not full.
@pytest.mark.parametrize(("length", "value_dim", "segment"), [(128, 64, 128), (200, 48, 128), (300, 64, 128)])
def test_sweeps_as_python(randn, monkeypatch, length, value_dim, segment):
    kernels = kernels_as_python()

    def wrap(name):
        def launch(*arguments, **options):
            packed = [
                Pointer(x) if torch.is_tensor(x) and x.dim() < 4 else torch.tensor(x) if isinstance(x, int) else x
                for x in (Pointer(a) if a is dq or a is dk else a for a in arguments)
            ]
            return getattr(kernels, name)(*packed, **options)

        return Launcher(kernels, launch)

    fakes = SimpleNamespace(
        **{
            name: wrap(name)
            for name in ("segment_sums_kernel", "query_sweep_kernel", "reverse_sums_kernel", "key_value_sweep_kernel")
        }
    )
    q, k, v, dy = tensors(randn, length, value_dim)
    y = reference(q.double(), k.double(), v.double()).bfloat16()
    inverse = (1 / normaliser(q, k)).float()
    delta, dq, dk, dv = (torch.full_like(x, POISON) for x in (inverse, q, k, v))
    cut = taylor_gluon.plan(1, length, 2, value_dim)._replace(segment=segment, segments=-(-length // segment))
    monkeypatch.setattr(taylor_gluon, "plan", lambda *_: cut)
    monkeypatch.setattr(taylor_gluon, "_map", lambda x, rows, columns: x)
    monkeypatch.setattr(taylor_gluon, "SUMS_SHAPE", (1, 3))
    monkeypatch.setattr(taylor_gluon, "_kernels", lambda: fakes)
    monkeypatch.setattr(taylor_backward_gluon, "_kernels", lambda: fakes)
    monkeypatch.setattr(taylor_backward_gluon, "ModuleType", SimpleNamespace)
    monkeypatch.setattr(taylor_backward_gluon, "_running_sums", lambda slots, *_: running_sums(slots))
    taylor_backward_gluon.backward(q, k, v, None, y, inverse, dy, delta, dq, dk, dv)
    compare((dq, dk, dv), q, k, v, dy)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Gluon needs a GPU")
@pytest.mark.parametrize("segments", [1, 4])
@pytest.mark.parametrize(("length", "value_dim"), [(577, 64), (1000, 48), (4097, 64)])
def test_on_a_gpu(randn, device, monkeypatch, length, value_dim, segments):
    q, k, v, dy = (x.to(device) for x in tensors(randn, length, value_dim))
    monkeypatch.setattr(taylor_gluon, "PROGRAMS", 2 * segments)
    monkeypatch.setattr(taylor_gluon, "SHORTEST_SEGMENT", 64)
    operator = taylor_attention_triton
    y, inverse, _ = operator.attention(q, k, v, None, False, "bf16")
    if taylor_backward_gluon.unsupported(q, k, v, y, dy) is not None:
        pytest.skip("not a GPU for these kernels")
    ours, again = (operator._rooms(q, k, v, None) for _ in range(2))
    for found in (ours, again):
        operator.attention_backward(q, k, v, None, y, inverse, dy, "bf16", *found)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    compare(ours, q, k, v, dy)


def test_what_is_left_to_other_kernels(randn):
    q, k, v, dy = tensors(randn, 3, 64)
    assert "GPU" in taylor_backward_gluon.unsupported(q, k, v, v, dy)
    wide = torch.cat([v, v], -1)
    assert "64" in taylor_backward_gluon.unsupported(q, k, wide, wide, wide)
