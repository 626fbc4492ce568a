"""The kernels of `add_layer_norm` against float64, beside the reference in the same dtypes."""

import pytest
import torch

from basedbench.kernels import add_layer_norm as public
from basedbench.kernels.add_layer_norm import reference
from basedbench.kernels.add_layer_norm_triton import _add_norm, add_layer_norm
from basedbench.kernels.draws import Draws
from basedbench.kernels.row_walks import Walk

# Beyond twice the reference's own error: what is left where the reference happens to be exact.
FLOOR = {torch.float32: 2e-7, torch.float16: 2e-4, torch.bfloat16: 2e-3}
KEEP = 0.75


def inputs(randn, rows, width, dtype, device, *, residual=True, bias=True, parameters=None):
    """h, residual, weight, bias."""
    shapes = [(rows, width), (rows, width) if residual else None, (width,), (width,) if bias else None]
    dtypes = [dtype, parameters or dtype, parameters or dtype, parameters or dtype]
    return [s and (randn(*s) + 0.5).to(device, d) for s, d in zip(shapes, dtypes, strict=True)]


def outputs_and_gradients(function, tensors, signs, **options):
    leaves = [x.detach().clone().requires_grad_() if x is not None else None for x in tensors]
    y, r = function(*leaves, **options)
    grads = torch.autograd.grad(
        (y.double() * signs[0].double()).sum() + (r.double() * signs[1].double()).sum(),
        [x for x in leaves if x is not None],
    )
    return [y.detach(), r.detach(), *grads]


def compare(randn, relative_error, tensors, **options):
    signs = [randn(*tensors[0].shape).sign().to(tensors[0].device) for _ in range(2)]
    exact_tensors = [None if x is None else x.double() for x in tensors]
    exact = outputs_and_gradients(reference, exact_tensors, signs, **{**options, "dtype": None})
    expected = outputs_and_gradients(reference, tensors, signs, **options)
    ours = outputs_and_gradients(add_layer_norm, tensors, signs, **options)
    for mine, theirs, true in zip(ours, expected, exact, strict=True):
        assert mine.dtype == theirs.dtype
        assert relative_error(mine, true) <= 2 * relative_error(theirs, true) + FLOOR[mine.dtype]


@pytest.mark.parametrize(
    ("rows", "width"), [(1, 64), (17, 48), (1000, 32), (130, 112), (65, 128), (9, 256)], ids=lambda x: str(x)
)
def test_outputs_and_gradients(randn, relative_error, device, dtypes, rows, width):
    for dtype in dtypes:
        compare(randn, relative_error, inputs(randn, rows, width, dtype, device))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dropout", [True, False])
def test_every_combination(randn, relative_error, device, dtypes, residual, center, dropout):
    for dtype in dtypes:
        tensors = inputs(randn, 37, 48, dtype, device, residual=residual, bias=center)
        kept = (randn(37, 48) < 0.5).to(device) if dropout else None
        compare(randn, relative_error, tensors, center=center, kept_xD=kept, keep=KEEP if dropout else 1.0)


@pytest.mark.parametrize("width", [2, 48, 112, 128])
def test_masks_drawn_by_the_kernel_are_those_of_the_reference(randn, device, width):
    """Outputs and gradients, bit by bit those with the mask given."""
    tensors = inputs(randn, 37, width, torch.float32, device)
    signs = [randn(37, width).sign().to(device) for _ in range(2)]
    draws = Draws(2**40 + 17, torch.tensor(2**33 + 5, device=device))
    mine, theirs = (
        outputs_and_gradients(add_layer_norm, tensors, signs, kept_xD=kept, keep=KEEP)
        for kept in (draws, draws.kept(tensors[0], KEEP))
    )
    for drawn, given in zip(mine, theirs, strict=True):
        torch.testing.assert_close(drawn, given, rtol=1e-6, atol=1e-6)
    assert torch.equal(mine[1], theirs[1])


def test_half_precision_mixer_on_a_float32_stream(randn, relative_error, device, dtypes):
    """What autocast brings: y and r are float32, the gradient of h goes back in its own dtype."""
    for dtype in dtypes[1:]:
        tensors = inputs(randn, 33, 64, dtype, device, parameters=torch.float32)
        compare(randn, relative_error, tensors)
        compare(randn, relative_error, tensors, dtype=dtype)


@pytest.mark.parametrize("ahead", [1, 3])
def test_more_tiles_than_programs(randn, relative_error, device, monkeypatch, ahead):
    walk = Walk(3, {"BLOCK_D": 64, "ROWS": 16, "AHEAD": ahead, "num_warps": 2})
    monkeypatch.setattr("basedbench.kernels.add_layer_norm_triton.walk_of_norm", lambda *shape: walk)
    compare(randn, relative_error, inputs(randn, 300, 64, torch.float32, device))


def test_only_one_output_used(randn, device):
    tensors = inputs(randn, 5, 48, torch.float32, device)
    for index in (0, 1):
        leaves = [[x.clone().requires_grad_() for x in tensors] for _ in range(2)]
        grads = []
        for function, leaf in zip((add_layer_norm, reference), leaves, strict=True):
            used = function(*leaf)[index]
            grads.append(torch.autograd.grad(used.square().sum(), leaf, allow_unused=True))
        for mine, theirs in zip(*grads, strict=True):
            expected = torch.zeros_like(mine) if theirs is None else theirs
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_nothing_is_read_beyond_the_rows_and_everything_is_written(randn, device, monkeypatch):
    """Rows of NaN around the inputs, NaN in every new buffer."""
    monkeypatch.setattr(torch, "empty_like", lambda x, **k: torch.full_like(x, torch.nan, **k))
    rows, width = 17, 48
    padded = [(randn(rows + 64, width)).to(device, torch.float32) for _ in range(2)]
    for x in padded:
        x[:32] = x[32 + rows :] = torch.nan
    h, residual = (x[32 : 32 + rows].requires_grad_() for x in padded)
    weight, bias = (torch.rand(width, device=device, requires_grad=True) for _ in range(2))
    y, r = add_layer_norm(h, residual, weight, bias)
    grads = torch.autograd.grad(y.sum() + r.square().sum(), [h, residual, weight, bias])
    for x in (y, r, *grads):
        assert torch.isfinite(x).all()


def test_shapes_and_strides(randn, device):
    h, weight, bias = (randn(*shape).to(device, torch.float32) for shape in [(3, 5, 64), (64,), (64,)])
    for view in (h.transpose(0, 1), h[:, ::2], h[:0]):
        stream = torch.ones_like(view)
        ours, expected = add_layer_norm(view, stream, weight, bias), reference(view, stream, weight, bias)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_registration(randn, device):
    h, residual, weight, bias = (x.requires_grad_() for x in inputs(randn, 5, 16, torch.float32, device))
    kept = (randn(5, 16) < 0).to(device)
    steps = torch.tensor(3, device=device)
    for arguments in [(h, residual, None, None), (h, None, kept, None), (h, None, None, None), (h, None, None, steps)]:
        torch.library.opcheck(_add_norm, (*arguments, weight, bias, 0, KEEP, 1e-5, True, None))


def test_the_public_function_takes_the_kernels_on_cuda(randn, device):
    tensors = inputs(randn, 5, 16, torch.float32, device)
    tensors[2].requires_grad_()
    name = type(public(*tensors)[0].grad_fn).__name__
    assert ("add_norm" in name) == (device.type == "cuda")
