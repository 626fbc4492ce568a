"""A seeded source of random tensors for a case.

Never zeros: a product of zeros costs less power, so runs faster.
"""

import math

import torch
from torch import Tensor

from basedbench.config.throughput import Case

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Draw:
    """Tensors for `case` on a device; the same case and seed give the same values, whichever contender asks."""

    def __init__(self, case: Case, seed: int, device: str) -> None:
        self.case, self.device = case, device
        self.dtype = DTYPES[case.dtype]
        self.generator = torch.Generator(device).manual_seed((int(case.problem_id, 16) + seed) % 2**63)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Standard normal, in the case's dtype unless told otherwise."""
        return torch.randn(*shape, generator=self.generator, device=self.device).to(dtype or self.dtype)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform, float32."""
        return torch.rand(*shape, generator=self.generator, device=self.device) * (high - low) + low

    def below(self, bound: int, *shape: int) -> Tensor:
        """Uniform whole numbers from 0 to bound - 1, int64."""
        return torch.randint(bound, shape, generator=self.generator, device=self.device)

    def step_bias(self, width: int) -> Tensor:
        """Mamba's initial step-size bias, float32: its softplus is log-uniform between 0.001 and 0.1."""
        step = self.uniform(math.log(1e-3), math.log(1e-1), width).exp()
        return step + torch.log(-torch.expm1(-step))
