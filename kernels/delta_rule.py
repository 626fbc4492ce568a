"""The delta rule: linear attention whose state is also multiplied by a rank-one correction at every token.

    S_t = diag(exp(g_t)) S_t-1 + a_t (b_t^T S_t-1) + k_t v_t^T        y_t = S_t^T q_t

per head with a state S (K,V); g <= 0 is the log of the decay: one for each channel (B,L,H,K), for a head (B,L,H,1), or
none. q is not scaled. With keys k of unit norm, step sizes beta, decays alpha = exp(g):

    DeltaNet (arXiv 2406.06484)             a = -beta k,      b = k,          k: beta k
    Gated DeltaNet (arXiv 2412.06464)       a = -beta k,      b = alpha k,    k: beta k      alpha of a head
    Kimi delta attention (arXiv 2510.26692) a = -beta k,      b = alpha k,    k: beta k      alpha of a channel
    RWKV-7 (arXiv 2503.14456)               a = -eta kappa,   b = kappa                      eta of a channel

In a chunk of T tokens behind a state S the corrections u_t = S_t-1^T b_t solve a triangular system (the WY form),

    (I - A_ba) U = A_bk V + B S,   Y = A_qa U + A_qk V + Q S,   A_xy[t,j] = sum_c x_t y_j exp(sum of g over j < m <= t),

for x = b up to t - 1 and without t itself; B and Q are b and q, decayed since the chunk began. Both U and Y are affine
in S: all chunks are worked out side by side, and only S <- P S + R, one (K,K) product a chunk, is serial. Sums of g are
kept in float64, so that their differences are right behind strong decays; every exponent is <= 0. With a decay per
channel the A of a chunk is put together from its halves: what the second half reads of the first is a product of rows
decayed since the middle and columns decayed to the middle; then the same inside each half, down to single tokens.

float32 (float64 for float64 inputs), and so is the state.

On CUDA the Triton kernels compute what `delta_rule_triton.unsupported` has no reason against; the reference takes the
rest: float64 and keys wider than 128.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .costs import total_bytes, total_flops
from .differentiated import once_differentiable
from .precision import accumulation_dtype, without_autocast
from .shapes import checked_shapes

FLOOR = -1000.0  # exp of it is 0 in every dtype, and sums of it leave room for the digits of others

# Below, M is a chunk of a head of a sequence. Rows are b and q of a token in turn, columns a and k (or u and v).


def _corner(x_MRR: Tensor, half: int, row: int, column: int) -> Tensor:
    """Of the diagonal blocks of 2 * half rows each, one quarter: a view (M, blocks, half, half)."""
    blocks = x_MRR.shape[-1] // (2 * half)
    x = x_MRR.unflatten(2, (blocks, 2, half)).unflatten(1, (blocks, 2, half))
    return x.diagonal(dim1=1, dim2=4)[:, row, :, column].movedim(-1, 1)


def _halves(x_MTXK: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Tokens (M,T,X,K) -> the first and the second half of each block of 2 * half: (M, blocks, half, X, K)."""
    first, second = x_MTXK.unflatten(1, (-1, 2, half)).unbind(2)
    return first, second


def _by_token(x_MRR: Tensor) -> Tensor:
    """(M,2T,2T) -> (M,T,2,T,2)."""
    return x_MRR.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))


def _own(x_MRR: Tensor) -> Tensor:
    """What the q row of a token reads of the token itself: a view (M,T,2) of (M,2T,2T)."""
    return _by_token(x_MRR)[:, :, 1].diagonal(dim1=1, dim2=2).mT


def _powers(limit: int) -> list[int]:
    """1, 2, 4 ... below the limit."""
    return [1 << i for i in range((limit - 1).bit_length())]


class _Solve(torch.autograd.Function):
    """(I - N)^-1 x for N (M,T,T) strictly lower, x (M,T,W); T a power of two.

    The inverse grows from blocks of one token: [[A, 0], [N, B]] has B^-1 N A^-1 in its corner. Sums of powers of N
    would cancel where keys repeat.
    """

    @staticmethod
    def forward(ctx: Any, lower: Tensor, x: Tensor) -> Tensor:
        inverse = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device).expand_as(lower).contiguous()
        for half in _powers(lower.shape[-1]):
            corner = _corner(lower, half, 1, 0)
            if half > 1:
                corner = _corner(inverse, half, 1, 1) @ corner @ _corner(inverse, half, 0, 0)
            _corner(inverse, half, 1, 0).copy_(corner)
        solution = inverse @ x
        ctx.save_for_backward(inverse, solution)
        return solution

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        inverse, solution = ctx.saved_tensors
        grad_x = inverse.mT @ grad
        return (grad_x @ solution.mT).tril_(-1), grad_x


class _ChannelDecays(torch.autograd.Function):
    """rows, columns (M,T,2,K), sums of g up to each (M,T,2,K), (M,T,1,K) -> A (M,2T,2T); T a power of two.

    Written out to keep nothing but the inputs: autograd would keep six tensors of half their size for each halving.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, row_sums: Tensor, sums: Tensor) -> Tensor:
        length = rows.shape[1]
        products = rows.new_zeros(len(rows), 2 * length, 2 * length)
        _own(products).copy_((rows[:, :, 1:] * columns).sum(-1))
        for half in _powers(length):
            left, right, *_ = _ChannelDecays.decayed(rows, columns, row_sums, sums, half)
            _corner(products, 2 * half, 1, 0).copy_(left @ right.mT)
        ctx.save_for_backward(rows, columns, row_sums, sums)
        return products

    @staticmethod
    def decayed(
        rows: Tensor, columns: Tensor, row_sums: Tensor, sums: Tensor, half: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Second halves' rows and first halves' columns (M, blocks, 2 * half, K), decayed since and to the middle."""
        before, _ = _halves(sums, half)
        middle = before[:, :, -1:]
        since = (_halves(row_sums, half)[1] - middle).to(rows.dtype).exp_()
        until = (middle - before).to(rows.dtype).exp_()
        left, right = _halves(rows, half)[1] * since, _halves(columns, half)[0] * until
        return left.flatten(2, 3), right.flatten(2, 3), since, until

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        rows, columns, row_sums, sums = saved = ctx.saved_tensors  # asked for once, as checkpoints have it
        grad_rows, grad_columns, grad_row_sums, grad_sums = (torch.zeros_like(x) for x in saved)
        for half in _powers(rows.shape[1]):
            left, right, since, until = _ChannelDecays.decayed(rows, columns, row_sums, sums, half)
            corner = _corner(grad, 2 * half, 1, 0)
            grad_left, grad_right = (x.unflatten(2, (half, 2)) for x in (corner @ right, corner.mT @ left))
            _halves(grad_rows, half)[1].addcmul_(grad_left, since)
            _halves(grad_columns, half)[0].addcmul_(grad_right, until)
            of_rows = left.unflatten(2, (half, 2)) * grad_left
            of_columns = (right.unflatten(2, (half, 2)) * grad_right).sum(3, keepdim=True)
            _halves(grad_row_sums, half)[1].add_(of_rows)
            before = _halves(grad_sums, half)[0]
            before -= of_columns
            # Of the middle: zero, but for the same rounding as above. Left out, a strong decay's gradient were noise.
            before[:, :, -1:] += (of_columns.double() - of_rows.double().sum(3, True)).sum(2, True)
        own = _own(grad).unsqueeze(-1)
        grad_rows[:, :, 1] += (own * columns).sum(2)
        grad_columns += own * rows[:, :, 1:]
        return grad_rows, grad_columns, grad_row_sums, grad_sums


def _products(rows: Tensor, columns: Tensor, row_sums: Tensor | None, sums: Tensor | None) -> Tensor:
    """A (M,2T,2T) of rows and columns (M,T,2,K): b rows read earlier tokens, q rows their own too."""
    if sums is not None and row_sums is not None and sums.shape[-1] > 1:
        return _ChannelDecays.apply(rows, columns, row_sums, sums)
    token = torch.arange(rows.shape[1], device=rows.device)
    hidden = token >= token[:, None, None] + torch.arange(2, device=rows.device)[:, None]  # (T,2,T)
    products = _by_token(rows.flatten(1, 2) @ columns.flatten(1, 2).mT)
    if sums is None or row_sums is None:
        products = products.masked_fill(hidden.unsqueeze(-1), 0)
    else:
        passed = (row_sums - sums.movedim(1, -1)).to(rows.dtype)  # (M,T,2,T)
        decays = passed.masked_fill(hidden, float("-inf")).exp()  # hidden before: exp of later ones could overflow
        products = products * decays.unsqueeze(-1)
    return products.flatten(3, 4).flatten(1, 2)


def _sums(g: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """g (M,T,K or 1) -> its sums up to each row (M,T,2,.): before the token, and with it; and the latter (M,T,1,.)."""
    if g is None:
        return None, None
    g = g.double().clamp(FLOOR)
    total = g.cumsum(1)
    return torch.stack([total - g, total], 2), total.unsqueeze(2)


def _corrected(weights: Tensor, v: Tensor, reads: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights of the q rows (M,T,2T), and what they weigh (M,2T,V): each token's u and v.

    With `reads` (M,T,K), B above, K columns more: what u is by the state.
    """
    by_u, by_v = _by_token(weights)[:, :, 0].unbind(3)
    due = by_v @ v
    if reads is not None:
        due, v = torch.cat([due, reads], -1), F.pad(v, (0, reads.shape[-1]))
    return weights[:, 1::2], torch.stack([_Solve.apply(by_u, due), v], 2).flatten(1, 2)


def _carried(update: Tensor, transition: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """S <- P S + R over the chunks of R (N,C,K,V), P (N,C,K,K). Returns the states before each chunk, and the last."""
    state = torch.zeros_like(update[:, 0]) if state is None else state
    before = []
    for R, P in zip(update.unbind(1), transition.unbind(1), strict=True):
        before.append(state)
        state = torch.baddbmm(R, P, state)
    return torch.stack(before, 1), state


def _chunks(x_BLHW: Tensor, chunk: int) -> Tensor:
    """(B,L,H,W) -> (N,C,T,W) with N = B H; zeros behind the end, which leave the state as it is."""
    x = F.pad(x_BLHW, (0, 0, 0, 0, 0, -x_BLHW.shape[1] % chunk))
    return x.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4).flatten(0, 1)


def _scan(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, g: Tensor | None, state: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor | None]:
    """Chunks (N,C,T,.) and the state (N,K,V) before them -> y (N,C,T,V), and the last state if it was worked out."""
    heads, chunks, key_dim, value_dim = *q.shape[:2], q.shape[-1], v.shape[-1]
    rows, columns = torch.stack([b, q], 3).flatten(0, 1), torch.stack([a, k], 3).flatten(0, 1)
    row_sums, sums = _sums(None if g is None else g.flatten(0, 1))
    weights = _products(rows, columns, row_sums, sums)
    if chunks == 1 and state is None and not return_state:
        of_q, values = _corrected(weights, v.flatten(0, 1), None)
        return (of_q @ values).unflatten(0, (heads, chunks)), None
    keep = torch.eye(key_dim, dtype=q.dtype, device=q.device)
    if row_sums is not None and sums is not None:
        last = sums[:, -1:]
        rows, columns = rows * row_sums.to(q.dtype).exp(), columns * (last - sums).to(q.dtype).exp()
        keep = keep * last.squeeze(2).to(q.dtype).exp()
    of_q, values = _corrected(weights, v.flatten(0, 1), rows[:, :, 0])
    y, reads = (of_q @ values).split([value_dim, key_dim], -1)
    update, transition = (columns.flatten(1, 2).mT @ values).split([value_dim, key_dim], -1)
    update, transition = (x.unflatten(0, (heads, chunks)) for x in (update, transition + keep))
    before, state = _carried(update, transition, state)
    y = torch.baddbmm(y, reads + rows[:, :, 1], before.flatten(0, 1))
    return y.unflatten(0, (heads, chunks)), state


@without_autocast
def reference(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    a_BLHK: Tensor,
    b_BLHK: Tensor,
    g_BLHK: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    chunk: int = 32,
) -> Tensor | tuple[Tensor, Tensor]:
    """`delta_rule` in PyTorch: differentiable once, any device."""
    batch, length, heads = v_BLHV.shape[:3]
    dtype = accumulation_dtype(v_BLHV.dtype)
    chunk = 1 << (min(chunk, length) - 1).bit_length()
    q, k, v, a, b = (_chunks(x.to(dtype), chunk) for x in (q_BLHK, k_BLHK, v_BLHV, a_BLHK, b_BLHK))
    g = None if g_BLHK is None else _chunks(g_BLHK.to(dtype), chunk)
    state = None if initial_state is None else initial_state.to(dtype).flatten(0, 1)
    y, state = _scan(q, k, v, a, b, g, state, return_state)
    y_BLHV = y.flatten(1, 2)[:, :length].unflatten(0, (batch, heads)).transpose(1, 2).to(v_BLHV.dtype)
    return (y_BLHV, state.unflatten(0, (batch, heads))) if return_state and state is not None else y_BLHV


@checked_shapes({"J is K or 1": lambda J, K: J in (K, 1)}, g_BLHK="BLHJ", initial_state="BHKV")
def delta_rule(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    a_BLHK: Tensor,
    b_BLHK: Tensor,
    g_BLHK: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    chunk: int = 32,
) -> Tensor | tuple[Tensor, Tensor]:
    """q, k, a, b (B,L,H,K), v (B,L,H,V), g (B,L,H,K or 1) -> y (B,L,H,V), and the state (B,H,K,V) if asked for.

    `initial_state` continues a sequence: a prefix, then the rest, gives the whole. `chunk` is the tokens of the
    reference's triangular systems, rounded up to a power of two; the kernels choose for themselves.
    """
    tensors = q_BLHK, k_BLHK, v_BLHV, a_BLHK, b_BLHK, g_BLHK
    if v_BLHV.is_cuda:
        from . import delta_rule_triton as kernels

        if kernels.unsupported(*tensors, initial_state) is None:
            return kernels.delta_rule(*tensors, initial_state=initial_state, return_state=return_state)
    return reference(*tensors, initial_state=initial_state, return_state=return_state, chunk=chunk)


def shared_reference(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    a_BLHK: Tensor,
    b_BLHK: Tensor,
    g_BLHK: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`shared_delta_rule` in PyTorch."""
    return cast(Tensor, reference(q_BLHK, k_BLHK, v_BLHV, a_BLHK, b_BLHK, g_BLHK)), q_BLHK, k_BLHK, v_BLHV


@checked_shapes({"J is K or 1": lambda J, K: J in (K, 1)}, g_BLHK="BLHJ")
def shared_delta_rule(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    a_BLHK: Tensor,
    b_BLHK: Tensor,
    g_BLHK: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y of `delta_rule`, and q, k and v for others to read: their gradients are added where the rule writes its own."""
    tensors = q_BLHK, k_BLHK, v_BLHV, a_BLHK, b_BLHK, g_BLHK
    if v_BLHV.is_cuda:
        from . import delta_rule_triton as kernels

        if kernels.unsupported(*tensors) is None:
            return kernels.shared_delta_rule(*tensors)
    return shared_reference(*tensors)


@checked_shapes({"J is K or 1": lambda J, K: J in (K, 1)}, g_BHK="BHJ")
def delta_rule_step(
    q_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    a_BHK: Tensor,
    b_BHK: Tensor,
    g_BHK: Tensor | None,
    state_BHKV: Tensor,
) -> Tensor:
    """One decode step. Updates `state_BHKV` in place; returns y (B,H,V) in the dtype of v."""
    tensors = q_BHK, k_BHK, v_BHV, a_BHK, b_BHK, g_BHK, state_BHKV
    if state_BHKV.is_cuda:
        from . import delta_rule_step_triton as kernels

        if kernels.unsupported(*tensors) is None:
            return kernels.step(*tensors)
    return step_reference(*tensors)


@without_autocast
def step_reference(
    q_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    a_BHK: Tensor,
    b_BHK: Tensor,
    g_BHK: Tensor | None,
    state_BHKV: Tensor,
) -> Tensor:
    """`delta_rule_step` in PyTorch."""
    dtype = state_BHKV.dtype
    b_BH1K = b_BHK.to(dtype).unsqueeze(-2)
    values_BH2V = torch.cat([b_BH1K @ state_BHKV, v_BHV.to(dtype).unsqueeze(-2)], -2)
    if g_BHK is not None:
        state_BHKV *= g_BHK.to(dtype).exp().unsqueeze(-1)
    state_BHKV += torch.stack([a_BHK, k_BHK], -1).to(dtype) @ values_BH2V
    return (q_BHK.to(dtype).unsqueeze(-2) @ state_BHKV).squeeze(-2).to(v_BHV.dtype)


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
    """Per token-head the lesser of 8 K V (state read twice, updated twice) and 4 (L + 1) (K + V) (quadratic)."""
    tokens = batch * length * heads
    through_state = tokens * 8 * key_dim * value_dim
    quadratic = tokens * 4 * (length + 1) * (key_dim + value_dim)  # (L + 1) / 2 pairs, four weights and what they weigh
    return total_flops(through_state if state else min(through_state, quadratic), backward=backward)


def bytes_moved(
    *,
    batch: int,
    length: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    decay_dim: int = 0,
    element_bytes: int = 2,
    state: bool = False,
    backward: bool = False,
) -> int:
    """q, k, a, b, v and g in (`decay_dim` K, 1, or 0 for none), y out; with `state` K V float32 in and out per head."""
    tokens = batch * length * heads
    return total_bytes(
        tokens * (4 * key_dim + decay_dim + value_dim),
        tokens * value_dim,
        state=batch * heads * key_dim * value_dim if state else 0,
        element_bytes=element_bytes,
        backward=backward,
    )
