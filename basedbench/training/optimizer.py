"""AdamW over plain tensors: its whole state can be copied, and its step recorded in a CUDA graph."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from basedbench.kernels.adamw import Coefficients, Moments, adamw_step, offsets

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class AdamW:
    """Decoupled weight decay on every parameter alike (arXiv 1711.05101), as the recipe has it.

    On a GPU the parameters move into one flat buffer, and `copies` are the same in `copy_dtype`, kept up to date by
    the step. The learning rate is a tensor on the device: changing it needs neither a new graph nor the host to wait.
    So is `steps`, the number of steps taken: adding to it is left to the caller, who counts more in the same launch.
    """

    def __init__(
        self, parameters: Sequence[Tensor], weight_decay: float, copy_dtype: torch.dtype | None = None
    ) -> None:
        self.parameters = list(parameters)
        self.weight_decay = weight_decay
        device = self.parameters[0].device
        self.learning_rate = torch.zeros((), device=device)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        self.copies: list[Tensor] = []
        self._moments = self._flat(copy_dtype) if self.parameters[0].is_cuda else None
        if self._moments is None:
            self._first = [torch.zeros_like(p) for p in self.parameters]
            self._second = [torch.zeros_like(p) for p in self.parameters]
            self._cpu_steps = [torch.zeros((), device=device) for _ in self.parameters]

    def step(self, gradients: Sequence[Sequence[Tensor]]) -> None:
        """Update the parameters in place. `gradients` are, for each, the terms that add up to its gradient."""
        with torch.no_grad():
            if self._moments is None:
                self._on_cpu([sum(terms[1:], terms[0]) for terms in gradients])
            else:
                coefficients = Coefficients(*BETAS, EPSILON, self.weight_decay)
                adamw_step(gradients, self._moments, self.learning_rate, coefficients)

    def tensors(self) -> list[Tensor]:
        """Everything that a step changes."""
        if self._moments is None:
            return [*self.parameters, *self._first, *self._second, *self._cpu_steps, self.steps]
        return [buffer for buffer in self._moments if buffer is not None]

    def _flat(self, copy_dtype: torch.dtype | None) -> Moments:
        """The buffers, with the parameters made views of theirs."""
        places = offsets([p.numel() for p in self.parameters])
        flat = self.parameters[0].new_zeros(places[-1]).detach()
        copy = None if copy_dtype is None else flat.to(copy_dtype)
        for parameter, start in zip(self.parameters, places, strict=False):
            part = slice(start, start + parameter.numel())
            flat[part] = parameter.detach().flatten()
            parameter.data = flat[part].view(parameter.shape)
            if copy is not None:
                copy[part] = flat[part]
                self.copies.append(copy[part].view(parameter.shape).requires_grad_())
        return Moments(flat, torch.zeros_like(flat), torch.zeros_like(flat), self.steps, copy)

    def _on_cpu(self, gradients: Sequence[Tensor]) -> None:
        adamw(
            self.parameters,
            [gradient.contiguous() for gradient in gradients],  # the fused update takes no other layout
            self._first,
            self._second,
            [],
            self._cpu_steps,
            fused=True,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            eps=EPSILON,
            maximize=False,
        )
