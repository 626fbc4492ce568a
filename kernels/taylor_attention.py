"""Taylor linear attention: softmax attention with exp replaced by its second-order Taylor polynomial.

    s_ij = q_i . k_j / sqrt(K)        A_ij = 1 + s_ij + s_ij^2 / 2 = phi(q_i) . phi(k_j)
    y_i  = sum_j<=i A_ij v_j / (sum_j<=i A_ij + 1e-12)

Source: BASED, arXiv 2402.18668, section 4; Zhang et al., arXiv 2402.04347. A >= 1/2, so the normaliser of position t is
at least (t + 1) / 2.

phi(x) is packed (`taylor_features`): F = 1 + K + K (K + 1) / 2 features (153 for K = 16) where the published code
keeps 1 + K + K^2 (273).

The state (B,H,F,V+1) holds sum_j phi(k_j) [v_j, 1] in float32 (float64 for float64 inputs). A decode step has its
columns apart: a state (B,H,F,V), which may be bfloat16 (`rounding`), and sums of features (B,H,F), which may not, for
they divide everything. Both may be slices of one tensor.

`order` 1 and 3 cut the series one term earlier or later. Both polynomials have a real root: A and the normaliser can be
negative, and are used as they are.

On CUDA the Triton kernels compute what `taylor_attention_triton.unsupported` has no reason against; the reference takes
the rest: orders 1 and 3, float64, key widths that are no multiple of 8 or beyond 32, gradients that pass through
states.
"""

from torch import Tensor

from .chunked import attention_flops, chunked_attention, read_state
from .costs import total_bytes, total_flops
from .precision import without_autocast
from .rounding import accumulated, store
from .shapes import checked_shapes
from .taylor_features import KERNELS, feature_count


@without_autocast
def reference(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    *,
    order: int = 2,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    chunk: int = 64,
) -> Tensor | tuple[Tensor, Tensor]:
    """`taylor_attention` in PyTorch: differentiable once, any device."""
    return chunked_attention(
        q_BLHK, k_BLHK, v_BLHV, KERNELS[order], initial_state=initial_state, return_state=return_state, chunk=chunk
    )


@checked_shapes({"W = V + 1": lambda W, V: W == V + 1}, initial_state="BHFW")
def taylor_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    *,
    order: int = 2,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    chunk: int = 64,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal Taylor linear attention. q, k (B,L,H,K), v (B,L,H,V) -> y (B,L,H,V), and the state (B,H,F,V+1).

    `chunk` is the tokens per state update in sequences longer than 256; shorter ones are one quadratic block, which is
    cheaper there (the kernels choose for themselves). `initial_state` continues a sequence: a prefix, then the rest,
    gives the whole.
    """
    _check(order, q_BLHK, "initial_state", initial_state)
    if q_BLHK.is_cuda and order == 2:
        from . import taylor_attention_triton as kernels

        if kernels.unsupported(q_BLHK, k_BLHK, v_BLHV, initial_state, return_state) is None:
            return kernels.taylor_attention(
                q_BLHK, k_BLHK, v_BLHV, initial_state=initial_state, return_state=return_state
            )
    return reference(
        q_BLHK,
        k_BLHK,
        v_BLHV,
        order=order,
        initial_state=initial_state,
        return_state=return_state,
        chunk=chunk,
    )


def _check(order: int, q: Tensor, name: str, state: Tensor | None) -> None:
    if order not in KERNELS:
        raise ValueError(f"order must be one of {', '.join(map(str, KERNELS))}, not {order!r}")
    if state is not None and state.shape[2] != (features := feature_count(q.shape[-1], order)):
        raise ValueError(
            f"{name} is {tuple(state.shape)}: F is {state.shape[2]}, but keys {q.shape[-1]} wide have "
            f"{features} features of order {order}"
        )


def apart(state_BHFW: Tensor) -> tuple[Tensor, Tensor]:
    """A sequence's last state (B,H,F,V+1) as a decode step takes it: the state (B,H,F,V) and its sums (B,H,F)."""
    return state_BHFW[..., :-1].contiguous(), state_BHFW[..., -1].contiguous()


@checked_shapes()
def taylor_attention_step(
    q_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    state_BHFV: Tensor,
    sums_BHF: Tensor,
    *,
    count_B: Tensor | None = None,
    order: int = 2,
) -> Tensor:
    """One decode step: y (B,H,V) in the dtype of v. `state_BHFV` and `sums_BHF` take the token in, in place.

    `count_B` (B,) int32, the tokens before this one, makes a state in bfloat16 be rounded another way each time.
    """
    _check(order, q_BHK, "state_BHFV", state_BHFV)
    if state_BHFV.is_cuda and order == 2:
        from . import taylor_step_triton as kernels

        if kernels.unsupported(q_BHK, k_BHK, v_BHV, state_BHFV, sums_BHF) is None:
            return kernels.step(q_BHK, k_BHK, v_BHV, state_BHFV, sums_BHF, count_B)
    return step_reference(q_BHK, k_BHK, v_BHV, state_BHFV, sums_BHF, count_B=count_B, order=order)


@without_autocast
def step_reference(
    q_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    state_BHFV: Tensor,
    sums_BHF: Tensor,
    *,
    count_B: Tensor | None = None,
    order: int = 2,
) -> Tensor:
    """`taylor_attention_step` in PyTorch."""
    q, k = (KERNELS[order].features(x.to(sums_BHF.dtype)) for x in (q_BHK, k_BHK))
    sums_BHF += k
    rows_BHFV = accumulated(state_BHFV)
    rows_BHFV += k.unsqueeze(-1) * v_BHV.to(rows_BHFV.dtype).unsqueeze(-2)
    store(state_BHFV, rows_BHFV, count_B)
    return read_state(q, rows_BHFV, sums_BHF).to(v_BHV.dtype)


def flops(
    *,
    batch: int,
    length: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    state: bool = False,
    backward: bool = False,
) -> int:
    """Per token-head the lesser of 4 F (V + 1) (state updated, state read) and (L + 1) (K + V) (quadratic)."""
    features = feature_count(key_dim)
    forward = attention_flops(batch * length * heads, length, key_dim, value_dim, features, state)
    return total_flops(forward, backward=backward)


def bytes_moved(
    *,
    batch: int,
    length: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    element_bytes: int = 2,
    state: bool = False,
    backward: bool = False,
) -> int:
    """q, k, v in and y out: 2 K + 2 V elements per token-head; with `state` F (V + 1) float32 in and out per head."""
    tokens = batch * length * heads
    return total_bytes(
        tokens * (2 * key_dim + value_dim),
        tokens * value_dim,
        state=batch * heads * feature_count(key_dim) * (value_dim + 1) if state else 0,
        element_bytes=element_bytes,
        backward=backward,
    )
