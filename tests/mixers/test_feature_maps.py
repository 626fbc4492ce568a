"""Each feature map against its formula as a dense A in float64, and against the kernel that it stands for."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from basedbench.config import case_id
from basedbench.errors import UserError
from basedbench.kernels import chunked
from basedbench.mixers import check_options, get_mixer
from basedbench.mixers.feature_maps import FEATURE_MAPS, SEGMENT, MapName, Performer, orthogonal_rows
from basedbench.mixers.linear_attention import LinearAttention
from basedbench.models import LayerSpec, RecallModel
from basedbench.models.state import state_bytes
from basedbench.training.optimizer import AdamW
from basedbench.training.run import Weights
from tests.mixers.test_formulas import L, build

F, D = 4, 8
M = 20  # cosformer's max_length
OPTIONS = {"cosformer": {"max_length": M}, "performer": {"features": 11}, "all_poly": {"features": 5}}


def options(name: str) -> dict[str, object]:
    return {"feature_dim": F, "feature_map": name} | OPTIONS.get(name, {})


def series(s: Tensor, order: int) -> Tensor:
    """The exponential series, cut after `order`."""
    return sum(s**power / math.factorial(power) for power in range(order + 1)) + torch.zeros_like(s)


def kernel(name: str, mixer: torch.nn.Module, q: Tensor, k: Tensor) -> Tensor:
    """A (B,L,L), not yet causal, written out."""
    s = q @ k.mT / math.sqrt(F)
    match name:
        case "pos_elu":
            q, k = (torch.where(x > 0, x + 1, x.exp()) for x in (q, k))
        case "relu":
            q, k = (x.clamp(min=1e-12) for x in (q, k))
        case "square":
            q, k = q**2, k**2
        case "cosformer":
            step = torch.arange(q.shape[1], dtype=q.dtype)
            return (q.relu() @ k.relu().mT) * torch.cos(math.pi / 2 * (step[:, None] - step) / M)
        case "performer":
            rows = mixer.feature_map.rows_MK
            z, w = q / F**0.25, k / F**0.25
            lengths = (z**2).sum(-1)[:, :, None] / 2 + (w**2).sum(-1)[:, None] / 2
            sums = (z @ rows.mT)[:, :, None] + (w @ rows.mT)[:, None]
            return (sums - lengths[..., None]).exp().mean(-1)
        case "hedgehog":
            q, k = q @ mixer.feature_map.query_HKK[0].mT, k @ mixer.feature_map.key_HKK[0].mT
            q, k = (torch.cat((x.softmax(-1), (-x).softmax(-1)), -1) for x in (q, k))
        case "all_poly":
            one, two = mixer.feature_map.product.weight, mixer.feature_map.square.weight
            q, k = (((x @ one.mT) ** 2 + x**2 @ two.mT) / math.sqrt(2) for x in (q, k))
        case "taylor1" | "taylor2" | "taylor3":
            return series(s, int(name[-1]))
    return q @ k.mT


def dense(name: str, mixer: torch.nn.Module, x: Tensor) -> Tensor:
    """The whole mixer from a dense A."""
    q, k, v = (x @ mixer.in_proj.weight.mT).split([F, F, D], -1)
    A = kernel(name, mixer, q, k).tril()
    return A @ v / (A.sum(-1, keepdim=True) + 1e-12) @ mixer.out_proj.weight.mT


def made(name: str) -> tuple[torch.nn.Module, Tensor]:
    """The mixer in float64, what it learns of its map moved away from the initial values, and an input."""
    mixer, x = build("linear_attention", D, **options(name))
    with torch.no_grad():
        for parameter in mixer.feature_map.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return mixer, x


def test_every_map_has_a_name_that_options_know() -> None:
    assert set(FEATURE_MAPS) == set(get_args(MapName))


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_equals_its_formula(name: str) -> None:
    mixer, x = made(name)
    torch.testing.assert_close(mixer(x), dense(name, mixer, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_gradients_equal_those_of_the_formula(name: str) -> None:
    mixer, x = made(name)
    leaves = [x.requires_grad_(), *mixer.parameters()]
    weights = torch.randn_like(x)
    found = torch.autograd.grad((mixer(x) * weights).sum(), leaves)
    exact = torch.autograd.grad((dense(name, mixer, x) * weights).sum(), leaves)
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_through_states_as_in_one_block(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 64, features of a few tokens at a time, and prefill: what one quadratic block gives."""
    torch.manual_seed(0)
    mixer, _ = made(name)
    if name == "cosformer":
        mixer.feature_map.turn = math.pi / (2 * 400)
        mixer.options = mixer.options.model_copy(update={"max_length": 400})
    x = torch.randn(1, 150, D, dtype=torch.float64)
    whole = mixer(x).detach()
    monkeypatch.setattr(chunked, "QUADRATIC_LIMIT", 0)
    monkeypatch.setattr("basedbench.mixers.feature_maps.SEGMENT", 40)
    leaf = x.clone().requires_grad_()
    y = mixer(leaf)
    # identity's sums come near zero, where y is large in either form.
    torch.testing.assert_close(y, whole, rtol=1e-7, atol=1e-9 * float(whole.abs().max()))
    assert torch.autograd.grad(y.square().sum(), leaf)[0].abs().sum() > 0
    prefilled, _ = mixer.prefill(x[:, :90])
    torch.testing.assert_close(prefilled, whole[:, :90], rtol=1e-7, atol=1e-9 * float(whole.abs().max()))
    assert SEGMENT > 64  # whole chunks


@pytest.mark.parametrize("order", [1, 2, 3])
def test_taylor_features_multiply_to_the_series(order: int) -> None:
    for width in (1, 2, 7):
        q, k = torch.randn(2, 6, 1, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        phi = FEATURE_MAPS[f"taylor{order}"](width, 1, 0, 1)
        features_q, features_k = phi(q, k, torch.zeros(6))
        assert features_q.shape[-1] == phi.features == sum(math.comb(width + n - 1, n) for n in range(order + 1))
        s = (q * k).sum(-1) / math.sqrt(width)
        torch.testing.assert_close((features_q * features_k).sum(-1), series(s, order))


def test_third_order_features_have_the_gradient_of_the_series() -> None:
    phi = FEATURE_MAPS["taylor3"](3, 1, 0, 1)
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: phi.map_keys(x, x), (x,))


def test_taylor2_is_based() -> None:
    for extra in ({}, {"heads": 2}):
        ours, x = build("linear_attention", D, feature_map="taylor2", feature_dim=3, **extra)
        based, _ = build("based", D, feature_dim=3, **extra)
        assert torch.equal(ours(x), based(x))
        assert ours.zoology_elements(64) == based.zoology_elements(64)


def test_cosformer_features_multiply_to_the_cosine_of_the_distance() -> None:
    phi = FEATURE_MAPS["cosformer"](F, 1, 0, M)
    ones, position = torch.ones(M, 1, F, dtype=torch.float64), torch.arange(M)
    features_q, features_k = phi(ones, ones, position)
    found = torch.einsum("lhf,mhf->lm", features_q, features_k)
    distance = (position[:, None] - position).double()
    torch.testing.assert_close(found, F * torch.cos(math.pi / 2 * distance / M))


@pytest.mark.parametrize("call", ["forward", "prefill", "room", "init_state"])
def test_cosformer_refuses_more_than_its_longest_sequence(call: str) -> None:
    mixer, x = build("linear_attention", D, feature_map="cosformer", max_length=L - 1)
    calls = {
        "forward": lambda: mixer(x),
        "prefill": lambda: mixer.prefill(x),
        "room": lambda: mixer.prefill(x[:, :2], L),
        "init_state": lambda: mixer.init_state(1, L),
    }
    with pytest.raises(UserError, match=f"{L} tokens are more than max_length = {L - 1}"):
        calls[call]()


def test_performer_is_unbiased() -> None:
    """The mean over n features misses exp(q . k / sqrt(f)) by no more than five of its own standard deviations.

    With Gaussian rows one feature product X = exp(w.(z + z') - (|z|^2 + |z'|^2) / 2) has mean exp(z.z') and variance
    exp(2 z.z') (exp(|z + z'|^2) - 1); orthogonal rows have no more of it.
    """
    count = 40_000
    torch.manual_seed(0)
    phi = Performer(6, 1, count, 1).double()
    q, k = 0.6 * torch.randn(2, 10, 6, dtype=torch.float64)
    found = (phi.exponents(q) + phi.exponents(k)).exp().mean(-1)
    z, w = q / 6**0.25, k / 6**0.25
    exact = (q * k).sum(-1).div(math.sqrt(6)).exp()
    deviation = exact * ((z + w).square().sum(-1).exp() - 1).sqrt() / math.sqrt(count)
    assert ((found - exact).abs() < 5 * deviation).all()
    assert (deviation / exact).max() < 0.05  # so that it says something


def test_performer_rows_are_gaussian_vectors_orthogonal_in_blocks() -> None:
    torch.manual_seed(0)
    width, count = 8, 8 * 3000 + 3
    rows = orthogonal_rows(count, width)
    assert rows.shape == (count, width)
    products = rows[8:16] @ rows[8:16].mT
    torch.testing.assert_close(products, torch.diag(products.diagonal()), rtol=0, atol=1e-4)
    tolerance = 6 / math.sqrt(count)  # entries and products of two have standard deviations of at most sqrt(2)
    assert rows.mean(0).abs().max() < tolerance
    torch.testing.assert_close(rows.mT @ rows / count, torch.eye(width), rtol=0, atol=1.5 * tolerance)


def test_performer_as_published_has_rows_of_one_smaller_norm() -> None:
    mixer = get_mixer("linear_attention")(8, feature_map="performer", feature_dim=4, features=16)
    directions = torch.nn.functional.normalize(mixer.feature_map.rows_MK)
    mixer.initialise(2, "correct")
    assert mixer.feature_map.rows_MK.norm(dim=1).std() > 0.1
    mixer.initialise(2, "published")
    torch.testing.assert_close(mixer.feature_map.rows_MK, directions * math.sqrt(4 / 16))


def test_performer_rows_come_from_the_seed_and_are_not_trained() -> None:
    first, second, other = (
        (torch.manual_seed(seed), get_mixer("linear_attention")(8, feature_map="performer"))[1] for seed in (0, 0, 1)
    )
    assert torch.equal(first.feature_map.rows_MK, second.feature_map.rows_MK)
    assert not torch.equal(first.feature_map.rows_MK, other.feature_map.rows_MK)
    assert "feature_map.rows_MK" in first.state_dict()
    assert not list(first.feature_map.parameters())


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_long_vectors_stay_finite(name: str) -> None:
    """Queries and keys of norm 80: exp of their products, or of a random row's, is beyond float32."""
    mixer, x = build("linear_attention", D, **options(name))
    mixer = mixer.float()
    with torch.no_grad():
        mixer.in_proj.weight[: 2 * F] *= 40
    leaf = x.float().requires_grad_()
    y = mixer(leaf)
    assert y.isfinite().all()
    assert torch.autograd.grad(y.sum(), leaf)[0].isfinite().all()


def test_errors_of_identity_are_those_of_its_sums() -> None:
    """In float32 y is off by no more than rounding times sum |A| / |sum A|, which has no bound of its own."""
    mixer, x = build("linear_attention", D, feature_map="identity", feature_dim=F)
    exact = dense("identity", mixer, x)
    q, k, _ = (x @ mixer.in_proj.weight.mT).split([F, F, D], -1)
    rounded = q.abs() @ k.abs().mT
    magnified = rounded.tril().sum(-1) / (q @ k.mT).tril().sum(-1).abs()
    error = (mixer.float()(x.float()) - exact).norm(dim=-1)
    scale = exact.norm(dim=-1) + x.norm(dim=-1)
    assert magnified.max() > 10
    assert (error < 16 * 2**-24 * magnified * scale).all()


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_features_are_formed_in_float32_under_autocast(name: str) -> None:
    mixer, x = build("linear_attention", D, **options(name))
    mixer, x = mixer.float(), x.float()
    q, k, _ = mixer._project(x)
    exact = mixer.feature_map(q, k, torch.arange(L))
    with torch.autocast("cpu", torch.bfloat16):
        found = mixer.feature_map(q, k, torch.arange(L))
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


SIZES = {  # features at f = 16, and as zoology counts them
    "pos_elu": (16, 16),
    "identity": (16, 16),
    "relu": (16, 16),
    "square": (16, 16),
    "cosformer": (32, 32),
    "performer": (256, 16),
    "hedgehog": (32, 32),
    "taylor1": (17, 17),
    "taylor2": (153, 153),
    "taylor3": (969, 969),
    "all_poly": (16, 16),
}


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_state_sizes(name: str) -> None:
    mixer = get_mixer("linear_attention")(64, feature_map=name)
    features, published = SIZES[name]
    assert state_bytes(mixer, 1024) == 4 * features * 65 + (4 if name == "cosformer" else 0)
    assert mixer.zoology_elements(1024) == mixer.paper_elements(1024) == published * 65


def test_options_name_what_the_map_has() -> None:
    assert check_options("linear_attention", 64, {}) == {"feature_dim": 16, "heads": 1}
    assert check_options("linear_attention", 64, {"feature_map": "pos_elu"}) == {"feature_dim": 16, "heads": 1}
    plain = {"feature_dim": 16, "heads": 1}
    assert check_options("linear_attention", 64, {"feature_map": "relu"}) == plain | {"feature_map": "relu"}
    performer = plain | {"feature_map": "performer", "features": 0}
    assert check_options("linear_attention", 64, {"feature_map": "performer"}) == performer
    assert case_id(performer) == case_id(check_options("linear_attention", 64, performer))


def test_each_map_is_a_family_of_its_own() -> None:
    mixer = get_mixer("linear_attention")
    families = {name: mixer.family_of(check_options("linear_attention", 64, {"feature_map": name})) for name in SIZES}
    assert families["pos_elu"] == mixer.family == "linear_attention"
    assert families["relu"] == "linear_attention/relu"
    assert len(set(families.values())) == len(families)


def test_learned_polynomials_keep_their_precision_where_the_trainer_multiplies_in_half():
    layer = LayerSpec("linear_attention", {"feature_map": "all_poly", "feature_dim": 8})
    model = RecallModel(32, 16, [layer], init="published")
    optimizer = AdamW(list(model.parameters()), 0.1)
    optimizer._moments = optimizer._flat(torch.bfloat16)
    (mixer,) = (module for module in model.modules() if isinstance(module, LinearAttention))
    with Weights(model, optimizer).in_place():
        assert mixer.in_proj.weight.dtype == torch.bfloat16
        assert {weight.dtype for weight in mixer.feature_map.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_a_step_is_possible_while_gradients_are_on(name: str) -> None:
    mixer = get_mixer("linear_attention")(16, feature_map=name)
    x = torch.randn(2, 3, 16)
    state, y = mixer.init_state(2, 4), []
    for t in range(3):
        out, state = mixer.step(x[:, t], state)
        y.append(out)
    torch.testing.assert_close(torch.stack(y, 1), mixer(x), rtol=1e-4, atol=1e-5)
