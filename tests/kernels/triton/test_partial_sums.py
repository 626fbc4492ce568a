"""Sums of partial sums against float64."""

import pytest
import torch

from basedbench.kernels import partial_sums_triton
from basedbench.kernels.add_layer_norm_triton import add_layer_norm
from basedbench.kernels.partial_sums import together
from basedbench.kernels.partial_sums_triton import add_up, sum_parts


@pytest.mark.parametrize(("parts", "width"), [(1, 70), (3, 2100), (16, 130), (33, 17), (600, 40), (2100, 21)])
def test_few_and_many_parts(randn, relative_error, device, parts, width):
    partials = randn(parts, width).float().to(device)
    total = sum_parts(partials, torch.float32)
    assert total.shape == (width,)
    assert relative_error(total, partials.double().sum(0)) < 1e-6
    assert torch.equal(total, sum_parts(partials, torch.float32))


def test_several_sums_at_once(randn, relative_error, device, dtypes):
    """Few and many parts, wide and narrow, in several dtypes; each the same bits as by itself."""
    shapes = [(512, 40), (2, 3000), (33, 17), (1, 1), (1025, 20)]
    sums = [(randn(*shape).float().to(device), torch.empty(shape[1], device=device)) for shape in shapes]
    sums[1] = (sums[1][0], sums[1][1].to(dtypes[1]))
    add_up(sums)
    for partials, out in sums:
        assert relative_error(out, partials.double().sum(0)) < (1e-6 if out.dtype == torch.float32 else 1e-3)
        assert torch.equal(out, sum_parts(partials, out.dtype))


def norms(x, weight, bias, other, twice, cast):
    """Two norms; with `twice` they share a weight, with `cast` one of them is not a leaf."""
    y, _ = add_layer_norm(x, None, weight, bias)
    y, _ = add_layer_norm(y, None, weight if twice else other * 1.5 if cast else other, bias * 2)
    return y.square().sum()


@pytest.mark.parametrize(("twice", "cast"), [(False, False), (True, False), (False, True)])
def test_what_autograd_computes_with_is_added_up_at_once(randn, device, monkeypatch, twice, cast):
    """The bias is read twice in all of these, by the second norm behind a product."""
    done = []
    monkeypatch.setattr(partial_sums_triton, "add_up", lambda sums: (done.append(len(sums)), add_up(sums)))
    x, *parameters = (randn(*shape).to(device, torch.float32) for shape in [(9, 16), (16,), (16,), (16,)])
    leaves = [parameter.requires_grad_() for parameter in parameters]
    expected = torch.autograd.grad(norms(x, *leaves, twice, cast), leaves, allow_unused=True)
    assert done == [1, 1]
    loss = norms(x, *leaves, twice, cast)
    with together(loss):
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
    assert done[2:] == [1, 1]
    for mine, right in zip(found, expected, strict=True):
        assert (mine is None and right is None) or torch.equal(mine, right)


def test_a_hook_on_a_leaf_reads_its_whole_gradient(randn, device, monkeypatch):
    done, seen = [], []
    monkeypatch.setattr(partial_sums_triton, "add_up", lambda sums: (done.append(len(sums)), add_up(sums)))
    x, weight = (randn(*shape).to(device, torch.float32) for shape in [(9, 16), (16,)])
    weight.requires_grad_().register_hook(lambda gradient: seen.append(gradient.clone()))
    loss = add_layer_norm(x, None, weight, None)[0].square().sum()
    with together(loss):
        (found,) = torch.autograd.grad(loss, [weight])
        assert done == [1]
    assert torch.equal(seen[0], found)


def test_gradients_of_leaves_are_added_up_behind_the_backward(randn, device, monkeypatch):
    done = []
    monkeypatch.setattr(partial_sums_triton, "add_up", lambda sums: (done.append(len(sums)), add_up(sums)))
    x = randn(9, 16).to(device, torch.float32)
    leaves = [randn(16).to(device, torch.float32).requires_grad_() for _ in range(4)]

    def loss():
        y, _ = add_layer_norm(x, None, leaves[0], leaves[1])
        return add_layer_norm(y, None, leaves[2], leaves[3])[0].square().sum()

    expected, again = torch.autograd.grad(loss(), leaves), loss()
    done.clear()
    with together(again):
        found = torch.autograd.grad(again, leaves)
        assert not done
    assert done == [2]
    assert all(torch.equal(mine, right) for mine, right in zip(found, expected, strict=True))
