"""`embedding` against float64, and its order of summation."""

from importlib import import_module

import pytest
import torch

from basedbench.kernels.embedding_triton import _embedding, embedding

module = import_module("basedbench.kernels.embedding")
reference = module.reference
FLOOR = {torch.float32: 2e-7, torch.float16: 2e-4, torch.bfloat16: 2e-3}


def draw_tokens(count, vocabulary, kind, device):
    tokens = torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(count))
    if kind == "half of one token":
        tokens[::2] = 3
    if kind == "one token":
        tokens[:] = vocabulary - 1
    return tokens.to(device)


@pytest.mark.parametrize("kind", ["uniform", "half of one token", "one token"])
@pytest.mark.parametrize(("count", "vocabulary", "width"), [(1, 5, 48), (64, 5, 32), (129, 40, 64), (1000, 17, 112)])
def test_gradient_of_the_table(randn, relative_error, device, dtypes, count, vocabulary, width, kind):
    tokens = draw_tokens(count, vocabulary, kind, device)
    for dtype in dtypes:
        weight = randn(vocabulary, width).to(device, dtype).requires_grad_()
        dy = randn(count, width).to(device, dtype)
        ours, theirs = embedding(tokens, weight), reference(tokens, weight)
        assert torch.equal(ours, theirs)
        exact = torch.zeros(vocabulary, width, dtype=torch.float64, device=device).index_add_(0, tokens, dy.double())
        mine, other = (torch.autograd.grad(y, weight, dy)[0] for y in (ours, theirs))
        assert mine.dtype == dtype
        assert relative_error(mine, exact) <= 2 * relative_error(other, exact) + FLOOR[dtype]
        assert torch.equal(mine, torch.autograd.grad(embedding(tokens, weight), weight, dy)[0])


def test_rows_without_tokens_are_zeros_and_wide_keys(randn, device, monkeypatch):
    """New buffers hold NaN; 2^15 tokens and more need wider keys, and more programs than the interpreter likes."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    vocabulary = 40 if device.type == "cpu" else 2**15 + 8
    tokens = torch.tensor([[vocabulary - 1, 0], [7, 0]], device=device)
    weight = randn(vocabulary, 8).to(device, torch.float32).requires_grad_()
    (gradient,) = torch.autograd.grad(embedding(tokens, weight).sum(), weight)
    expected = torch.zeros_like(weight).index_add_(0, tokens.flatten(), torch.ones(4, 8, device=device))
    assert torch.equal(gradient, expected)


def test_registration(randn, device):
    weight = randn(7, 16).to(device, torch.float32).requires_grad_()
    torch.library.opcheck(_embedding, (draw_tokens(9, 7, "uniform", device), weight, *[None] * 4))
    tokens = draw_tokens(9, 7, "uniform", device).view(3, 3)
    torch.library.opcheck(_embedding, (tokens, weight, *module.sorted_places([(tokens.view(1, 9), 3)], 7)))


def test_an_unknown_token_has_no_row(randn, device):
    """Reading beyond the table would give some other tensor's numbers."""
    weight = randn(5, 12).to(device, torch.float32)
    tokens = torch.tensor([[4, 5], [-1, 0]], device=device)
    found = embedding(tokens, weight)
    assert torch.equal(found[0, 0], weight[4])
    assert torch.equal(found[1, 1], weight[0])
    assert found[0, 1].isnan().all()
    assert found[1, 0].isnan().all()


def blocks(data):
    """Two batches of three examples each and a tail of two, of eight examples."""
    return [(data[:6].reshape(2, -1), 3), (data[6:].reshape(1, -1), 2)]


@pytest.mark.parametrize("kind", ["uniform", "half of one token"])
def test_batches_sorted_before(randn, relative_error, device, dtypes, kind):
    """Whole batches and a tail; the sums of equal batches are equal bit by bit."""
    vocabulary, length, width = 37, 12, 48
    data = draw_tokens(8 * length, vocabulary, kind, device).view(8, length)
    places = module.sorted_places(blocks(data), vocabulary)
    for dtype in dtypes:
        weight = randn(vocabulary, width).to(device, dtype).requires_grad_()
        for start, size in [(0, 3), (3, 3), (6, 2)]:
            places.cursor.fill_(start)
            tokens, dy = data[start : start + size], randn(size, length, width).to(device, dtype)
            mine, again, other = (
                torch.autograd.grad(function(tokens, weight, *extra), weight, dy)[0]
                for function, extra in [(embedding, (places,)), (embedding, (places,)), (reference, ())]
            )
            rows = dy.double().flatten(0, 1)
            exact = torch.zeros(vocabulary, width, dtype=torch.float64, device=device)
            exact.index_add_(0, tokens.flatten(), rows)
            assert relative_error(mine, exact) <= 2 * relative_error(other, exact) + FLOOR[dtype]
            assert torch.equal(mine, again)


def test_a_tail_at_another_batch_stays_in_its_gradient(randn, device):
    """A tail's step where a whole batch begins: the numbers mean nothing, but are finite."""
    data = draw_tokens(8 * 12, 37, "uniform", device).view(8, 12)
    places = module.sorted_places(blocks(data), 37)
    weight = randn(37, 48).to(device, torch.float32).requires_grad_()
    (gradient,) = torch.autograd.grad(embedding(data[:2], weight, places).sum(), weight)
    assert gradient.isfinite().all()


def test_a_token_that_fills_a_batch_is_not_left_to_one_program(device):
    tokens = torch.full((module.MOST + 1, 1), 5, device=device)
    assert module.sorted_places([(tokens.t(), len(tokens))], 8) is None
    assert module.sorted_places([(tokens[1:].t(), len(tokens) - 1), (tokens[:1], 1)], 8) is not None
