"""Gradients of taylor_attention by serial sweeps, for Hopper in Gluon: key width 16, up to 64 values, bf16.

With r = q . k, u = dy / z, delta = dy . y (see `taylor_backward_triton`), the forward's state S (of k and v) and a
state R, summed from the end (of q and u); K = 16 makes every coefficient a power of two:

    16 dq_t = 1/z_t [ dS.q_t + 4 S1 dy_t - delta_t (M q_t + 4 k1) + sum_s (dy_t . v_s - delta_t) (r_ts + 4) k_s ]
    16 dk_s =         dR.k_s + 4 R1 v_s  + N k_s + 4 n1           + sum_t (u_t . v_s - delta_t / z_t) (r_ts + 4) q_t
    16 dv_s =         phi(k_s) R                                  + sum_t (r_ts^2 / 2 + 4 r_ts + 16) u_t

dS.q is the gradient by q of w . (phi(q) S), contracted from G = w S^T, 64 features at a time: sum_i G_ij x_i inside a
thread, in float32; the one sum over j (block a b), spread over four lanes, by a product with zeros and ones.
M = sum k k^T, k1 = sum k, N = -sum delta / z q q^T, n1 = -sum delta / z q.

Slots and segments are those of the forward; R's segments are numbered from the end.
"""

from .taylor_backward_gluon_keys import key_gradient_kernel
from .taylor_backward_gluon_queries import query_gradient_kernel
from .taylor_backward_gluon_sums import gradient_sums_kernel
from .taylor_backward_gluon_values import value_sweep_kernel

__all__ = ["gradient_sums_kernel", "key_gradient_kernel", "query_gradient_kernel", "value_sweep_kernel"]
