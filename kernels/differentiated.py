"""Whether an operator's backward may follow, for which its forward then keeps what that needs."""

import torch
from torch import Tensor


def differentiated(*tensors: Tensor | None) -> bool:
    """Gradients are on, and one of the tensors that are given asks for one."""
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)
