"""The Triton kernels of taylor_attention against float64, beside the reference in the same dtype."""

import pytest
import torch
from torch import Tensor

from basedbench.kernels import taylor_attention_triton as triton_form
from basedbench.kernels import taylor_gluon
from basedbench.kernels.precision import precision_of
from basedbench.kernels.slices import cut
from basedbench.kernels.taylor_attention import reference, step_reference
from basedbench.kernels.taylor_features import feature_count
from basedbench.kernels.taylor_step_triton import step, unsupported

FLOOR = 2e-6

# length, key width, value width: tiles that are full and not, one segment and several, widths that are padded.
SMALL = [
    ((1, 32, 16), False), ((1, 24, 16), True), ((17, 8, 48), False), ((17, 16, 48), True), ((64, 16, 64), True),
    ((70, 8, 16), True), ((100, 24, 112), False),
]  # fmt: skip
ON_A_GPU = [
    (1000, 8, 64), (4096, 8, 64), (4097, 8, 48),
    (256, 16, 64), (512, 24, 128), (1000, 16, 64), (1024, 16, 128), (1000, 24, 48), (4096, 16, 64), (4097, 16, 64),
    (4097, 32, 112),
]  # fmt: skip


@pytest.fixture(autouse=True)
def poisoned_memory(device):
    """Freed memory full of NaN: what is read before it is written shows."""
    freed = [torch.full((size,), float("nan"), device=device) for size in (1 << 10, 1 << 16, 1 << 22)]
    del freed


def inputs(randn, device, dtype, length, key_dim, value_dim, batch=1, heads=2, scale=1.0) -> list[Tensor]:
    """q, k, v as a mixer gives them: slices of one projection."""
    widths = [heads * key_dim, heads * key_dim, heads * value_dim]
    parts = (scale * randn(batch, length, sum(widths))).to(device, dtype).split(widths, -1)
    return [part.unflatten(-1, (heads, -1)) for part in parts]


def initial_state(randn, device, key_dim, value_dim) -> Tensor:
    prefix = inputs(randn, device, torch.float64, 5, key_dim, value_dim)
    return reference(*prefix, return_state=True)[1].float()


def outputs_and_gradients(function, tensors, dy, state) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    y = function(*leaves, initial_state=state)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def errors(value: Tensor, exact: Tensor) -> list[float]:
    """Of the whole and of the worst block of 64 rows: kernels that go wrong do so after the first chunks."""
    blocks = [(value, exact), *zip(value.split(64, 1), exact.split(64, 1), strict=True)]
    # A first token alone attends to itself: its exact gradients by q and k are zero.
    relative = [((a.double() - b).norm() / b.norm().clamp_min(1.0)).item() for a, b in blocks]
    return [relative[0], max(relative)]


def compare(randn, device, dtype, shape, *, with_state) -> None:
    tensors = inputs(randn, device, dtype, *shape)
    state = initial_state(randn, device, *shape[1:]) if with_state else None
    dy = randn(*tensors[2].shape).to(device, dtype)
    exact_state = None if state is None else state.double()
    ours = outputs_and_gradients(triton_form.taylor_attention, tensors, dy, state)
    same = outputs_and_gradients(reference, tensors, dy, state)
    exact = outputs_and_gradients(reference, [x.double() for x in tensors], dy.double(), exact_state)
    for name, a, b, c in zip(("y", "dq", "dk", "dv"), ours, same, exact, strict=True):
        assert a.dtype == dtype
        (error, worst), (reference_error, reference_worst) = errors(a, c), errors(b, c)
        assert error <= 2 * reference_error + FLOOR, name
        assert worst <= 3 * reference_worst + FLOOR, name


@pytest.mark.parametrize(("shape", "with_state"), SMALL)
def test_outputs_and_gradients(randn, device, shape, with_state):
    compare(randn, device, torch.float32, shape, with_state=with_state)


def test_half_precision_through_segments(randn, device):
    compare(randn, device, torch.float16, (300, 16, 16), with_state=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="too slow to interpret")
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", ON_A_GPU)
def test_long_and_wide(randn, device, dtype, shape, with_state):
    compare(randn, device, dtype, shape, with_state=with_state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="too slow to interpret")
@pytest.mark.parametrize("shape", [(100, 16, 200), (600, 16, 256), (600, 32, 256)])
def test_values_beyond_128(randn, device, shape):
    """bf16 alone: wider dtypes do not fit into shared memory."""
    compare(randn, device, torch.bfloat16, shape, with_state=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="without a GPU they take everything")
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("shape", [(600, 16, 64), (4097, 16, 48)])
def test_plain_kernels_where_there_is_no_gluon(randn, device, monkeypatch, shape, with_state):
    """bf16 through segments, which Gluon takes on Hopper otherwise."""
    monkeypatch.setattr(taylor_gluon, "_kernels", lambda: "no Gluon")
    compare(randn, device, torch.bfloat16, shape, with_state=with_state)


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("shape", [(70, 8, 20), (17, 16, 48), (70, 24, 20), (300, 16, 16)])
def test_state_is_the_packed_one_of_the_reference(randn, relative_error, device, shape, with_state):
    tensors = inputs(randn, device, torch.float32, *shape)
    state = initial_state(randn, device, *shape[1:]) if with_state else None
    y, ours = triton_form.taylor_attention(*tensors, initial_state=state, return_state=True)
    exact_y, exact = reference(
        *(x.double() for x in tensors), initial_state=None if state is None else state.double(), return_state=True
    )
    assert ours.dtype == torch.float32
    assert relative_error(ours, exact) < 1e-6
    assert relative_error(y, exact_y) < 1e-6
    assert (ours[:, :, 0, -1] == shape[0] + 5 * with_state).all()


def test_without_gradients_nothing_is_kept_for_them(randn, device):
    tensors = inputs(randn, device, torch.float32, 17, 8, 16)
    options = (initial_state(randn, device, 8, 16), False, precision_of(torch.float32))
    y, inverse, _, _ = triton_form.attention(*tensors, *options)
    alone, nothing, _, _ = triton_form.attention(*tensors, *options, False)
    assert torch.equal(alone, y)
    assert inverse.shape == (*y.shape[:1], y.shape[2], y.shape[1])
    assert nothing.numel() == 0
    leaves = [x.clone().requires_grad_() for x in tensors]
    for keep in (True, False):
        torch.library.opcheck(triton_form.attention, (*tensors, *options, keep))
    torch.library.opcheck(triton_form.attention, (*leaves, *options))


def test_the_plain_kernels_keep_no_states(randn, device, monkeypatch):
    """There is room for them by sizes and dtype alone: what is not there must not be taken for zeros."""
    monkeypatch.setattr(triton_form, "QUADRATIC_LENGTH", 64)
    monkeypatch.setattr(taylor_gluon, "SHORTEST_SEGMENT", 128)
    monkeypatch.setattr(taylor_gluon, "unsupported", lambda *_: "not these")
    tensors = inputs(randn, device, torch.bfloat16, 257, 16, 16, heads=1)
    options = (None, False, "bf16")
    slots = triton_form.attention(*tensors, *options)[3]
    assert slots.shape == taylor_gluon.slots_shape(taylor_gluon.plan(1, 257, 1, 16))
    assert slots.numel() > 0
    assert (slots == torch.inf).all()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    leaves = [x.detach().requires_grad_() for x in tensors]
    torch.library.opcheck(triton_form.attention, (*leaves, *options), test_utils=checks)


def test_large_norms_in_half_precision(randn, relative_error, device):
    """Weights pass 65504, the largest float16."""
    tensors = inputs(randn, device, torch.float16, 70, 16, 32, scale=50.0)
    exact = reference(*(x.double() for x in tensors))
    assert relative_error(triton_form.taylor_attention(*tensors), exact) < 1e-3


def test_operators_keep_torchs_rules(randn, device):
    """Schema, fake tensors and autograd registration."""
    q, k, v = (x.detach().requires_grad_() for x in inputs(randn, device, torch.float32, 17, 8, 16))
    torch.library.opcheck(triton_form.attention, (q, k, v, None, False, "tf32x3"))
    q, k, v = (x.detach()[:, 0] for x in (q, k, v))
    state, sums = (
        torch.zeros(1, 2, feature_count(8), 16, device=device),
        torch.zeros(1, 2, feature_count(8), device=device),
    )
    torch.library.opcheck(step, (q, k, v, state, sums))


def test_what_the_kernels_leave_to_the_reference(randn, device):
    refuse = triton_form.unsupported
    q, k, v = inputs(randn, device, torch.float32, 3, 16, 16)
    state = initial_state(randn, device, 16, 16)
    assert refuse(q, k, v, state, True) is None
    assert "share" in refuse(q.double(), k.double(), v.double(), None, False)
    assert "key width" in refuse(q[..., :5], k[..., :5], v, None, False)
    assert "states" in refuse(q, k, v, state.requires_grad_(), False)
    assert "states" in refuse(q.requires_grad_(), k, v, None, True)
    with torch.no_grad():
        assert refuse(q, k, v, state, True) is None


@pytest.mark.parametrize(
    ("key_dim", "value_dim", "batch"),
    [(8, 48, 2), (16, 112, 2), (16, 64, 1), (24, 20, 2), (32, 16, 1), (5, 16, 2), (2, 1, 1)],
)
def test_decode_steps(randn, relative_error, device, key_dim, value_dim, batch):
    """Small and padded widths, one block of features and several."""
    sums = torch.zeros(batch, 2, feature_count(key_dim), device=device)
    state = sums.new_zeros(*sums.shape, value_dim)
    exact_state, exact_sums = state.double(), sums.double()
    for _ in range(3):
        q, k, v = (randn(batch, 2, width).to(device, torch.float32) for width in (key_dim, key_dim, value_dim))
        y = step(q, k, v, state, sums)
        exact = step_reference(q.double(), k.double(), v.double(), exact_state, exact_sums)
        assert relative_error(y, exact) < 1e-6
    assert relative_error(state, exact_state) < 1e-6
    assert relative_error(sums, exact_sums) < 1e-6


def test_a_decode_step_of_a_state_that_has_its_sums_in_the_last_column(randn, relative_error, device):
    state = randn(2, 3, feature_count(8), 17).abs().to(device, torch.float32)
    apart = state[..., :-1].contiguous(), state[..., -1].contiguous()
    q, k, v = (randn(2, 3, width).to(device, torch.float32) for width in (8, 8, 16))
    assert unsupported(q, k, v, state[..., :-1], state[..., -1]) is None
    y = step(q, k, v, state[..., :-1], state[..., -1])
    # Not to the bit: rows that begin at no multiple of 16 bytes are added up in another order.
    assert relative_error(y, step(q, k, v, *apart).double()) < 1e-6
    assert relative_error(state, torch.cat([apart[0], apart[1][..., None]], -1).double()) < 1e-6
    assert "row behind row" in unsupported(q, k, v, state[..., :-1].transpose(0, 1), state[..., -1])
    assert "row behind row" in unsupported(q, k, v, apart[0], apart[1].transpose(0, 1))
    assert "float32" in unsupported(q, k, v, apart[0].half(), apart[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="too slow to interpret")
def test_a_prefix_and_many_steps_give_the_whole(randn, relative_error, device):
    """4,096 steps after 1,000 tokens; the normaliser does not drift."""
    tensors = inputs(randn, device, torch.float32, 1000 + 4096, 16, 64)
    _, state = triton_form.taylor_attention(*(x[:, :1000] for x in tensors), return_state=True)
    columns = state[..., :-1], state[..., -1]
    steps = [step(*(x[:, t] for x in tensors), *columns) for t in range(1000, 5096)]
    exact, exact_state = reference(*(x.double() for x in tensors), return_state=True)
    assert relative_error(torch.stack(steps, 1), exact[:, 1000:]) < 1e-5
    assert relative_error(state, exact_state) < 1e-5
    assert relative_error(state[..., -1], exact_state[..., -1]) < 1e-5
    assert (state[:, :, 0, -1] == 5096).all()


@pytest.mark.parametrize("widths", [[16, 16, 48], [16, 16, 32]])
def test_gradients_of_a_projection_cut_into_heads(randn, device, widths):
    """Written side by side, where the parts lay: autograd puts nothing together."""
    x = randn(2, 37, sum(widths)).to(device, torch.float32).requires_grad_()
    dy = randn(2, 37, 2, widths[2] // 2).to(device, torch.float32)

    def gradient(function, parts):
        return torch.autograd.grad(function(*(part.unflatten(-1, (2, -1)) for part in parts)), x, dy)[0]

    mine = gradient(triton_form.taylor_attention, cut(x, widths))
    torch.testing.assert_close(mine, gradient(reference, x.split(widths, -1)), rtol=1e-4, atol=1e-4)
