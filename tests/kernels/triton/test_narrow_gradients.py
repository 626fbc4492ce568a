"""Both gradients of a product with few inputs in one pass, against the two products in float64."""

import pytest
import torch

from basedbench.kernels import narrow_gradients_triton as module
from basedbench.kernels import partial_sums_triton, selective_ssm_triton
from basedbench.kernels.narrow_gradients_triton import narrow_gradients
from basedbench.kernels.partial_sums import together
from basedbench.kernels.partial_sums_triton import add_up
from tests.kernels.triton.test_selective_ssm import make_inputs

# Relative errors of results in half precision, which are rounded once, and of sums in float32.
ROUNDED, SUMMED = {torch.float16: 4e-4, torch.bfloat16: 3e-3}, 1e-5
SIZES = [(1, 16, 8), (33, 40, 8), (64, 256, 8), (129, 512, 16), (97, 72, 24), (70, 384, 32), (1000, 128, 16)]


def matrices(randn, device, dtype, tokens, channels, rank, beside=24):
    """dy, x, W and room for dx; x and dx are the first columns of wider matrices, full of NaN there."""
    x, dx = (torch.full((tokens, rank + beside), torch.nan, dtype=dtype, device=device) for _ in range(2))
    x[:, :rank] = randn(tokens, rank)
    dy, weight = randn(tokens, channels).to(device, dtype), randn(channels, rank).to(device, dtype)
    return dy, x[:, :rank], weight, dx


def check(relative_error, dy, x, weight, dx, given):
    """What it writes and returns, for a weight with as many columns as were given or more."""
    rank = weight.shape[1]
    assert module.supported(dy, x, weight, dx[:, :rank])
    found = narrow_gradients(dy, x, weight, dx[:, :rank], given)
    assert (found.dtype, found.shape, found.is_contiguous()) == (given.dtype, given.shape, True)
    error = SUMMED if found.dtype == torch.float32 else ROUNDED[found.dtype]
    assert relative_error(found, (dy.double().t() @ x.double())[:, : given.shape[1]]) <= error
    assert relative_error(dx[:, :rank], dy.double() @ weight.double()) <= ROUNDED[dx.dtype]
    assert dx[:, rank:].isnan().all()
    return found


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_both_gradients(randn, relative_error, device, dtypes, size):
    for dtype in dtypes[1:]:
        dy, x, weight, dx = matrices(randn, device, dtype, *size)
        for given in (weight, weight.float(), weight[:, :-4].contiguous(), weight[:, :5].float()):
            check(relative_error, dy, x, weight, dx, given)


@pytest.mark.parametrize("tokens", [17, 192, 700])
@pytest.mark.parametrize(("channels", "rank"), [(48, 8), (256, 8), (512, 16)])
def test_several_tiles_of_a_program(randn, relative_error, device, dtypes, monkeypatch, channels, rank, tokens):
    """As with many tokens; twice the same numbers."""
    plan = module._plan
    monkeypatch.setattr(module, "_plan", lambda *blocks: (3, *plan(*blocks)[1:]))
    for dtype in dtypes[1:]:
        given = matrices(randn, device, dtype, tokens, channels, rank)
        found = check(relative_error, *given, given[2].float())
        assert torch.equal(found, check(relative_error, *given, given[2].float()))


def test_more_programs_than_have_tokens(randn, relative_error, device, dtypes, monkeypatch):
    """Some have none, one has fewer than the others."""
    monkeypatch.setattr(module, "LEAST", 1)
    for tokens in (0, 9, 270):
        given = matrices(randn, device, dtypes[-1], tokens, 16, 8)
        check(relative_error, *given, given[2])


def test_what_is_left_to_products(randn, relative_error, device, dtypes):
    half = dtypes[-1]
    cases = [(torch.float32, 40, 8, 24), (half, 40, 5, 3), (half, 36, 8, 24), (half, 520, 8, 8), (half, 40, 40, 8)]
    for dtype, channels, rank, beside in [*cases, (half, 40, 8, 3)]:
        dy, x, weight, dx = matrices(randn, device, dtype, 33, channels, rank, beside)
        assert not module.supported(dy, x, weight, dx[:, :rank])
        found = narrow_gradients(dy, x, weight, dx[:, :rank], weight[:, :3].float())
        assert (found.dtype, found.is_contiguous()) == (torch.float32, True)
        error = ROUNDED.get(dtype, 1e-6)
        assert relative_error(found, (dy.double().t() @ x.double())[:, :3]) <= error
        assert relative_error(dx[:, :rank], dy.double() @ weight.double()) <= error
        assert dx[:, rank:].isnan().all()


@pytest.mark.parametrize("rank", [3, 8])
def test_the_sum_waits_for_the_end_of_the_backward(randn, device, dtypes, monkeypatch, rank):
    """In the backward of selective_ssm, together with the convolution's sum; the same numbers."""
    done = []
    monkeypatch.setattr(partial_sums_triton, "add_up", lambda sums: (done.append(len(sums)), add_up(sums)))
    inputs = make_inputs(randn, device, dtypes[-1], 2, 11, 16, 8, rank, True)
    leaves = [x.requires_grad_() for x in inputs]

    def loss():
        with torch.autocast(device.type, dtypes[-1]):
            return selective_ssm_triton.selective_ssm(*leaves).float().square().sum()

    expected, again = torch.autograd.grad(loss(), leaves), loss()
    assert done == [1, 1]
    with together(again):
        found = torch.autograd.grad(again, leaves)
        assert done == [1, 1]
    assert done == [1, 1, 2]
    assert all(map(torch.equal, found, expected))
