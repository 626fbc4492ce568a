"""The kernel of `row_argmax` against PyTorch's."""

import pytest
import torch

from basedbench.kernels.row_argmax import reference
from basedbench.kernels.row_argmax_triton import operator


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 17), (2, 8192), (5, 20001)])
def test_the_largest_number_of_a_row(randn, device, dtypes, rows, width):
    for dtype in dtypes:
        x = randn(rows, width + 3).to(device, dtype)[:, 3:]
        chosen = torch.full((rows,), -1, device=device)
        operator(x, chosen)
        assert torch.equal(x.gather(1, chosen[:, None]), x.gather(1, reference(x)[:, None]))


def test_ties_and_what_is_no_number(device):
    x = torch.zeros(5, 10000, device=device)
    x[0, 9000] = x[0, 9500] = 1
    x[2] = -torch.inf
    x[3, 40] = torch.nan
    x[4, 9999] = 1
    chosen = torch.full((5,), -1, device=device)
    operator(x, chosen)
    assert chosen.tolist() == [9000, 0, 0, 40, 9999]


def test_registration(device):
    torch.library.opcheck(
        operator, (torch.rand(3, 40, device=device), torch.zeros(3, dtype=torch.int64, device=device))
    )
