"""Rows of a table, dropout and norm in one pass against the two operators, in float64 and in the same dtype."""

from importlib import import_module

import pytest
import torch

from basedbench.kernels import embedding_norm_triton
from basedbench.kernels.asked import questions_at
from basedbench.kernels.block_boundary_triton import block_boundary, last_boundary
from basedbench.kernels.draws import Draws
from basedbench.kernels.embedding import sorted_places
from basedbench.kernels.embedding_norm_triton import embedding_norm as by_triton

reference = import_module("basedbench.kernels.embedding_norm").reference
FLOOR = {torch.float32: 3e-7, torch.float16: 4e-4, torch.bfloat16: 3e-3}
VOCABULARY, LENGTH = 37, 11


def embedding_norm(*args, **options):
    y, r, rows = by_triton(*args, **options)
    assert rows is None
    return y, r


def outputs_and_gradients(function, tokens, tensors, signs, **options):
    table, weight, bias = leaves = [None if x is None else x.detach().clone().requires_grad_() for x in tensors]
    y, r = function(tokens, table, (weight, bias), **options)
    total = (y.double() * signs[0].double()).sum() + (r.double() * signs[1].double()).sum()
    return [y.detach(), r.detach(), *torch.autograd.grad(total, [x for x in leaves if x is not None])]


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("width", [48, 128])
def test_outputs_and_gradients(randn, relative_error, device, dtypes, width, is_sorted, dropped, center):
    data = torch.randint(VOCABULARY, (7, LENGTH), generator=torch.Generator().manual_seed(0)).to(device)
    places = sorted_places([(data[:4].view(1, -1), 4), (data[4:].view(1, -1), 3)], VOCABULARY) if is_sorted else None
    if places is not None:
        places.cursor.fill_(4)
    tokens = data[4:]
    options = {"center": center, "keep": 0.75 if dropped else 1.0}
    options["kept_xD"] = Draws(3, torch.tensor(5, device=device)) if dropped else None
    for dtype in dtypes:
        table, weight = randn(VOCABULARY, width).to(device, dtype), (randn(width) + 1).to(device, dtype)
        tensors = [table, weight, randn(width).to(device, dtype) if center else None]
        signs = [randn(3, LENGTH, width).sign().to(device) for _ in range(2)]
        exact = outputs_and_gradients(
            reference, tokens, [None if x is None else x.double() for x in tensors], signs, **options
        )
        theirs = outputs_and_gradients(reference, tokens, tensors, signs, **options)
        ours = outputs_and_gradients(
            embedding_norm, tokens, tensors, signs, places=places, dtype=None, eps=1e-5, **options
        )
        for mine, other, true in zip(ours, theirs, exact, strict=True):
            assert mine.dtype == other.dtype
            assert relative_error(mine, true) <= 2 * relative_error(other, true) + FLOOR[mine.dtype]


def test_half_precision_outputs_of_a_float32_table(randn, device, dtypes):
    tokens = torch.randint(VOCABULARY, (5,), device=device)
    table, weight = randn(VOCABULARY, 48).to(device, torch.float32), torch.ones(48, device=device)
    options = {"eps": 1e-5, "keep": 1.0, "kept_xD": None, "center": False, "dtype": dtypes[1], "places": None}
    y, r = embedding_norm(tokens, table, (weight, None), **options)
    assert (y.dtype, r.dtype) == (dtypes[1], torch.float32)
    assert torch.equal(r, table[tokens])


def test_a_float32_stream_of_a_narrow_table(randn, relative_error, device, dtypes):
    """As the language models have it; the table's gradient in its own dtype."""
    tokens = torch.randint(VOCABULARY, (3, 5), generator=torch.Generator().manual_seed(1)).to(device)
    dtype = dtypes[-1]
    tensors = [randn(VOCABULARY, 48).to(device, dtype), (randn(48) + 1).to(device, dtype), None]
    signs = [randn(3, 5, 48).sign().to(device) for _ in range(2)]
    options = {"center": False, "dtype": dtype, "places": None, "keep": 1.0, "kept_xD": None, "eps": 1e-5}
    ours, theirs = (
        outputs_and_gradients(function, tokens, tensors, signs, stream=torch.float32, **options)
        for function in (embedding_norm, reference)
    )
    assert torch.equal(ours[1], tensors[0][tokens].float())
    assert [x.dtype for x in ours] == [dtype, torch.float32, dtype, dtype]
    for mine, other in zip(ours, theirs, strict=True):
        assert relative_error(mine, other.double()) <= 2 * torch.finfo(mine.dtype).eps


@pytest.mark.parametrize("index", [0, 1])
def test_only_one_output_used(randn, device, index):
    tokens = torch.randint(VOCABULARY, (3, 5), device=device)
    table, weight, bias = (
        randn(*s).to(device, torch.float32).requires_grad_() for s in [(VOCABULARY, 48), (48,), (48,)]
    )
    options = {"eps": 1e-5, "keep": 1.0, "kept_xD": None, "center": True, "dtype": None, "places": None}
    mine, theirs = (
        torch.autograd.grad(function(tokens, table, (weight, bias), **options)[index].square().sum(), table)[0]
        for function in (embedding_norm, reference)
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_an_unknown_token_has_no_row(randn, device):
    """NaN for it alone, in tiles of several tokens."""
    table, weight = randn(5, 12).to(device, torch.float32), torch.ones(12, device=device)
    tokens = torch.tensor([[4, 5], [-1, 0]], device=device)
    options = {"eps": 1e-5, "keep": 1.0, "kept_xD": None, "center": False, "dtype": None, "places": None}
    for found in embedding_norm(tokens, table, (weight, None), **options):
        assert found[0, 1].isnan().all()
        assert found[1, 0].isnan().all()
        assert found[[0, 1], [0, 1]].isfinite().all()


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize("asked", [True, False])
def test_an_unwritten_stream_is_the_written_one(randn, relative_error, device, dtypes, asked, dropped, center):
    """Through the boundary that reads it, outputs and gradients; to the last bit but for what dropout multiplies.

    And for the table's gradient: that of an unwritten stream comes in half precision, as y's does.
    """
    width = 48
    tokens = torch.randint(VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(2)).to(device)
    positions = torch.stack([torch.randperm(LENGTH)[:4] for _ in range(3)]).to(device) if asked else None
    leaves = [randn(VOCABULARY, width), randn(width) + 1, randn(3, LENGTH, width), *(randn(width) for _ in range(3))]
    signs = [randn(3, LENGTH, width).sign().to(device) for _ in range(3)]
    options = {"keep": 0.75 if dropped else 1.0, "center": center, "dtype": dtypes[-1], "eps": 1e-5, "places": None}
    options["kept_xD"] = Draws(3, torch.tensor(5, device=device)) if dropped else None

    def run(written):
        table, weight, h, *parameters = given = [
            x.to(device, torch.float32, copy=True).requires_grad_() for x in leaves
        ]
        x, r, rows = by_triton(tokens, table, (weight, None), written=written, **options)
        assert written == (rows is None)
        assert written or r.untyped_storage().nbytes() == r.element_size()
        first = tuple(parameters[:2]) if center else None
        boundary = (x.float() + h).to(dtypes[-1]), r, (parameters[2], None)
        common = {"rows": rows, "first": first, "center": center, "dtype": dtypes[-1]}
        if asked:
            y, at, s = last_boundary(*boundary, questions_at(positions, LENGTH), **common)
            outputs = [y, at.x_BKD, s]
        else:
            outputs = list(block_boundary(*boundary, **common))
        total = sum((y.float() * sign[:, : y.shape[1]]).sum() for y, sign in zip(outputs, signs, strict=False))
        used = given if center else [*given[:3], given[5]]
        return [*outputs, *torch.autograd.grad(total, used)]

    of_table = 3 if asked else 2
    for index, (mine, theirs) in enumerate(zip(run(False), run(True), strict=True)):
        if index == of_table:
            assert 0 < relative_error(mine, theirs.double()) <= torch.finfo(dtypes[-1]).eps
        elif dropped:  # x * scale + h is rounded once
            spacing = torch.finfo(mine.dtype).eps
            torch.testing.assert_close(mine, theirs, rtol=4 * spacing, atol=16 * spacing)
        else:
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize(("width", "programs"), [(48, 3), (128, 3), (48, 2048)])
def test_the_backward_by_places_of_an_unwritten_stream(
    randn, relative_error, device, dtypes, monkeypatch, width, programs, dropped, center
):
    """Against float64, for a token with many places and one with none; only the second batch's rows count.

    With a program a token, as of few words, and with a dozen, as of many.
    """
    monkeypatch.setattr(embedding_norm_triton, "PROGRAMS", programs)
    data = torch.randint(1, VOCABULARY, (7, LENGTH), generator=torch.Generator().manual_seed(4)).to(device)
    data[5:, :7] = 3
    places = sorted_places([(data[:4].view(1, -1), 4), (data[4:].view(1, -1), 3)], VOCABULARY)
    places.cursor.fill_(4)
    leaves = randn(VOCABULARY, width), randn(width) + 1, randn(width)
    tensors = [x.to(device, torch.float32) for x in leaves[: 3 if center else 2]]
    signs = [randn(3, LENGTH, width).sign().to(device) for _ in range(2)]
    options = {"center": center, "keep": 0.75 if dropped else 1.0, "eps": 1e-5}
    options["kept_xD"] = Draws(3, torch.tensor(5, device=device)) if dropped else None

    def gradients(function, leaf_dtype, **more):
        given = [x.to(leaf_dtype, copy=True).requires_grad_() for x in tensors]
        y, r, *_ = function(data[4:], given[0], (*given[1:], *[None] * (3 - len(given))), **options, **more)
        total = [y.to(signs[0].dtype), r.to(signs[0].dtype)]
        return torch.autograd.grad(total, given, signs)

    exact = gradients(reference, torch.float64)
    for dtype in dtypes:
        ours = gradients(by_triton, torch.float32, places=places, dtype=dtype, written=False)
        for mine, true in zip(ours, exact, strict=True):
            assert mine.dtype == torch.float32
            assert relative_error(mine, true) <= FLOOR[torch.float32]
        again = gradients(by_triton, torch.float32, places=places, dtype=dtype, written=False)
        assert all(map(torch.equal, ours, again))
        assert not ours[0][0].any()


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize("width", [48, 64])
def test_no_number_in_the_table_is_none_in_its_gradients(device, width, dropped, center):
    """A run whose embedding is spoilt is seen to be."""
    tokens = torch.arange(12, device=device).view(1, 12)
    places = sorted_places([(tokens, 1)], VOCABULARY)
    table = torch.ones(VOCABULARY, width, device=device)
    table[5] = float("nan")
    given = [x.requires_grad_() for x in (table, torch.ones(width, device=device), torch.zeros(width, device=device))]
    given = given if center else given[:2]
    drawn = {"kept_xD": Draws(3, torch.tensor(5, device=device)) if dropped else None, "keep": 0.75 if dropped else 1.0}
    norm = (*given[1:], *[None] * (3 - len(given)))
    options = {"places": places, "dtype": None, "written": False, "eps": 1e-5, "center": center, **drawn}
    y, *_ = by_triton(tokens, given[0], norm, **options)
    of_table, of_gain, *_ = torch.autograd.grad(y.sum(), given)
    assert of_gain.isnan().sum() >= width // 2  # all but those that dropout hides
    assert of_table[5].isnan().any()
    assert not of_table[6:].isnan().any()
