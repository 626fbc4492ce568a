"""The least work an operator can be done with: what `flops` and `bytes_moved` of every operator count.

Operations: matrix products and recurrences, a multiply-add as two; exponentials and normalisation are left out unless
they are most of the work. Bytes: every input read once, every output written once, at `element_bytes` each; states are
float32, and so are decay rates, skips and step-size biases. A decode step is `length=1, state=True`. Both count the
forward, or with `backward=True` forward and backward together: the backward has two products for each one of the
forward, reads inputs and output gradients, and writes input gradients. Nothing is counted twice for being recomputed.
"""

STATE_BYTES = 4  # states are float32, as are the parameters that models keep so


def total_flops(forward: int, *, backward: bool) -> int:
    """Operations of the forward, or of both passes."""
    return 3 * forward if backward else forward


def total_bytes(inputs: int, outputs: int, *, wide: int = 0, state: int = 0, element_bytes: int, backward: bool) -> int:
    """Bytes for so many elements of inputs, outputs and state (read and written), in the forward or in both passes.

    `wide`: of inputs that are float32 whatever the others are.
    """
    elements = 3 * inputs + 2 * outputs if backward else inputs + outputs
    return elements * element_bytes + ((3 if backward else 1) * wide + 2 * state) * STATE_BYTES


def causal_pairs(length: int, window: int | None = None) -> int:
    """Query-key pairs of a causal sequence in which position i reads keys max(0, i - window) ... i."""
    reach = length if window is None else min(window + 1, length)
    return reach * (reach + 1) // 2 + (length - reach) * reach
