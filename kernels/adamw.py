"""AdamW over many tensors at once, whose whole state lies in flat buffers.

    m = b1 m + (1 - b1) g       v = b2 v + (1 - b2) g^2
    p = p (1 - lr wd) - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)

Loshchilov & Hutter, arXiv 1711.05101: the decay is decoupled from the gradient. Everything is float32, whatever the
gradients' dtype. The buffers hold the tensors one after another, each beginning at a multiple of `ALIGNMENT`, so that a
kernel's block never sees two of them, with zeros in between. `copy`, if there is one, receives the new parameters in
its own dtype: what half-precision products read is then never cast again.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

ALIGNMENT = 1024


class Moments(NamedTuple):
    """Flat buffers of equal length, and t, the steps taken."""

    parameters: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor  # () int64
    copy: Tensor | None = None


class Coefficients(NamedTuple):
    """What stays the same in all steps."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float


def offsets(sizes: Sequence[int]) -> list[int]:
    """Where each tensor begins in the flat buffers, and their whole length last."""
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
    return starts


def reference(
    gradients: Sequence[Sequence[Tensor]], moments: Moments, learning_rate: Tensor, coefficients: Coefficients
) -> None:
    """`adamw_step` in PyTorch, any device."""
    beta1, beta2, eps, decay = coefficients
    t = moments.steps.double() + 1  # 1 - b2^t is small at first
    step_size = learning_rate / (1 - beta1**t).float()
    root = (1 - beta2**t).sqrt().float()
    starts = offsets([terms[0].numel() for terms in gradients])
    for terms, start in zip(gradients, starts, strict=False):
        g = terms[0].to(moments.first.dtype)
        for term in terms[1:]:
            g = g + term
        part = slice(start, start + terms[0].numel())
        p, m, v = (buffer[part].view(terms[0].shape) for buffer in moments[:3])
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        p.mul_(1 - learning_rate * decay).sub_(step_size * m / (v.sqrt() / root + eps))
    if moments.copy is not None:
        moments.copy.copy_(moments.parameters)


def adamw_step(
    gradients: Sequence[Sequence[Tensor]], moments: Moments, learning_rate: Tensor, coefficients: Coefficients
) -> None:
    """One step on `moments.parameters`, in place. The caller then adds 1 to `steps`.

    gradients: for each tensor the terms whose sum is its gradient, such as those of an embedding that is read as the
    output head too; they may differ in dtype. learning_rate: () float32 on the device.
    """
    if moments.parameters.is_cuda:
        from .adamw_triton import adamw_step as by_triton

        by_triton(gradients, moments, learning_rate, coefficients)
    else:
        reference(gradients, moments, learning_rate, coefficients)


def flops(*, elements: int) -> int:
    """14 per element."""
    return 14 * elements


def bytes_moved(*, elements: int, gradient_bytes: int = 4, copy_bytes: int = 0) -> int:
    """Parameters and both moments in and out, gradients in, the copy out."""
    return elements * (6 * 4 + gradient_bytes + copy_bytes)
