"""Feature maps of linear attention: phi with A_ij = phi(q_i) . phi(k_j), for `linear_attention`'s option `feature_map`.

x is a query or key of f = feature_dim numbers per head; F is how many features come out, and so rows of the state.

    name                      phi(x)                                                              F
    pos_elu                   elu(x) + 1                                       (arXiv 2006.16236)  f
    identity                  x                                                                    f
    relu                      max(x, 1e-12)                                                        f
    square                    x^2                                                                  f
    cosformer                 relu(x) [sin a, cos a], a = pi i / 2 M           (arXiv 2202.08791)  2 f
    performer                 exp(w_r . z - |z|^2 / 2) / sqrt(m), z = x / f^(1/4)  (2009.14794)    m = features, 256
    hedgehog                  [softmax(W x), softmax(-W x)], W learned         (arXiv 2402.04347)  2 f
    taylor1, taylor2, taylor3 the exponential series cut after order n         (arXiv 2402.18668)  (f + n)! / (f! n!)
    all_poly                  ((W_1 x)^2 + W_2 x^2) / sqrt(2), learned         (arXiv 2402.18668)  m = features, f

These are the maps of the BASED paper's Figure 3 as its code (zoology) has them, and hedgehog, taylor1 and taylor3.
Where they part from that code:
- cosformer: A_ij = relu(q_i) . relu(k_j) cos(pi (i - j) / 2 M). zoology takes for M the length of the sequence at hand,
  which decoding does not know. Here M is the option `max_length`, and the state carries the position i.
- performer: rows w_r are orthogonal in blocks of f with norms of Gaussian vectors, so that phi(q) . phi(k) is
  exp(q . k / sqrt(f)) on average; they are drawn once, with the weights, and not trained. zoology scales them to norm
  sqrt(f / m), which is another kernel; `init: published` does so too. zoology counts f features where there are m.
- all_poly: zoology asks for PyTorch's initial weights, then overwrites them with the recipe's N(0, .02); so does this.

identity, all_poly, taylor1 and taylor3 give weights of either sign. As in zoology nothing is done about that: the sum
of weights that y is divided by (plus 1e-12) keeps its sign, and y is large where the sum is small.
Features are formed in float32 (float64 for float64), autocast or not.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basedbench.kernels import linear_attention, linear_attention_step, taylor_attention, taylor_attention_step
from basedbench.kernels.differentiated import differentiated
from basedbench.kernels.linear_attention import pos_elu, relu, square
from basedbench.kernels.precision import accumulation_dtype
from basedbench.kernels.taylor_features import KERNELS, feature_count
from basedbench.mixers.base import Init
from basedbench.mixers.full_precision import FullPrecisionLinear

MapName = Literal[
    "pos_elu",
    "identity",
    "relu",
    "square",
    "cosformer",
    "performer",
    "hedgehog",
    "taylor1",
    "taylor2",
    "taylor3",
    "all_poly",
]
RANDOM_FEATURES = 256  # zoology's
LARGEST_EXPONENT = 60.0  # e^60 times 256 features times any length is still a float32
SEGMENT = 1024  # tokens whose features exist at once, where they are wider than the keys


class FeatureMap(nn.Module):
    """phi for queries and keys, and attention with it. `features` is F, per head."""

    needs_position: ClassVar[bool] = False  # the state then carries one

    def __init__(self, key_dim: int, heads: int, features: int, max_length: int) -> None:
        super().__init__()
        self.key_dim = key_dim
        self.features = key_dim

    @property
    def zoology_features(self) -> int:
        """F as zoology counts it."""
        return self.features

    def forward(self, q_xHK: Tensor, k_xHK: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features (..., H, F) of both. `position` (...): the tokens' places from 0, where the map needs them."""
        dtype = accumulation_dtype(q_xHK.dtype)
        with torch.autocast(q_xHK.device.type, enabled=False):
            return self.map_queries(q_xHK.to(dtype), position), self.map_keys(k_xHK.to(dtype), position)

    def map_queries(self, q_xHK: Tensor, position: Tensor | None) -> Tensor:
        """The features of queries; by default those that keys would have."""
        return self.map_keys(q_xHK, position)

    def map_keys(self, k_xHK: Tensor, position: Tensor | None) -> Tensor:
        """The features of keys."""
        raise NotImplementedError

    def initialise(self, init: Init) -> None:
        """What the recipe's initialisation, which draws every Linear anew, leaves to the map."""

    def attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHV: Tensor, return_state: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """y (B,L,H,V), and the state (B,H,F,V+1) behind the last token if asked for.

        Features wider than the keys are formed for SEGMENT tokens at a time.
        """
        length = q_BLHK.shape[1]
        segment = SEGMENT if self.features > self.key_dim else length
        position_L = torch.arange(length, device=q_BLHK.device)
        outputs: list[Tensor] = []
        state = None
        for start in range(0, length, segment):
            part = slice(start, start + segment)
            q_BLHF, k_BLHF = self(q_BLHK[:, part], k_BLHK[:, part], position_L[part])
            more = return_state or start + segment < length
            y_BLHV, state = _attention(q_BLHF, k_BLHF, v_BLHV[:, part], state, more)
            outputs.append(y_BLHV)
        return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0], state

    def step(
        self, q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, state_BHFW: Tensor, position_B: Tensor | None
    ) -> Tensor:
        """One token: y (B,H,V); `state_BHFW` is updated in place."""
        q_BHF, k_BHF = self(q_BHK, k_BHK, position_B)
        return linear_attention_step(q_BHF, k_BHF, v_BHV, state_BHFW, feature_map=None)


def _attention(
    q_BLHF: Tensor,
    k_BLHF: Tensor,
    v_BLHV: Tensor,
    state: Tensor | None,
    return_state: bool,
    feature_map: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    found = linear_attention(
        q_BLHF, k_BLHF, v_BLHV, feature_map=feature_map, initial_state=state, return_state=return_state
    )
    return found if isinstance(found, tuple) else (found, None)


class Elementwise(FeatureMap):
    """A map of single entries, which the operator's kernels compute themselves; None: the entries as they are."""

    def __init__(
        self, key_dim: int, heads: int, features: int, max_length: int, *, function: Callable[[Tensor], Tensor] | None
    ) -> None:
        super().__init__(key_dim, heads, features, max_length)
        self.function = function

    def map_keys(self, k_xHK: Tensor, position: Tensor | None) -> Tensor:
        return k_xHK if self.function is None else self.function(k_xHK)

    def attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHV: Tensor, return_state: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        return _attention(q_BLHK, k_BLHK, v_BLHV, None, return_state, self.function)

    def step(
        self, q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, state_BHFW: Tensor, position_B: Tensor | None
    ) -> Tensor:
        return linear_attention_step(q_BHK, k_BHK, v_BHV, state_BHFW, feature_map=self.function)


class CosFormer(FeatureMap):
    """relu(x) turned by the angle pi i / (2 M): weights fall with the distance, to zero at M tokens."""

    needs_position = True

    def __init__(self, key_dim: int, heads: int, features: int, max_length: int) -> None:
        super().__init__(key_dim, heads, features, max_length)
        self.features = 2 * key_dim
        self.turn = math.pi / (2 * max_length)

    def map_keys(self, k_xHK: Tensor, position: Tensor | None) -> Tensor:
        assert position is not None  # this map asks for it
        angle_x11 = (position.to(k_xHK.dtype) * self.turn)[..., None, None]
        positive_xHK = k_xHK.relu()
        return torch.cat((positive_xHK * angle_x11.sin(), positive_xHK * angle_x11.cos()), -1)


class Performer(FeatureMap):
    """FAVOR+: exp(w_r . z - |z|^2 / 2) / sqrt(m) for m random rows w_r, shared by the heads.

    Two guards against overflow: a query's features are divided by their largest, which y does not depend on, and
    exponents of keys end at 60.
    """

    rows_MK: Tensor

    def __init__(self, key_dim: int, heads: int, features: int, max_length: int) -> None:
        super().__init__(key_dim, heads, features, max_length)
        self.features = features or RANDOM_FEATURES
        self.register_buffer("rows_MK", orthogonal_rows(self.features, key_dim))

    @property
    def zoology_features(self) -> int:
        return self.key_dim

    def exponents(self, x_xHK: Tensor) -> Tensor:
        """w_r . z - |z|^2 / 2, z = x / f^(1/4): the logarithm of a feature, before 1 / sqrt(m)."""
        z_xHK = x_xHK * self.key_dim**-0.25
        return z_xHK @ self.rows_MK.to(z_xHK.dtype).mT - z_xHK.square().sum(-1, keepdim=True) / 2

    def map_queries(self, q_xHK: Tensor, position: Tensor | None) -> Tensor:
        exponents_xHM = self.exponents(q_xHK)
        largest_xH1 = exponents_xHM.detach().amax(-1, keepdim=True)
        return (exponents_xHM - largest_xH1).exp() * self.features**-0.5

    def map_keys(self, k_xHK: Tensor, position: Tensor | None) -> Tensor:
        return self.exponents(k_xHK).clamp_max(LARGEST_EXPONENT).exp() * self.features**-0.5

    @torch.no_grad()
    def initialise(self, init: Init) -> None:
        if init == "published":
            self.rows_MK.copy_(F.normalize(self.rows_MK, dim=-1) * (self.key_dim / self.features) ** 0.5)


def orthogonal_rows(count: int, width: int) -> Tensor:
    """(count, width): rows distributed as Gaussian vectors, orthogonal to each other in blocks of `width`.

    Drawn in float32 at least, for half precision has no QR; in the default dtype.
    """
    dtype, blocks = torch.promote_types(torch.float32, torch.get_default_dtype()), []
    for start in range(0, count, width):
        directions, triangle = torch.linalg.qr(torch.randn(width, width, dtype=dtype))
        # QR makes the diagonal's signs what it likes; with them made positive the directions are uniform.
        directions = directions * torch.where(triangle.diagonal() < 0, -1.0, 1.0)
        norms = torch.randn(width, width, dtype=dtype).norm(dim=1, keepdim=True)
        blocks.append((directions.mT * norms)[: count - start])
    return torch.cat(blocks).to(torch.get_default_dtype())


class Hedgehog(FeatureMap):
    """[softmax(W x), softmax(-W x)], with a W for queries and one for keys in every head, the identity at first."""

    def __init__(self, key_dim: int, heads: int, features: int, max_length: int) -> None:
        super().__init__(key_dim, heads, features, max_length)
        self.features = 2 * key_dim
        self.query_HKK = nn.Parameter(torch.eye(key_dim).repeat(heads, 1, 1))
        self.key_HKK = nn.Parameter(torch.eye(key_dim).repeat(heads, 1, 1))

    def map_queries(self, q_xHK: Tensor, position: Tensor | None) -> Tensor:
        return _halves(q_xHK, self.query_HKK)

    def map_keys(self, k_xHK: Tensor, position: Tensor | None) -> Tensor:
        return _halves(k_xHK, self.key_HKK)


def _halves(x_xHK: Tensor, weight_HKK: Tensor) -> Tensor:
    mapped_xHK = torch.einsum("...hk,hjk->...hj", x_xHK, weight_HKK.to(x_xHK.dtype))
    return torch.cat((mapped_xHK.softmax(-1), (-mapped_xHK).softmax(-1)), -1)


class AllPoly(FeatureMap):
    """((W_1 x)^2 + W_2 x^2) / sqrt(2): polynomials of second degree, learned, the same for queries, keys and heads."""

    def __init__(self, key_dim: int, heads: int, features: int, max_length: int) -> None:
        super().__init__(key_dim, heads, features, max_length)
        self.features = features or key_dim
        self.product = FullPrecisionLinear(key_dim, self.features, bias=False)
        self.square = FullPrecisionLinear(key_dim, self.features, bias=False)

    def map_keys(self, k_xHK: Tensor, position: Tensor | None) -> Tensor:
        product, square = (linear.weight.to(k_xHK.dtype) for linear in (self.product, self.square))
        return (F.linear(k_xHK, product).square() + F.linear(k_xHK.square(), square)) * 0.5**0.5


class Taylor(FeatureMap):
    """The polynomials of `taylor_attention`, which forms features for its state only; order 2 is what `based` has."""

    def __init__(self, key_dim: int, heads: int, features: int, max_length: int, *, order: int) -> None:
        super().__init__(key_dim, heads, features, max_length)
        self.features, self.order = feature_count(key_dim, order), order

    def map_keys(self, k_xHK: Tensor, position: Tensor | None) -> Tensor:
        return KERNELS[self.order].features(k_xHK)

    def attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHV: Tensor, return_state: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        found = taylor_attention(q_BLHK, k_BLHK, v_BLHV, order=self.order, return_state=return_state)
        return found if isinstance(found, tuple) else (found, None)

    def step(
        self, q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, state_BHFW: Tensor, position_B: Tensor | None
    ) -> Tensor:
        if differentiated(q_BHK, k_BHK, v_BHV, state_BHFW):  # two views of one tensor, changed where it lies, have none
            return super().step(q_BHK, k_BHK, v_BHV, state_BHFW, position_B)
        state = state_BHFW[..., :-1], state_BHFW[..., -1]
        return taylor_attention_step(q_BHK, k_BHK, v_BHV, *state, order=self.order)


FEATURE_MAPS: dict[str, Callable[[int, int, int, int], FeatureMap]] = {
    "pos_elu": partial(Elementwise, function=pos_elu),
    "identity": partial(Elementwise, function=None),
    "relu": partial(Elementwise, function=relu),
    "square": partial(Elementwise, function=square),
    "cosformer": CosFormer,
    "performer": Performer,
    "hedgehog": Hedgehog,
    "taylor1": partial(Taylor, order=1),
    "taylor2": partial(Taylor, order=2),
    "taylor3": partial(Taylor, order=3),
    "all_poly": AllPoly,
}
