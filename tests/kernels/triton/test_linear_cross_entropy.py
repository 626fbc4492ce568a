"""The fused projection and cross-entropy against float64, its reference's error as the yardstick."""

from collections.abc import Iterator

import pytest
import torch
import triton
from torch import Tensor

import basedbench.kernels.linear_cross_entropy_triton as module
from basedbench.kernels import linear_cross_entropy as public
from basedbench.kernels.linear_cross_entropy import reference
from basedbench.kernels.linear_cross_entropy_triton import (
    FINISHED,
    finish_plan,
    forward_operator,
    gradient_operator,
    linear_cross_entropy,
    padded,
    shares,
    supported,
)
from tests.kernels.interpreted_bfloat16 import repaired

SHAPES = [(1, 16, 64), (17, 24, 101), (128, 64, 256), (130, 192, 200)]
LESS = [(130, 48, 200)]  # as its neighbours
GPU_SHAPES = [
    (1000, 64, 8192),
    (4097, 64, 8191),
    (1024, 128, 8192),
    (16384, 64, 8192),
    (16384, 256, 8192),
    (4097, 256, 8191),
    (33, 256, 50257),
    (1000, 192, 8192),
    (130, 100, 512),
]
SLOWER = [pytest.param(width, marks=pytest.mark.slow) for width in (24, 128, 192, 256)]
LEAST = 1e-7  # of the norm of the exact value: what the sums' order may change


@pytest.fixture(autouse=True, params=["many", "few"])
def kernels(request, monkeypatch) -> str:
    """The shapes are small here: half precision takes the kernels of many positions, or all those of few."""
    monkeypatch.setattr(module, "FEW", 0 if request.param == "many" else 2**30)
    monkeypatch.setattr(module.pairs, "WIDTHS", ())  # test_linear_cross_entropy_pairs
    return request.param


@pytest.fixture
def dtypes(kernels) -> Iterator[tuple[torch.dtype, ...]]:
    """bfloat16 also by the interpreter, for its kernels differ; what is slow there, each once of what differs less.

    float32 has the same kernels for few positions and many.
    """
    with repaired():
        if torch.cuda.is_available():
            yield torch.float32, torch.float16, torch.bfloat16
        else:
            yield (torch.float32, torch.bfloat16) if kernels == "many" else (torch.float16, torch.bfloat16)


def inputs(shape, dtype, device, scale=1.0):
    """Weights as of a trained head: a third of the positions answer right, some of those with certainty."""
    N, D, V = shape
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(V, (N,), generator=generator)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64) * scale / D**0.5
    x[::3] += weight[target[::3]] * torch.linspace(0.1, 1, len(x[::3])).unsqueeze(-1)
    return x.to(device, dtype), weight.to(device, dtype), target.to(device)


def both(function, x, weight, target) -> list[Tensor]:
    """Loss, hits and gradients under an uneven gradient of the loss."""
    x, weight = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    loss, hit = function(x, weight, target)
    slopes = torch.linspace(-1, 2, len(loss), dtype=loss.dtype, device=loss.device)
    return [loss.detach(), hit, *torch.autograd.grad(loss, (x, weight), slopes)]


def a_nan_spoils_what_it_touches(function, x, weight, target) -> None:
    """First in a position of six, which all answer right, then in a word."""
    x[2, 5] = float("nan")
    loss, hit = function(x, weight, target)
    assert loss.isnan().tolist() == [False, False, True, False, False, False]
    assert hit.tolist() == [True, True, False, True, True, True]
    x[2], weight[target[0]] = 0, float("nan")
    loss, hit = function(x, weight, target)
    assert loss.isnan().all()
    assert not hit.any()


def second_derivatives_are_refused(function, operands) -> None:
    """Of the gradient by either input, whether or not the other one has one."""
    x, weight, target = operands
    for by_x, by_weight in ((True, True), (True, False), (False, True)):
        leaves = [one.detach().clone().requires_grad_(by) for one, by in ((x, by_x), (weight, by_weight))]
        asked = [leaf for leaf in leaves if leaf.requires_grad]
        first = torch.autograd.grad(function(*leaves, target)[0].sum(), asked)
        again = torch.autograd.grad(function(*leaves, target)[0].sum(), asked, create_graph=True)
        for one, other in zip(first, again, strict=True):
            assert torch.equal(one, other)
            with pytest.raises(RuntimeError, match="first derivatives only"):
                torch.autograd.grad(other.square().sum(), asked, retain_graph=True, allow_unused=True)


def pytest_generate_tests(metafunc):
    if "shape" in metafunc.fixturenames:
        less = [pytest.param(shape, marks=pytest.mark.slow) for shape in LESS]
        metafunc.parametrize("shape", [*SHAPES, *less, *(GPU_SHAPES * torch.cuda.is_available())], ids=str)


def test_no_worse_than_the_reference(shape, dtypes, device, relative_error):
    for dtype in dtypes:
        operands = inputs(shape, dtype, device)
        exact = both(reference, operands[0].double(), operands[1].double(), operands[2])
        ours, theirs = both(linear_cross_entropy, *operands), both(reference, *operands)
        assert torch.equal(ours[1], exact[1]), dtype
        for name, one, other, true in zip(("loss", "hit", "x", "weight"), ours, theirs, exact, strict=True):
            assert one.dtype == other.dtype
            assert relative_error(one, true) <= 2 * relative_error(other, true) + LEAST, (name, dtype)


@pytest.mark.parametrize(("precision", "most"), [("highest", 1e-6), ("high", 5e-5), ("medium", 2e-2)])
def test_float32_follows_the_precision_of_products(precision, most, device, relative_error):
    operands = inputs((130, 48, 200), torch.float32, device)
    exact = both(reference, operands[0].double(), operands[1].double(), operands[2])
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        ours = both(linear_cross_entropy, *operands)
    finally:
        torch.set_float32_matmul_precision(before)
    errors = [relative_error(one, true) for one, true in zip(ours, exact, strict=True)]
    assert max(errors[0], *errors[2:]) < most, errors


@pytest.mark.parametrize("low", [0.0, -150.0])
def test_words_far_below_the_others(low, dtypes, device, relative_error):
    """The running peak starts with the first words, which here hardly count beside those that follow."""
    for dtype in dtypes:
        x, weight, target = inputs((70, 48, 300), dtype, device)
        x[:, 0], weight[:, 0], weight[:64, 0] = 1, 0, low
        exact = both(reference, x.double(), weight.double(), target)
        ours, theirs = both(linear_cross_entropy, x, weight, target), both(reference, x, weight, target)
        assert torch.equal(ours[1], exact[1]), dtype
        for one, other, true in zip(ours, theirs, exact, strict=True):
            bound = 0 if one.dtype == torch.bool else 2 * relative_error(other, true) + LEAST
            assert one.dtype == torch.bool or relative_error(one, true) <= bound, dtype


@pytest.mark.parametrize("width", [48, 64])
@pytest.mark.parametrize("far", [0, pytest.param(7, marks=pytest.mark.slow)])
def test_one_word_much_longer_than_the_others(width, far, device, relative_error):
    """Orthogonal to all positions but one, it only raises the bound that bfloat16's exponentials are taken from."""
    x, weight, target = inputs((200, width, 256), torch.bfloat16, device)
    x[:, 0], weight[:, 0], weight[5] = 0, 0, 0
    weight[5, 0], target[target == 5] = 1e4, 6
    x[far, 0] = 0.01
    exact = both(reference, x.double(), weight.double(), target)
    with repaired():
        ours = both(linear_cross_entropy, x, weight, target)
    theirs = both(reference, x, weight, target)
    assert torch.equal(ours[1], exact[1])
    for one, other, true in zip(ours, theirs, exact, strict=True):
        if one.is_floating_point():
            assert relative_error(one, true) <= 2 * relative_error(other, true) + LEAST


def test_slopes_without_a_sign_of_their_own(dtypes, device, relative_error):
    """No gradient from some positions, negative ones from some blocks only."""
    slopes = torch.cat([torch.zeros(70), torch.full((60,), 1e-3), torch.full((70,), -2.0)]).to(device)
    for dtype in dtypes:
        operands = inputs((200, 64, 130), dtype, device)

        def gradient(function, x, weight, target):
            weight = weight.clone().requires_grad_()
            loss = function(x, weight, target)[0]
            return torch.autograd.grad(loss, weight, slopes.to(loss.dtype))[0]

        exact = gradient(reference, operands[0].double(), operands[1].double(), operands[2])
        ours, theirs = gradient(linear_cross_entropy, *operands), gradient(reference, *operands)
        assert relative_error(ours, exact) <= 2 * relative_error(theirs, exact) + LEAST, dtype


@pytest.mark.parametrize("index", [pytest.param(0, marks=pytest.mark.slow), -1])
def test_every_output_is_written(index, dtypes, device, monkeypatch):
    """Each buffer holds NaN, or a true hit, before the kernels run."""
    x, weight, target = inputs((130, 48, 200), dtypes[index], device)
    weight = -weight  # no hits
    expected = both(linear_cross_entropy, x, weight, target)
    new_empty, empty_like = Tensor.new_empty, torch.empty_like

    def poison(tensor: Tensor) -> Tensor:
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 1)

    monkeypatch.setattr(Tensor, "new_empty", lambda *args, **options: poison(new_empty(*args, **options)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **options: poison(empty_like(*args, **options)))
    for one, other in zip(both(linear_cross_entropy, x, weight, target), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("width", [64, 512, *SLOWER])
def test_without_gradients_the_same_loss_and_hits(width, dtypes, device, relative_error):
    for dtype in dtypes:
        if dtype == torch.float32 and width > 256:
            continue  # three pieces of a block do not fit on a multiprocessor
        x, weight, target = inputs((70, width, 300), dtype, device)
        exact, exact_hit = reference(x.double(), weight.double(), target)
        theirs, _ = reference(x, weight, target)
        with torch.no_grad():
            loss, hit = linear_cross_entropy(x.requires_grad_(), weight, target)
        assert relative_error(loss, exact) <= 2 * relative_error(theirs, exact) + LEAST, dtype
        assert torch.equal(hit, exact_hit), dtype


def test_gradient_of_one_input_alone(device):
    x, weight, target = inputs((17, 24, 101), torch.float32, device)
    _, _, grad_x, grad_weight = both(linear_cross_entropy, x, weight, target)
    slopes = torch.linspace(-1, 2, 17, device=device)
    (alone,) = torch.autograd.grad(linear_cross_entropy(x.requires_grad_(), weight, target)[0], x, slopes)
    assert torch.equal(alone, grad_x)
    x, weight = x.detach(), weight.requires_grad_()
    (alone,) = torch.autograd.grad(linear_cross_entropy(x, weight, target)[0], weight, slopes)
    assert torch.equal(alone, grad_weight)


def test_of_equal_logits_the_first_word_wins(device):
    """Within a block, across blocks, and across the shares of the vocabulary."""
    vocabulary = 400
    assert shares(1, vocabulary, 64)[0] > 1
    target = torch.tensor([0, 1, 70, 300, 0, 70, 71, 72, 150, 399], device=device)
    x, weight = torch.zeros(10, 16, device=device), torch.ones(vocabulary, 16, device=device)
    _, hit = linear_cross_entropy(x, weight, target)
    assert hit.nonzero().flatten().tolist() == [0, 4]
    weight[[399, 150, 71, 72]] = 2
    _, hit = linear_cross_entropy(x + 1, weight, target)
    assert hit.nonzero().flatten().tolist() == [6]


@pytest.mark.parametrize("width", [16, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("differentiable", [False, True])
def test_of_words_with_equal_weights_the_first_wins(width, differentiable, dtypes, device):
    """Each position's target has a twin later, earlier or nowhere: within a block, in another, in another share."""
    generator = torch.Generator().manual_seed(1)
    pairs = [(3, 5), (63, 64), (7, 390), (128, 191), (130, 255), (200, 201)]
    weight = torch.randn(400, width, generator=generator).sign()
    if device.type == "cuda":  # sums of interpreted products depend on the column: there they must be exact
        weight *= torch.rand(width, generator=generator) + 0.5
    firsts, seconds = zip(*pairs, strict=True)
    weight[list(seconds)] = weight[list(firsts)]
    target = torch.tensor([*firsts, *seconds, 66, 399])
    for dtype in dtypes:
        operands = weight[target].to(device, dtype), weight.to(device, dtype), target.to(device)
        _, hit, _, _ = forward_operator(*operands, differentiable)
        assert hit.tolist() == [True] * 6 + [False] * 6 + [True] * 2, dtype


@pytest.mark.parametrize(
    ("dtype", "width", "trained", "expected"),
    [
        (torch.bfloat16, 16, True, True),
        (torch.bfloat16, 256, True, True),
        (torch.float16, 256, False, True),
        (torch.bfloat16, 257, True, False),
        (torch.bfloat16, 512, False, True),
        (torch.bfloat16, 513, False, False),
        (torch.float32, 128, True, True),
        (torch.float32, 192, True, False),
        (torch.float32, 256, False, True),
        (torch.float32, 512, False, False),
        (torch.float64, 64, False, False),
    ],
)
def test_what_the_kernels_take(dtype, width, trained, expected):
    x, weight = torch.zeros(3, width, dtype=dtype), torch.zeros(5, width, dtype=dtype, requires_grad=trained)
    assert supported(x, weight) == expected
    assert not supported(x[:0], weight)


@pytest.mark.parametrize("width", [16, 33, 64, 128, 256, 384, 512])
@pytest.mark.parametrize("positions", [1, 100, 528, 1056, 2112, 2**20])
def test_all_shares_of_a_program_fit_in_registers(width, positions):
    for count in range(1, 17):
        rows, warps = finish_plan(positions, width, count)
        assert rows in (1, 2, 4, 8, 16)
        assert warps in (1, 2, 4)
        assert rows * triton.next_power_of_2(count) * padded(width) <= warps * FINISHED


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of the interpreter
@pytest.mark.parametrize("index", [0, -1])
def test_a_nan_logit_spoils_its_position_only(index, dtypes, device):
    x, weight, _ = inputs((6, 16, 300), dtypes[index], device)
    target = (x @ weight.t()).argmax(-1)
    a_nan_spoils_what_it_touches(linear_cross_entropy, x, weight, target)


@pytest.mark.parametrize("index", [0, -1])
def test_large_logits_do_not_overflow(index, dtypes, device, relative_error):
    x, weight, target = inputs((70, 64, 300), dtypes[index], device)
    loss, _, *_ = both(linear_cross_entropy, 512 * x, weight, target)
    exact, _ = reference(512 * x.double(), weight.double(), target)
    assert relative_error(loss, exact) < 1e-6


@pytest.mark.parametrize("index", [0, -1])
def test_an_unknown_target_gives_nan(index, dtypes, device):
    x, weight, target = inputs((17, 24, 101), dtypes[index], device)
    target[3], target[4] = -100, 101
    loss, hit = linear_cross_entropy(x, weight, target)
    assert loss.isnan().nonzero().flatten().tolist() == [3, 4]
    assert not hit[3:5].any()


def test_operators_follow_their_registration(device):
    x, weight, target = inputs((17, 24, 101), torch.float32, device)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    torch.library.opcheck(forward_operator, (x, weight, target, True))
    torch.library.opcheck(forward_operator, (x.detach(), weight, target, False))
    for differentiable in (True, False):
        saved, slope = forward_operator(x, weight, target, differentiable)[2:]
        given = [y.detach() for y in (x, weight, target, saved, slope, torch.ones(17, device=device))]
        torch.library.opcheck(gradient_operator, given)


def test_second_derivatives_are_refused(device):
    second_derivatives_are_refused(linear_cross_entropy, inputs((17, 24, 101), torch.float32, device))


def test_compiled_whole(device):
    x, weight, target = inputs((17, 24, 101), torch.float32, device)
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    for one, other in zip(
        both(compiled, x, weight, target), both(linear_cross_entropy, x, weight, target), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("width", [64, 128])
def test_the_public_function_under_autocast_and_compiled(width, device):
    if device.type != "cuda":
        pytest.skip("the public function takes the kernels on CUDA")
    x, weight, target = inputs((1000, width, 8192), torch.float32, device)
    compiled = torch.compile(public, fullgraph=True, backend="aot_eager")
    for function in (public, compiled):
        with torch.autocast("cuda", torch.bfloat16):
            ours = both(function, x, weight, target)
        half = both(linear_cross_entropy, x.bfloat16(), weight.bfloat16(), target)
        for one, other in zip(ours, half, strict=True):
            assert torch.equal(one, other.to(one.dtype))
        for one, other in zip(
            both(function, x, weight, target), both(linear_cross_entropy, x, weight, target), strict=True
        ):
            assert torch.equal(one, other)
