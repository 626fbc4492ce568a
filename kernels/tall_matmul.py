"""Products with many tokens and few columns, made beside other runs: instead of PyTorch's, while a context lasts.

A recall run's layers are a few dozen numbers wide, and several runs share a device. `tall_matmul_triton` says why a
library's products are in each other's way there. Layers and the gradients that autograd takes are what they were; only
`mm` and `addmm` are computed by something else, in half precision, where their sides are such.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .partial_sums import leaf_behind, running

aten = torch.ops.aten
HALF = torch.float16, torch.bfloat16
MANY = 1024  # tokens, at least
SMALL = 2**16  # the matrix beside them, at most: more is work enough for a library's product
UNIT = 8  # of which all sides are multiples: 16 bytes, which the kernels load at once


class Product(NamedTuple):
    """a (M,K) b (K,N) + added, to be written to `out` (a new tensor if None); `added` is (N,) or (M,N)."""

    a: Tensor
    b: Tensor
    added: Tensor | None = None
    out: Tensor | None = None

    @property
    def sides(self) -> tuple[int, int, int]:
        """M, K and N."""
        return *self.a.shape, self.b.shape[1]

    @property
    def tensors(self) -> list[Tensor]:
        """All that there are."""
        return [x for x in self if x is not None]

    def turned(self) -> "Product":
        """b^T a^T + added^T: the same numbers, with the tokens in front."""
        added, out = (None if x is None else x.t() for x in (self.added, self.out))
        return Product(self.b.t(), self.a.t(), added, out)


class TallMatmuls(TorchDispatchMode):
    """Inside, products of tokens are made by the kernels for them."""

    supports_higher_order_operators = True  # which go on to what they would be without it

    @classmethod
    def is_infra_mode(cls) -> bool:
        """PyTorch's compiler leaves uncompiled what it meets inside of other modes."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        product = read(func, args, kwargs or {})
        made = make(product) if product is not None and _on_gpu(product) else None
        return func(*args, **kwargs or {}) if made is None else made


def read(func: Any, args: Any, kwargs: Any) -> Product | None:
    """What an operation multiplies, if that is all it does."""
    if func in (aten.mm.default, aten.mm.out):
        a, b = args
        return Product(a, b, None, kwargs.get("out"))
    if func in (aten.addmm.default, aten.addmm.out, aten.addmm_.default):
        if kwargs.get("alpha", 1) != 1 or kwargs.get("beta", 1) != 1:
            return None
        added, a, b = args
        return Product(a, b, added, added if func is aten.addmm_.default else kwargs.get("out"))
    return None


def _on_gpu(product: Product) -> bool:
    """Dense tensors of the current device, and real ones: those of PyTorch's compiler only seem to be there."""
    if not all(type(x) in (Tensor, nn.Parameter) and x.is_cuda for x in product.tensors):
        return False
    (device, *others) = {x.device for x in product.tensors}
    here = device.index is None or device.index == torch.cuda.current_device()
    return here and not others and all(x.layout is torch.strided for x in product.tensors)


def make(product: Product) -> Tensor | None:
    """The product by a kernel; None where that does not pay, or where they do not take it."""
    rows, inner, columns = product.sides
    if any(side % UNIT or not side for side in product.sides) or inner != len(product.b):
        return None
    if product.a.dtype not in HALF or any(x.dtype != product.a.dtype for x in product.tensors):
        return None
    if product.out is not None and product.out.shape != (rows, columns):
        return None
    if product.added is not None and product.added.dim() not in (1, 2):
        return None
    if inner >= MANY and rows * columns <= SMALL:
        return _token_sum(product)
    tokens, other = max(rows, columns), min(rows, columns)
    return _tall(product) if tokens >= MANY and inner * other <= SMALL else None


def _token_sum(product: Product) -> Tensor | None:
    from .tall_matmul_triton import token_sum

    a, b, added, out = product
    if added is not None or None in (laid_out(a), laid_out(b)):
        return None
    total = token_sum(a, b, a.dtype, _leaf(product) if out is None else None)
    return total if out is None else out.copy_(total)


def _leaf(product: Product) -> Tensor | None:
    """The leaf whose whole gradient is what autograd multiplies now; None where something else may read it.

    Of `x W^T` autograd goes on to W by turning the gradient, which reads nothing.
    """
    node, kind = running(), type(running()).__name__
    if kind == "MmBackward0":
        factors = node.next_functions
    elif kind == "AddmmBackward0" and node._saved_alpha == 1:
        factors = node.next_functions[1:]
    else:
        return None
    # Of two factors one is multiplied: not the one whose gradient this is.
    given = {product.a.data_ptr(), product.b.data_ptr()}
    for after, _ in factors:
        leaf = leaf_behind(after)
        if leaf is not None and leaf.numel() == len(product.a) * product.b.shape[1]:
            return None if leaf.data_ptr() in given else leaf
    return None


def _tall(product: Product) -> Tensor | None:
    from .tall_matmul_triton import tall_matmul

    a, b, added, out = product
    if out is None:
        out = a.new_empty(len(a), b.shape[1])
    whole = Product(a, b, added, out)
    if len(a) < b.shape[1]:
        if added is not None and added.dim() == 1:
            return None
        whole = whole.turned()
    if not _laid_out(whole):
        return None
    tall_matmul(whole.a, whole.b, whole.out, whole.added)  # type: ignore[arg-type]
    return out


def _laid_out(product: Product) -> bool:
    """Whether every matrix has a side whose numbers lie together, the added one the same as the result.

    Nothing else lies where the result does, but what is added may be the result itself.
    """
    a, b, added, out = product
    assert out is not None
    here = laid_out(out)
    if here is None or None in (laid_out(a), laid_out(b)):
        return False
    if here[1] * UNIT < out.shape[here[0]]:
        return False
    if added is None:
        return True
    if added.dim() == 1:
        return len(added) == b.shape[1] and added.stride(0) == 1 and not _shared(added, out)
    if added.shape != out.shape:
        return False
    there, same = laid_out(added), (added.data_ptr(), added.stride()) == (out.data_ptr(), out.stride())
    return there is not None and there[0] == here[0] and (same or not _shared(added, out))


def laid_out(x: Tensor) -> tuple[bool, int] | None:
    """Whether numbers of a row lie together (else of a column), and the other stride in UNITs; None for neither."""
    for side in (1, 0):
        stride = x.stride(1 - side)
        if x.stride(side) == 1 and stride % UNIT == 0:
            return bool(side), stride // UNIT
    return None


def _shared(x: Tensor, y: Tensor) -> bool:
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
