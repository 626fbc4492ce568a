"""mamba_ssm (https://github.com/state-spaces/mamba): the published CUDA and Triton kernels of Mamba and Mamba-2."""

from typing import Any

from torch import Tensor

from basedbench.config.throughput import Case
from basedbench.contenders.base import Call, Contender, Tensors, needs_cuda

# The chunk length that the published Mamba-2 models use.
CHUNK = 256


class MambaSsm(Contender):
    """Its scans for whole sequences and its step for decoding. Sequences are (B,D,L) in its selective scan."""

    name = "mamba_ssm"
    operators = ("selective_scan", "ssd")
    package = "mamba_ssm"

    def limits(self, case: Case) -> str | None:
        return needs_cuda(case)

    def imports(self, case: Case) -> None:
        self.build(case)

    def layout(self, case: Case, tensors: Tensors) -> Tensors:
        if case.operator == "ssd" or case.mode == "decode":
            return tensors
        return {name: _length_last(x) if x.dim() == 3 else x for name, x in tensors.items()}

    def build(self, case: Case) -> Call:
        if case.mode == "decode":
            return _build_step(case)
        return _build_ssd() if case.operator == "ssd" else _build_scan()


def _length_last(x_BLD: Tensor) -> Tensor:
    """The same tensor with the length innermost in memory."""
    return x_BLD.transpose(1, 2).contiguous().transpose(1, 2)


def _build_scan() -> Call:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def call(tensors: Tensors) -> Tensor:
        u, delta, A, B, C, D, z, bias = tensors.values()
        u, delta, B, C, z = (x.transpose(1, 2) for x in (u, delta, B, C, z))
        y: Tensor = selective_scan_fn(u, delta, A, B, C, D, z=z, delta_bias=bias, delta_softplus=True)
        return y.transpose(1, 2)

    return call


def _build_ssd() -> Call:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    def call(tensors: Tensors) -> Tensor:
        x, dt, A, B, C, D, bias = tensors.values()
        y: Tensor = mamba_chunk_scan_combined(x, dt, A, B, C, CHUNK, D=D, dt_bias=bias, dt_softplus=True)
        return y

    return call


def _build_step(case: Case) -> Call:
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    def scan(tensors: Tensors) -> Any:
        u, delta, A, B, C, state, D, z, bias = tensors.values()
        return selective_state_update(state, u, delta, A, B, C, D, z=z, dt_bias=bias, dt_softplus=True)

    def ssd(tensors: Tensors) -> Any:
        x, dt, A, B, C, state, D, bias = tensors.values()
        # It is told by zero strides that a head's channels share their step size and its states their decay.
        width, states = state.shape[-2:]
        dt, D, bias = (one.unsqueeze(-1).expand(*one.shape, width) for one in (dt, D, bias))
        A = A[:, None, None].expand(-1, width, states)
        return selective_state_update(state, x, dt, A, B, C, D, dt_bias=bias, dt_softplus=True)

    return ssd if case.operator == "ssd" else scan
