"""flash-linear-attention (https://github.com/fla-org/flash-linear-attention): linear attention of all kinds in Triton.

Its `based` kernels divide by the sum of the weights + 1e-6 and its linear attention by the sum + 1e-10, where the
operators here add 1e-12: no difference at their precision. Its linear attention takes mapped features, so elu + 1 is
timed with it. All its functions scale queries by 1/sqrt(K) unless they are told not to.
"""

import re
import sys
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from basedbench.config.throughput import Case
from basedbench.contenders.base import Call, Contender, Tensors, needs_cuda, needs_half

PACKAGE = "flash-linear-attention"


class _Fla(Contender):
    package = PACKAGE

    def imports(self, case: Case) -> None:
        self.build(case)  # and with its kernels torch's compiler

    def limits(self, case: Case) -> str | None:
        if case.mode == "decode":
            return "flash-linear-attention is compared on whole sequences only"
        return needs_cuda(case)


class FusedChunkBased(_Fla):
    """Taylor attention walking the sequence with a state."""

    name = "fla-fused-chunk"
    operators = ("taylor_attention",)

    def limits(self, case: Case) -> str | None:
        too_wide = "its state form takes key widths up to 16" if case.key_dim > 16 else None
        return super().limits(case) or too_wide

    def build(self, case: Case) -> Call:
        function = _ops("based").fused_chunk_based
        return lambda tensors: function(*tensors.values())


class ParallelBased(_Fla):
    """Taylor attention in its quadratic form."""

    name = "fla-parallel"
    operators = ("taylor_attention",)

    def limits(self, case: Case) -> str | None:
        too_wide = "its quadratic form takes key widths up to 128" if case.key_dim > 128 else None
        return super().limits(case) or too_wide

    def build(self, case: Case) -> Call:
        function = _ops("based").parallel_based
        return lambda tensors: function(*tensors.values())


class Chunk(_Fla):
    """Linear attention, gated linear attention and the delta rule in chunks; a delta rule's decay says by which."""

    name = "fla-chunk"
    operators = ("linear_attention", "gated_linear_attention", "delta_rule")

    def limits(self, case: Case) -> str | None:
        reason = super().limits(case)
        return reason or (_delta_limits(case) if case.operator == "delta_rule" else None)

    def build(self, case: Case) -> Call:
        if case.operator == "delta_rule":
            return _build_delta(case)
        return _build_gated() if case.operator == "gated_linear_attention" else _build_linear()


def _ops(name: str) -> Any:
    """The module `fla.ops.NAME` without what importing `fla` brings besides: layers and models, with transformers.

    That takes most of ten seconds in every process. What needs more than its own parts gets the whole package.
    """
    spec = find_spec("fla") if "fla" not in sys.modules else None
    if spec and spec.submodule_search_locations:
        bare: Any = ModuleType("fla")
        bare.__path__, bare.__version__ = list(spec.submodule_search_locations), version(PACKAGE)
        sys.modules["fla"] = bare
        try:
            return import_module(f"fla.ops.{name}")
        except ImportError:
            for loaded in [one for one in sys.modules if one.partition(".")[0] == "fla"]:
                del sys.modules[loaded]
    return import_module(f"fla.ops.{name}")


def _build_linear() -> Call:
    """Its gradient of q in 16 bits is refused, and should be: several times as far off as bfloat16 has to be.

    The normaliser's part is a gradient of its own, through sums of keys and divisions in bfloat16, and is added to that
    of the products when both have been rounded. The two nearly cancel: the first token attends to itself alone, so its
    gradient is zero, and 17 % of a usual row is left. Emulated on a CPU, products exact, what lies between them in
    bfloat16: 19 % there, and 1.3 % for the whole gradient, where rounding it once costs 0.17 %.
    """
    chunk_linear_attn = _ops("linear_attn").chunk_linear_attn

    def call(tensors: Tensors) -> Tensor:
        q, k, v = tensors.values()
        # The scale cancels against the normaliser; 1 keeps both away from its small constant.
        y: Tensor = chunk_linear_attn(F.elu(q) + 1, F.elu(k) + 1, v, scale=1.0, normalize=True)[0]
        return y

    return call


def _build_gated() -> Call:
    chunk_gla = _ops("gla").chunk_gla

    def call(tensors: Tensors) -> Tensor:
        q, k, v, g = tensors.values()
        y: Tensor = chunk_gla(q, k, v, g, scale=1.0)[0]
        return y

    return call


def _build_delta(case: Case) -> Call:
    """`chunk_delta_rule(q, k, v, beta)`, `chunk_gated_delta_rule` or `chunk_kda(q, k, v, g, beta)`.

    Without decays its gradient of k in bfloat16 is off by 5.5e-3 to 5.9e-3 on an H100, where 6.3e-3 is allowed and one
    rounding costs 1.7e-3: between its kernels states, new values and the chunk's inverse are bfloat16. With decays of
    channels the gradient of g is off by 4.1e-3 to 5.3e-3.
    """
    match case.config["decay"]:
        case "none":
            rule = _ops("delta_rule").chunk_delta_rule
        case "head":
            rule = _ops("gated_delta_rule").chunk_gated_delta_rule
        case _:
            rule = _ops("kda").chunk_kda

    def call(tensors: Tensors) -> Tensor:
        q, k, v, beta, *g = tensors.values()
        y: Tensor = rule(q, k, v, *g, beta, scale=1.0)[0]
        return y

    return call


def _delta_limits(case: Case) -> str | None:
    if case.key_dim > 256:
        return "its delta rules take key widths up to 256"
    if case.config["decay"] == "head" and case.mode == "fwd_bwd" and _refuses_gated_backward():
        return "its backward of a decay per head refuses Hopper with Triton from 3.4 and below 3.7.1; try Triton 3.7.1"
    return needs_half(case)


def _refuses_gated_backward() -> bool:
    """Whether it would raise: these versions of Triton miscompile the kernel. TileLang, if installed, replaces it."""
    import triton

    triton_version = tuple(map(int, re.findall(r"\d+", triton.__version__)[:3]))
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    return hopper and (3, 4) <= triton_version < (3, 7, 1) and find_spec("tilelang") is None
