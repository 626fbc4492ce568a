"""What mixers share: a projection to a multiple of 16 outputs, and rows of a newer forward."""

import pytest
import torch
from torch import nn

from basedbench.errors import UserError
from basedbench.kernels.asked import ask, questions_at
from basedbench.mixers import get_mixer, mixer_names
from basedbench.mixers.base import ALIGNED, Mixer, project_aligned
from basedbench.mixers.feature_maps import FEATURE_MAPS


@pytest.mark.parametrize("width", [32, 34, 47, 16, 17])
def test_outputs_that_nobody_reads_change_nothing_else(width: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(5, width, bias=False).double()
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    wide, plain = project_aligned(linear, x), linear(x)
    assert wide.shape[-1] % ALIGNED == 0
    assert wide.shape[-1] - width < ALIGNED
    torch.testing.assert_close(wide[..., :width], plain)
    grad = torch.randn_like(plain)
    leaves = (x, linear.weight)
    found = torch.autograd.grad(wide[..., :width], leaves, grad)
    for a, b in zip(found, torch.autograd.grad(plain, leaves, grad), strict=True):
        torch.testing.assert_close(a, b)


def test_the_weight_that_stands_there_is_what_is_read() -> None:
    """The trainer puts copies in half precision into its place, and asks for their gradients."""
    linear = nn.Linear(5, 18, bias=False)
    copy = linear.weight.detach().bfloat16().requires_grad_()
    linear._parameters["weight"] = copy  # type: ignore[assignment]
    with torch.autocast("cpu", torch.bfloat16):
        y = project_aligned(linear, torch.randn(2, 5))
    assert y.dtype == torch.bfloat16
    (grad,) = torch.autograd.grad(y[..., :18].float().sum(), copy)
    assert grad.shape == copy.shape
    assert grad.dtype == torch.bfloat16


@pytest.mark.parametrize("name", mixer_names())
def test_a_subclass_is_asked_for_rows_of_its_own_forward(name: str) -> None:
    """Also where the forward comes from a class beside; and its forward_asked stays what it is without one."""
    kind = get_mixer(name)

    class Twice:
        def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x_BLD)  # type: ignore[misc]

    class Same(kind):  # type: ignore[misc, valid-type]
        pass

    class Doubled(Twice, kind):  # type: ignore[misc, valid-type]
        pass

    class Asked(Doubled):
        def forward_asked(self, x_BLD: torch.Tensor, asked: object) -> torch.Tensor:
            return x_BLD

    torch.manual_seed(0)
    mixer, x = Doubled(64).eval(), torch.randn(2, 9, 64)
    mixer.initialise(2, "published")
    positions = torch.tensor([[3, 0, 8], [1, 5, 2]])
    rows = torch.stack([y[at] for y, at in zip(mixer(x), positions, strict=True)])
    torch.testing.assert_close(mixer.forward_asked(x, ask(x, questions_at(positions, 9))), rows)
    assert Same.forward_asked is kind.forward_asked
    assert Asked.forward_asked is not Mixer.forward_asked


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", mixer_names())
def test_all_parameters_have_the_default_dtype(name: str, dtype: torch.dtype) -> None:
    options: list[dict[str, object]] = [{"head_dim": 8} if name in ("mamba2", "rwkv7") else {}]
    if name == "linear_attention":
        options = [{"feature_map": one} for one in FEATURE_MAPS]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for given in options:
            assert {one.dtype for one in get_mixer(name)(16, **given).parameters()} == {dtype}, given
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("name", ["attention", "hyena"])
def test_a_prompt_longer_than_its_room_is_refused(name: str) -> None:
    mixer = get_mixer(name)(16)
    y, _ = mixer.prefill(torch.randn(2, 5, 16), 5)
    assert y.shape == (2, 5, 16)
    with pytest.raises(UserError, match="a prompt of 5 tokens has no room in a state of 4"):
        mixer.prefill(torch.randn(2, 5, 16), 4)
