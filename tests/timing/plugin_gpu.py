"""Contenders that go wrong on a GPU; loaded by worker processes in tests."""

import torch

from basedbench.contenders import contender
from basedbench.kernels import taylor_attention


@contender("taylor_attention", name="greedy")
def _greedy(q, k, v):
    return torch.empty(2**45, device=q.device)


@contender("taylor_attention", name="asserts")
def _asserts(q, k, v):
    return v[torch.full((1,), 10**6, device=q.device)]


@contender("taylor_attention", name="syncs")
def _syncs(q, k, v):
    return taylor_attention(q, k, v) * (1.0 + 0.0 * q.sum().item())
