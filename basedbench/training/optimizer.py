"""AdamW over plain tensors: its whole state can be copied, and its step recorded in a CUDA graph."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class AdamW:
    """Decoupled weight decay on every parameter alike (arXiv 1711.05101), as the recipe has it.

    The learning rate is a tensor on the device: changing it needs neither a new graph nor the host to wait.
    """

    def __init__(self, parameters: Sequence[Tensor], weight_decay: float) -> None:
        self.parameters = list(parameters)
        self.weight_decay = weight_decay
        device = self.parameters[0].device
        self.learning_rate = torch.zeros((), device=device)
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.steps = [torch.zeros((), device=device) for _ in self.parameters]

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Update the parameters in place."""
        with torch.no_grad():
            adamw(
                self.parameters,
                [gradient.contiguous() for gradient in gradients],  # the fused update takes no other layout
                self.first,
                self.second,
                [],
                self.steps,
                fused=True,
                capturable=self.learning_rate.is_cuda,
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=self.learning_rate,
                weight_decay=self.weight_decay,
                eps=EPSILON,
                maximize=False,
            )

    def tensors(self) -> list[Tensor]:
        """Everything that a step changes."""
        return [*self.parameters, *self.first, *self.second, *self.steps]
