"""Projection and cross-entropy by chunks of logits against float64, its reference's error as the yardstick."""

from collections.abc import Iterator

import pytest
import torch

import basedbench.kernels.linear_cross_entropy_wide_triton as module
from basedbench.kernels import linear_cross_entropy as public
from basedbench.kernels.linear_cross_entropy import reference
from basedbench.kernels.linear_cross_entropy_wide_triton import (
    chunk_of,
    forward_operator,
    gradient_operator,
    linear_cross_entropy,
    supported,
)
from tests.kernels.interpreted_bfloat16 import repaired
from tests.kernels.triton.test_linear_cross_entropy import (
    LEAST,
    a_nan_spoils_what_it_touches,
    both,
    second_derivatives_are_refused,
)
from tests.kernels.triton.test_linear_cross_entropy import inputs as narrow_inputs

SHAPES = [(1, 16, 64), (17, 24, 101), (40, 30, 4500)]
GPU_SHAPES = [(1, 1024, 50257), (1000, 768, 8191), (4097, 1024, 8192), (2048, 513, 50264), (300, 2048, 128256)]


def inputs(shape, dtype, device):
    """With answers as certain as a narrow model's, however wide."""
    x, weight, target = narrow_inputs(shape, torch.float64, device)
    return x.to(dtype), (weight * min(1, 64 / shape[1])).to(dtype), target


@pytest.fixture(params=[(2**30, 2**27), (0, 2**27), (0, 1500)], ids=["kept", "made again", "in chunks"])
def way(request, monkeypatch) -> tuple[int, int]:
    """Slopes kept; logits made once more; of some positions and some words at a time."""
    for name, value in zip(("KEPT", "CHUNK"), request.param, strict=True):
        monkeypatch.setattr(module, name, value)
    return request.param


@pytest.fixture
def dtypes() -> Iterator[tuple[torch.dtype, ...]]:
    """bfloat16 also by the interpreter: the products are PyTorch's."""
    with repaired():
        yield torch.float16, torch.bfloat16


def pytest_generate_tests(metafunc):
    if "shape" in metafunc.fixturenames:
        metafunc.parametrize("shape", [*SHAPES, *(GPU_SHAPES * torch.cuda.is_available())], ids=str)


def test_no_worse_than_the_reference(shape, way, dtypes, device, relative_error):
    if way[1] < 2**20 and shape in GPU_SHAPES:
        pytest.skip("one position or word at a time")
    for dtype in dtypes:
        operands = inputs(shape, dtype, device)
        exact = both(reference, operands[0].double(), operands[1].double(), operands[2])
        ours, theirs = both(linear_cross_entropy, *operands), both(reference, *operands)
        assert torch.equal(ours[1], theirs[1]), dtype  # of the same logits, rounded
        for name, one, other, true in zip(("loss", "hit", "x", "weight"), ours, theirs, exact, strict=True):
            assert one.dtype == other.dtype
            assert relative_error(one, true) <= 2 * relative_error(other, true) + LEAST, (name, dtype)


def test_without_gradients_the_same_loss_and_hits(way, dtypes, device):
    for dtype in dtypes:
        x, weight, target = inputs((17, 24, 101), dtype, device)
        loss, hit, *_ = both(linear_cross_entropy, x, weight, target)
        with torch.no_grad():
            alone, alone_hit = linear_cross_entropy(x, weight, target)
        assert torch.equal(alone, loss)
        assert torch.equal(alone_hit, hit)


def test_gradient_of_one_input_alone(way, device):
    x, weight, target = inputs((17, 24, 101), torch.bfloat16, device)
    _, _, grad_x, grad_weight = both(linear_cross_entropy, x, weight, target)
    slopes = torch.linspace(-1, 2, 17, device=device)
    (alone,) = torch.autograd.grad(linear_cross_entropy(x.requires_grad_(), weight, target)[0], x, slopes)
    assert torch.equal(alone, grad_x)
    (alone,) = torch.autograd.grad(linear_cross_entropy(x.detach(), weight.requires_grad_(), target)[0], weight, slopes)
    assert torch.equal(alone, grad_weight)


def test_a_nearly_certain_answer_has_a_gradient(way, device, relative_error):
    """Its slope, -exp(-15), is lost where it is taken as a difference from one."""
    x, weight = torch.zeros(1, 16, dtype=torch.bfloat16, device=device), torch.zeros(3, 16, device=device).bfloat16()
    x[0, 0], weight[1, 0], weight[:, 1] = 15, 1, 1
    target = torch.tensor([1], device=device)
    exact = both(reference, x.double(), weight.double(), target)
    for one, true in zip(both(linear_cross_entropy, x, weight, target)[2:], exact[2:], strict=True):
        assert relative_error(one, true) < 1e-2


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of the interpreter
def test_of_equal_logits_the_first_word_wins(way, device):
    vocabulary = 4500  # two blocks
    target = torch.tensor([0, 1, 70, 4300, 0, 70, 71, 72, 150, 4499], device=device)
    x, weight = torch.zeros(10, 16, device=device).half(), torch.ones(vocabulary, 16, device=device).half()
    _, hit = linear_cross_entropy(x, weight, target)
    assert hit.nonzero().flatten().tolist() == [0, 4]
    weight[[4499, 4300, 71, 72]] = 2
    _, hit = linear_cross_entropy(x + 1, weight, target)
    assert hit.nonzero().flatten().tolist() == [6]


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of the interpreter
def test_a_nan_logit_spoils_its_position_only(way, device):
    x, weight, _ = inputs((6, 16, 300), torch.bfloat16, device)
    target = (x @ weight.t()).argmax(-1)
    a_nan_spoils_what_it_touches(linear_cross_entropy, x, weight, target)


def test_words_that_cannot_be_are_no_more_than_that(way, device):
    """Logits of -inf count for nothing, even where a block of them comes first."""
    x, weight, _ = inputs((6, 16, 4500), torch.float16, device)
    x[:, 0], weight[:, 0] = 1, 0
    weight[:4300, 0] = float("-inf")
    target = torch.arange(4400, 4406, device=device)
    loss, hit = linear_cross_entropy(x, weight, target)
    exact, exact_hit = reference(x, weight, target)
    torch.testing.assert_close(loss, exact)
    assert torch.equal(hit, exact_hit)


def test_an_unknown_target_gives_nan(way, dtypes, device):
    for dtype in dtypes:
        x, weight, target = inputs((17, 24, 101), dtype, device)
        target[3], target[4] = -100, 101
        loss, hit = linear_cross_entropy(x, weight, target)
        assert loss.isnan().nonzero().flatten().tolist() == [3, 4]
        assert not hit[3:5].any()


@pytest.mark.parametrize(("rows", "width"), [(1, 2**28), (16384, 50264), (16384, 8192), (1000, 200000), (7, 2**25)])
def test_chunks_hold_no_more_than_they_may(rows, width):
    each = chunk_of(rows, width)
    assert 1 <= each <= rows
    assert each == 1 or each * width <= module.CHUNK
    assert each == rows or each < 128 or each % 128 == 0
    assert -(-rows // each) <= -(-rows // max(1, module.CHUNK // width // 128 * 128 or module.CHUNK // width)) + 1


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, True), (torch.float16, True), (torch.float32, False), (torch.float64, False)],
)
def test_what_the_kernels_take(dtype, expected):
    x, weight = torch.zeros(3, 1024, dtype=dtype), torch.zeros(5, 1024, dtype=dtype)
    assert supported(x, weight) == expected
    assert not supported(x[:0], weight)
    assert not supported(x, weight.to(torch.int32))


def test_operators_follow_their_registration(way, device):
    x, weight, target = inputs((17, 24, 101), torch.bfloat16, device)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    torch.library.opcheck(forward_operator, (x, weight, target, True, True))
    torch.library.opcheck(forward_operator, (x.detach(), weight, target, False, True))
    torch.library.opcheck(forward_operator, (x.detach(), weight.detach(), target, False, False))
    saved = forward_operator(x, weight, target, True, True)[2]
    given = [y.detach() for y in (x, weight, target, saved, torch.ones(17, device=device))]
    torch.library.opcheck(gradient_operator, given)


def test_second_derivatives_are_refused(way, device):
    second_derivatives_are_refused(linear_cross_entropy, inputs((17, 24, 101), torch.float16, device))


def test_the_public_function_takes_wide_models_here(device):
    if device.type != "cuda":
        pytest.skip("the public function takes the kernels on CUDA")
    operands = inputs((1000, 1024, 8192), torch.bfloat16, device)
    for one, other in zip(both(public, *operands), both(linear_cross_entropy, *operands), strict=True):
        assert torch.equal(one, other)
