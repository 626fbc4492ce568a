"""DeltaNet: linear attention that replaces what stands under a key (arXiv 2406.06484, sections 2.2 and 3.4).

    q, k, v = silu(conv(W x));   q, k = q / |q| / sqrt(K), k / |k|  a head;   beta = sigmoid(W_b x)
    S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T;   y_t = S_t^T q_t;   out = W_out rmsnorm(y)

As released, and as in the recall recipe: two heads of d / 2 channels, convolutions of four tokens, no biases, no output
gate. State: per head the key width x the value width, always in fp32 (fp64 for fp64), and the last d_conv - 1 inputs of
the convolution.

    state_bytes = a * expand_v * d * d // heads + e * (2 + expand_v) * d * (d_conv - 1)

(d = d_model, a = 4 bytes or 8 for fp64, e = bytes of the asked dtype.) zoology counts the first term's elements.
"""

from basedbench.mixers.delta import DeltaMixer
from basedbench.mixers.registry import register


@register
class DeltaNet(DeltaMixer):
    """The delta rule without decay; (B, L, D) to (B, L, D)."""

    name = "delta_net"
