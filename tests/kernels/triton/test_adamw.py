"""The AdamW kernel against float64 and against PyTorch's own, over tensors of awkward sizes."""

from contextlib import nullcontext

import pytest
import torch

from basedbench.checking.adapters import of_adamw
from basedbench.checking.operators import arguments_of, widened
from basedbench.checking.problems import Problem
from basedbench.kernels.adamw import ALIGNMENT, Coefficients, Moments, offsets, reference
from basedbench.kernels.adamw_triton import adamw_step
from basedbench.timing.errors import compare
from tests.kernels.interpreted_bfloat16 import repaired
from tests.kernels.triton.conftest import interpreted

SHAPES = [(1,), (17, 48), (ALIGNMENT,), (130, 24), (3, ALIGNMENT + 1)]
COEFFICIENTS = Coefficients(0.9, 0.999, 1e-8, 0.1)


def flat(tensors, dtype, device):
    places = offsets([t.numel() for t in tensors])
    buffer = torch.full((places[-1],), torch.nan, dtype=dtype, device=device)
    for tensor, start in zip(tensors, places, strict=False):
        buffer[start : start + tensor.numel()] = tensor.to(device, dtype).flatten()
    return buffer


def views(buffer, shapes):
    places = offsets([torch.Size(s).numel() for s in shapes])
    return [buffer[a : a + torch.Size(s).numel()].view(s) for a, s in zip(places, shapes, strict=False)]


@pytest.mark.parametrize("copied", [None, torch.float16, torch.bfloat16])
def test_steps_follow_float64_and_pytorch(randn, relative_error, device, dtypes, copied):
    if copied not in (None, *dtypes):
        pytest.skip("the interpreter does not round to bfloat16 as the hardware does")
    shapes = [torch.Size(s) for s in SHAPES]
    values = [randn(*s).double() for s in shapes]
    buffer, zeros = flat(values, torch.float32, device), flat([v * 0 for v in values], torch.float32, device)
    copy = None if copied is None else torch.full_like(buffer, torch.nan, dtype=copied)
    none = torch.zeros((), dtype=torch.int64, device=device)
    ours = Moments(buffer, zeros.clone(), zeros.clone(), none, copy)
    exact = Moments(*(t.double() for t in (buffer, zeros, zeros)), none.clone())
    theirs = [v.float().to(device).requires_grad_() for v in values]
    optimizer = torch.optim.AdamW(theirs, lr=0.02, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    rate = torch.tensor(0.02, device=device)
    for _ in range(4):
        gradients = [[randn(*s).float().to(device)] for s in shapes]
        gradients[1].append(gradients[1][0].half())
        gradients[3].append(gradients[3][0].mT.contiguous().mT)
        for tensor, terms in zip(theirs, gradients, strict=True):
            tensor.grad = sum(term.float() for term in terms)
        optimizer.step()
        reference([[t.double() for t in terms] for terms in gradients], exact, rate.double(), COEFFICIENTS)
        adamw_step(gradients, ours, rate, COEFFICIENTS)
        for steps in (ours.steps, exact.steps):
            steps.add_(1)
    for mine, right, other in zip(views(buffer, shapes), views(exact.parameters, shapes), theirs, strict=True):
        assert relative_error(mine, right) <= 2 * relative_error(other.detach(), right) + 1e-7
    gaps = torch.ones_like(buffer, dtype=torch.bool)
    for view in views(gaps, shapes):
        view.fill_(False)
    assert buffer[gaps].isnan().all()
    if copy is not None:
        assert torch.equal(copy.nan_to_num(7), buffer.to(copied).nan_to_num(7))


def test_the_problem_of_basedbench_check_is_right(device):
    """The kernel reads and writes what is between two tensors, too."""
    given = arguments_of(Problem("adamw_step", "fwd", "fp32", 17, ()), str(device))
    same, truth = (results(reference, arguments) for arguments in (given, widened(given)))
    with repaired() if interpreted else nullcontext():
        finding = compare(results(adamw_step, given), same, truth, "fp32", 17)
    assert finding.right, finding


def results(function, given):
    return {str(index): x for index, x in enumerate(of_adamw(function)(**given))}
