"""The cross-entropy's kernels in Gluon against float64, the reference's error as the yardstick."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import basedbench.kernels.linear_cross_entropy_triton as module
from basedbench.kernels import linear_cross_entropy_pairs as pairs
from basedbench.kernels.linear_cross_entropy import reference
from basedbench.kernels.linear_cross_entropy_triton import linear_cross_entropy
from tests.kernels.interpreted_bfloat16 import repaired
from tests.kernels.triton.test_linear_cross_entropy import LEAST, a_nan_spoils_what_it_touches, both, inputs

SHAPES = [(1, 64, 128), (70, 64, 256), (200, 128, 512), (130, 64, 384)]
GPU_SHAPES = [(1000, 64, 8192), (4097, 128, 8192), (1024, 128, 8192), (16384, 64, 8192), (33, 128, 50176)]


@pytest.fixture(autouse=True)
def in_pairs(tensor_maps, monkeypatch) -> Iterator[list[str]]:
    """bfloat16 by the interpreter; the launches of the kernels, which no test may do without."""
    launched: list[str] = []

    def watched(name: str) -> Callable[..., None]:
        launch = getattr(pairs, name)

        def launches(*given: object, **more: object) -> None:
            launched.append(name)
            launch(*given, **more)

        return launches

    for name in ("launch_forward", "launch_weight_gradient"):
        monkeypatch.setattr(pairs, name, watched(name))
    with repaired():
        yield launched
    assert launched


def pytest_generate_tests(metafunc):
    if "shape" in metafunc.fixturenames:
        metafunc.parametrize("shape", [*SHAPES, *(GPU_SHAPES * torch.cuda.is_available())], ids=str)


def held_to_the_reference(relative_error, x: Tensor, weight: Tensor, target: Tensor) -> list[Tensor]:
    exact = both(reference, x.double(), weight.double(), target)
    ours, theirs = both(linear_cross_entropy, x, weight, target), both(reference, x, weight, target)
    assert torch.equal(ours[1], exact[1])
    for name, one, other, true in zip(("loss", "hit", "x", "weight"), ours, theirs, exact, strict=True):
        assert one.dtype == other.dtype
        if name != "hit":
            assert relative_error(one, true) <= 2 * relative_error(other, true) + LEAST, name
    return ours


def test_no_worse_than_the_reference(shape, device, relative_error, in_pairs):
    """In gradients of the loss of both signs, too."""
    held_to_the_reference(relative_error, *inputs(shape, torch.bfloat16, device))
    assert in_pairs == ["launch_forward", "launch_weight_gradient"]


@pytest.mark.parametrize("low", [-400.0, -70.0, 70.0, 150.0])
def test_words_far_from_those_that_exponentials_are_taken_from(low, device, relative_error):
    """Targets are among the later words. Sums over the first share overflow until they are taken from its peak."""
    x, weight, target = inputs((70, 64, 512), torch.bfloat16, device)
    x[:, 0], weight[:, 0], weight[:256, 0] = 1, 0, low
    held_to_the_reference(relative_error, x, weight, target.clamp_min(260))


@pytest.mark.parametrize("height", [0.0, -150.0, 150.0])
def test_one_target_for_all(height, device, relative_error):
    """No other word's logit is known before the sums."""
    x, weight, target = inputs((70, 128, 256), torch.bfloat16, device)
    x[:, 0], weight[:, 0] = 1, height
    held_to_the_reference(relative_error, x, weight, torch.full_like(target, 77))


@pytest.mark.parametrize("height", [0.0, 150.0])
@pytest.mark.parametrize("long", [(130, 64, 1280), (300, 64, 128), (70, 128, 640)], ids=str)
def test_shares_of_more_blocks_than_the_ring_has(long, height, device, relative_error, monkeypatch):
    """Of words in the forward, of positions in the gradient; those that begin again too, and of two blocks."""
    monkeypatch.setattr(module, "MULTIPROCESSORS", 1)
    x, weight, target = inputs(long, torch.bfloat16, device)
    x[:, 0], weight[:, 0] = 1, 0
    weight[long[2] - 10 :, 0] = height
    held_to_the_reference(relative_error, x, weight, target.clamp_max(long[2] - 20))


@pytest.mark.parametrize("gap", [10.0, 20.0])  # beyond, float64 does not tell
def test_sure_answers(gap, device, relative_error):
    """The other words' sum is precise however small it is beside the target's."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randperm(512, generator=generator)[:70]
    weight, x = torch.randn(512, 128, generator=generator) / 10, torch.zeros(70, 128)
    here = torch.arange(70)
    weight[:, :70], x[:, 70:] = 0, torch.randn(70, 58, generator=generator)
    weight[target, here], x[here, here] = 1, gap
    x, weight = (one.to(device, torch.bfloat16) for one in (x, weight))
    held_to_the_reference(relative_error, x, weight, target.to(device))


def test_words_of_no_probability_and_a_position_that_begins_again(device):
    """A share of -inf alone counts nothing; a position of inf spoils its own loss only."""
    x, weight, target = inputs((70, 64, 512), torch.bfloat16, device)
    x[:, 0], weight[:, 0], weight[:256, 0] = 1, 0, float("-inf")
    target = target.clamp_min(260)
    for spoilt in (False, True):
        if spoilt:
            x[5, 1] = float("inf")
        with torch.no_grad():
            loss, _ = linear_cross_entropy(x, weight, target)
            exact, _ = reference(x.double(), weight.double(), target)
        assert loss.isnan().nonzero().flatten().tolist() == [5] * spoilt
        others = torch.arange(70, device=device) != 5 if spoilt else slice(None)
        torch.testing.assert_close(loss[others].double(), exact[others], rtol=1e-5, atol=1e-5)


def test_large_logits_do_not_overflow(device, relative_error):
    x, weight, target = inputs((70, 64, 256), torch.bfloat16, device)
    loss, _, *gradients = both(linear_cross_entropy, 512 * x, weight, target)
    exact, _ = reference(512 * x.double(), weight.double(), target)
    assert relative_error(loss, exact) < 1e-6
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("trained", [True, False])
def test_of_words_with_equal_weights_the_first_wins(trained, device):
    """Each position's target has a twin later, earlier or nowhere: within a block, in another, in another share."""
    generator = torch.Generator().manual_seed(1)
    twins = [(3, 5), (63, 64), (7, 390), (128, 191), (130, 255), (200, 201)]
    weight = torch.randn(512, 64, generator=generator).sign()
    if device.type == "cuda":  # sums of interpreted products depend on the column: there they must be exact
        weight *= torch.rand(64, generator=generator) + 0.5
    firsts, seconds = zip(*twins, strict=True)
    weight[list(seconds)] = weight[list(firsts)]
    target = torch.tensor([*firsts, *seconds, 66, 399])
    x, weight = weight[target].to(device, torch.bfloat16), weight.to(device, torch.bfloat16)
    _, hit, _, _ = module.forward_operator(x, weight, target.to(device), trained)
    assert hit.tolist() == [True] * 6 + [False] * 6 + [True] * 2


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of the interpreter
def test_a_nan_logit_spoils_its_position_only(device):
    x, weight, _ = inputs((6, 64, 256), torch.bfloat16, device)
    target = (x.float() @ weight.float().t()).argmax(-1)
    a_nan_spoils_what_it_touches(linear_cross_entropy, x, weight, target)


def test_an_unknown_target_gives_nan(device):
    x, weight, target = inputs((17, 64, 256), torch.bfloat16, device)
    target[3], target[4] = -100, 256
    loss, hit = linear_cross_entropy(x, weight, target)
    assert loss.isnan().nonzero().flatten().tolist() == [3, 4]
    assert not hit[3:5].any()


def test_every_output_is_written(device, monkeypatch):
    """Each buffer holds NaN, or a true hit, before the kernels run."""
    x, weight, target = inputs((130, 64, 512), torch.bfloat16, device)
    weight = -weight  # no hits
    expected = both(linear_cross_entropy, x, weight, target)
    new_empty, empty_like = Tensor.new_empty, torch.empty_like

    def poison(tensor: Tensor) -> Tensor:
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 1)

    monkeypatch.setattr(Tensor, "new_empty", lambda *args, **options: poison(new_empty(*args, **options)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **options: poison(empty_like(*args, **options)))
    for one, other in zip(both(linear_cross_entropy, x, weight, target), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("width", [64, 128])
def test_without_gradients_the_same_loss_and_hits(width, device, relative_error):
    x, weight, target = inputs((70, width, 384), torch.bfloat16, device)
    exact, exact_hit = reference(x.double(), weight.double(), target)
    theirs, _ = reference(x, weight, target)
    with torch.no_grad():
        loss, hit = linear_cross_entropy(x.requires_grad_(), weight, target)
    assert relative_error(loss, exact) <= 2 * relative_error(theirs, exact) + LEAST
    assert torch.equal(hit, exact_hit)


def test_positions_and_words_that_other_kernels_have(device, in_pairs):
    """Widths, words that are no whole pairs of blocks, dtypes, and addresses that no tensor map takes."""
    x, weight, target = inputs((10, 64, 256), torch.bfloat16, device)
    assert pairs.taken(x, weight)
    assert not pairs.taken(x.half(), weight.half())
    assert not pairs.taken(x, weight[:192])
    assert not pairs.taken(x[:, :48].contiguous(), weight[:, :48].contiguous())
    shifted = torch.empty(x.numel() + 4, dtype=x.dtype, device=device)[4:].view_as(x).copy_(x)
    assert not pairs.taken(shifted, weight)
    loss, _ = linear_cross_entropy(shifted, weight, target)
    assert in_pairs == []
    assert torch.allclose(loss, linear_cross_entropy(x, weight, target)[0], rtol=1e-5)
