"""The Triton kernels of the gated delta rule against its recurrence in float64, beside the reference in the same dtype.

Without the term of rank one they are those of gated linear attention.
"""

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from basedbench.kernels import delta_rule_triton as triton_form
from basedbench.kernels.delta_rule_step_triton import step
from basedbench.kernels.delta_rule_step_triton import unsupported as step_unsupported
from tests.kernels.interpreted_bfloat16 import repaired

# The package has a function of the module's name.
reference = importlib.import_module("basedbench.kernels.delta_rule").reference
linear_reference = importlib.import_module("basedbench.kernels.gated_linear_attention").reference

FLOOR = 2e-6
# What is float32 although the inputs are not: the state and its gradient. Their products have rounded factors.
COARSE = {torch.float16: 1.5e-3, torch.bfloat16: 1e-2}
NAMES = ("q", "k", "v", "a", "b", "g", "state")

# length, heads, K, V, decays: chunks that are full and not, one and several, padded widths, blocks of values.
SMALL = [
    (1, 2, 16, 16, "channel"), (17, 2, 16, 48, "none"), (17, 1, 48, 16, "head"), (33, 1, 32, 64, "channel"),
    (100, 1, 16, 16, "channel"), (32, 1, 64, 128, "channel"), (48, 1, 64, 48, "head"), (40, 1, 32, 16, "none"),
]  # fmt: skip
ON_A_GPU = [(1000, 4, 64, 64), (4097, 2, 64, 128), (2048, 2, 32, 64), (1000, 2, 128, 256), (777, 2, 112, 80)]


@pytest.fixture(autouse=True)
def poisoned_memory(device):
    """Freed memory full of NaN: what is read before it is written shows."""
    freed = [torch.full((size,), float("nan"), device=device) for size in (1 << 10, 1 << 16, 1 << 22)]
    del freed


@pytest.fixture
def bfloat16(device):
    """What the interpreter makes of bfloat16 otherwise is not what a GPU does."""
    if device.type == "cuda":
        yield
        return
    with repaired():
        yield


def naive(q, k, v, a, b, g, *, initial_state=None, return_state=True) -> tuple[Tensor, Tensor]:
    """The recurrence as written, token by token."""
    batch, length, heads, width = q.shape
    state = q.new_zeros(batch, heads, width, v.shape[-1]) if initial_state is None else initial_state
    outputs = []
    for t in range(length):
        before = state
        state = torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        state = state + (before if g is None else g[:, t].exp().unsqueeze(-1) * before)
        if a is not None:
            state = state + torch.einsum("bhk,bhj,bhjv->bhkv", a[:, t], b[:, t], before)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, 1), state


def by_reference(q, k, v, a, b, g, **options) -> tuple[Tensor, Tensor]:
    """Gated linear attention has a reference of its own, for decays of channels."""
    if a is not None:
        return reference(q, k, v, a, b, g, **options)
    decays = torch.zeros_like(q) if g is None else g.expand(q.shape)
    return linear_reference(q, k, v, decays, **options)


def inputs(
    randn, device, dtype, length, heads, key_dim, value_dim, decays, *, rank=True, batch=1, strength=0.2
) -> list:
    """In the order of NAMES, None for what there is not; q, k and v are slices of one projection."""
    widths = [key_dim, key_dim, value_dim]
    q, k, v = randn(batch, length, heads, sum(widths)).to(device, dtype).split(widths, -1)
    k = F.normalize(k.float(), dim=-1).to(dtype)
    a, b = None, None
    if rank:  # a takes back a part of what stands under b
        b = F.normalize(randn(batch, length, heads, key_dim), dim=-1)
        a = (-b * randn(batch, length, heads, 1).sigmoid()).to(device, dtype)
        b = b.to(device, dtype)
    g = None
    if decays != "none":
        g = -strength * randn(batch, length, heads, 2 * (key_dim if decays == "channel" else 1)).abs()
        g = g[..., g.shape[-1] // 2 :].to(device, dtype)
    return [q, k, v, a, b, g, randn(batch, heads, key_dim, value_dim).float().to(device)]


def outputs_and_gradients(function, tensors, signs) -> dict[str, Tensor]:
    """The last of the tensors is the initial state."""
    leaves = [x if x is None else x.detach().requires_grad_() for x in tensors]
    given = {name: leaf for name, leaf in zip(NAMES, leaves, strict=True) if leaf is not None}
    outputs = function(*leaves[:-1], initial_state=leaves[-1], return_state=True)
    outputs = dict(zip(("y", "last"), outputs, strict=True))
    signs = [sign.to(y.dtype) for sign, y in zip(signs, outputs.values(), strict=True)]
    found = torch.autograd.grad(list(outputs.values()), list(given.values()), signs)
    return {name: y.detach() for name, y in outputs.items()} | dict(zip(given, found, strict=True))


def doubled(tensors) -> list:
    return [x if x is None else x.double() for x in tensors]


def error(value: Tensor, exact: Tensor) -> float:
    return ((value.double() - exact).norm() / exact.norm().clamp_min(1e-3)).item()


def worst_rows(value: Tensor, exact: Tensor) -> float:
    """Of 64 tokens or a few more: kernels that go wrong do so after the first chunks."""
    count = max(1, value.shape[1] // 64)
    return max(error(*rows) for rows in zip(value.tensor_split(count, 1), exact.tensor_split(count, 1), strict=True))


def compare(randn, tensors, *, exact=naive) -> None:
    dtype, device = tensors[0].dtype, tensors[0].device
    (batch, _, heads, key_dim), value_dim = tensors[0].shape, tensors[2].shape[-1]
    signs = [randn(*shape).sign().to(device) for shape in (tensors[2].shape, (batch, heads, key_dim, value_dim))]
    ours = outputs_and_gradients(triton_form.delta_rule, tensors, signs)
    theirs = outputs_and_gradients(by_reference, tensors, signs)
    truth = outputs_and_gradients(exact, doubled(tensors), signs)
    for name, value in ours.items():
        assert (value.dtype, value.shape) == (theirs[name].dtype, theirs[name].shape), name
        floor = COARSE[dtype] if dtype in COARSE and name in ("last", "state") else FLOOR
        limit = 2 * error(theirs[name], truth[name]) + floor
        assert error(value, truth[name]) <= limit, (name, error(value, truth[name]), limit)
        if name not in ("last", "state"):
            limit = 3 * worst_rows(theirs[name], truth[name]) + floor
            assert worst_rows(value, truth[name]) <= limit, (name, worst_rows(value, truth[name]), limit)


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_outputs_states_and_gradients(randn, device, shape):
    compare(randn, inputs(randn, device, torch.float32, *shape))


@pytest.mark.parametrize("shape", [SMALL[0], SMALL[1], SMALL[4], (33, 2, 48, 16, "head")], ids=str)
def test_gated_linear_attention(randn, device, shape):
    compare(randn, inputs(randn, device, torch.float32, *shape, rank=False))


@pytest.mark.parametrize(
    "shape", [(33, 1, 32, 16, "channel"), (17, 2, 16, 48, "head"), (20, 1, 48, 16, "none")], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(randn, device, bfloat16, dtype, shape):
    compare(randn, inputs(randn, device, dtype, *shape))


@pytest.mark.parametrize("decays", ["none", "head", "channel"])
def test_several_chunks_in_bfloat16(randn, device, bfloat16, decays):
    tensors = inputs(randn, device, torch.bfloat16, 100, 1, 64, 64, decays)
    compare(randn, tensors)
    if decays != "none":
        compare(randn, [*tensors[:3], None, None, *tensors[5:]])


@pytest.mark.parametrize("decays", ["head", "channel"])
def test_mild_and_strong_chunks_in_bfloat16(randn, device, bfloat16, decays):
    """The first chunk is mild; the second has tokens and channels that lose everything, the third a -inf besides."""
    tensors = inputs(randn, device, torch.bfloat16, 96, 1, 16, 16, decays)
    g = tensors[5]
    g[:, 35:64:7] -= 20
    g[:, 50:54, :, ::2] -= 1000
    g[:, 70, :, ::3] = float("-inf")
    compare(randn, tensors)


@pytest.mark.parametrize("decays", ["head", "channel"])
@pytest.mark.parametrize("rank", [True, False])
def test_strong_decays_neither_overflow_nor_spoil_gradients(randn, device, decays, rank):
    """Some tokens and channels lose everything, and others beside them nothing."""
    tensors = inputs(randn, device, torch.float32, 50, 1, 16, 16, decays, rank=rank)
    g = tensors[5]
    g[:, 3::7] -= 20
    g[:, 20:24, :, ::2] -= 1000
    g[:, 30:40] = 0
    compare(randn, tensors)


def test_mild_and_strong_decays_take_different_ways_to_the_same(randn, relative_error, device):
    """Where a chunk's decays are mild, one product makes all scores, and otherwise one for each level."""
    tensors = inputs(randn, device, torch.float32, 32, 1, 16, 16, "channel")[:6]
    # A channel that nobody reads or writes, and whose decay decides about the way.
    for part in (tensors[0], tensors[1], tensors[3], tensors[4]):
        part[..., 0] = 0
    exact, _ = naive(*doubled(tensors))
    for decay in (0.0, -1e4, float("-inf")):
        tensors[5][..., 0] = decay
        assert relative_error(triton_form.delta_rule(*tensors), exact) < 1e-6


def test_one_product_of_tf32_if_that_is_asked_for(randn, relative_error, device):
    tensors = inputs(randn, device, torch.float32, 40, 1, 16, 16, "head")[:6]
    exact, _ = naive(*doubled(tensors))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        coarse = relative_error(triton_form.delta_rule(*tensors), exact)
    finally:
        torch.set_float32_matmul_precision(before)
    assert 1e-5 < coarse < 1e-3


def test_the_same_key_again_and_again(randn, device):
    """The inverse of a triangle of ones: its powers would be in the thousands, and cancel."""
    tensors = inputs(randn, device, torch.float32, 40, 1, 16, 16, "none")
    tensors[4] = tensors[4][:, :1].expand_as(tensors[4])
    tensors[3] = -tensors[4]
    tensors[1] = tensors[4].clone()
    compare(randn, tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("decays", "strength", "heads", "keys"),
    [("channel", 0.2, 2, 16), ("channel", 9.0, 2, 16), ("head", 0.2, 3, 24), ("none", 0.2, 1, 80)],
)
def test_gradients_of_what_others_read_too(randn, device, bfloat16, dtype, decays, strength, heads, keys):
    """q, k and v come back, and what is asked of them is added to the rule's gradients: of mild chunks and others.

    80 keys are two programs' in bfloat16.
    """
    tensors = inputs(randn, device, dtype, 40, heads, keys, 16, decays, strength=strength)[:6]
    found = []
    for function in (triton_form.shared_delta_rule, lambda *x: (reference(*x), *x[:3])):
        leaves = [x if x is None else x.detach().requires_grad_() for x in (tensors if not found else doubled(tensors))]
        y, q, k, v = function(*leaves)
        loss = y.square().sum() + (q * k).sum() + 2 * v.square().sum()
        found.append([y.detach(), *torch.autograd.grad(loss, [x for x in leaves if x is not None])])
    for ours, exact in zip(*found, strict=True):
        assert error(ours, exact) < (1e-2 if dtype == torch.bfloat16 else 1e-5)


def test_without_states_and_run_to_run(randn, device):
    """No state in, none out; the same numbers every time."""
    tensors = inputs(randn, device, torch.float32, 40, 2, 16, 16, "channel")[:6]
    found = []
    for function in (triton_form.delta_rule, triton_form.delta_rule, reference):
        leaves = [x.detach().requires_grad_() for x in tensors]
        y = function(*leaves)
        found.append([y.detach(), *torch.autograd.grad(y.sum(), leaves)])
    for one, two, theirs in zip(*found, strict=True):
        assert torch.equal(one, two)
        assert error(one, theirs.double()) < 1e-5


def test_gradients_through_the_last_state_alone(randn, relative_error, device):
    tensors = inputs(randn, device, torch.float32, 20, 1, 16, 16, "channel")[:6]
    found = []
    for function, parts in ((triton_form.delta_rule, tensors), (reference, doubled(tensors))):
        leaves = [part.detach().requires_grad_() for part in parts]
        state = function(*leaves, return_state=True)[1]
        found.append(torch.autograd.grad(state.sum(), leaves[1:]))
    for ours, exact in zip(*found, strict=True):
        assert relative_error(ours, exact) < 1e-5


def test_prefix_and_rest_give_the_whole(randn, relative_error, device):
    tensors = inputs(randn, device, torch.float32, 50, 1, 16, 16, "head")[:6]
    whole, last = triton_form.delta_rule(*tensors, return_state=True)
    parts = [[part[:, rows] for part in tensors] for rows in (slice(23), slice(23, None))]
    head, state = triton_form.delta_rule(*parts[0], return_state=True)
    tail, end = triton_form.delta_rule(*parts[1], initial_state=state, return_state=True)
    assert relative_error(torch.cat([head, tail], 1), whole.double()) < 1e-6
    assert relative_error(end, last.double()) < 1e-6


def test_large_norms_in_half_precision(randn, relative_error, device):
    """Products and states pass 65504, the largest float16."""
    tensors = inputs(randn, device, torch.float16, 40, 1, 16, 16, "channel")[:6]
    q, k, v, *others = tensors
    tensors = 1e-3 * q, 1000 * k, 1000 * v, *others
    exact = naive(*doubled(tensors))[0]
    assert relative_error(triton_form.delta_rule(*tensors), exact) < 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="too slow to interpret")
@pytest.mark.parametrize("decays", ["none", "head", "channel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", ON_A_GPU, ids=str)
def test_long_and_wide(randn, device, dtype, shape, decays):
    tensors = inputs(randn, device, dtype, *shape, decays, batch=2)
    compare(randn, tensors, exact=by_reference)
    compare(randn, [*tensors[:3], None, None, *tensors[5:]], exact=by_reference)


@pytest.mark.parametrize(("key_dim", "value_dim", "decays"), [(16, 48, "channel"), (24, 80, "head"), (64, 64, "none")])
def test_decode_steps(randn, relative_error, device, key_dim, value_dim, decays):
    *tensors, state = inputs(randn, device, torch.float32, 3, 2, key_dim, value_dim, decays, batch=2)
    for parts in (tensors, [*tensors[:3], None, None, tensors[5]]):
        own = state.clone()
        y = [step(*(x if x is None else x[:, t] for x in parts), own) for t in range(3)]
        exact, last = naive(*doubled(parts), initial_state=state.double())
        assert relative_error(torch.stack(y, 1), exact) < 1e-6
        assert relative_error(own, last) < 1e-6


def test_operators_keep_torchs_rules(randn, device):
    """Schema, fake tensors and autograd registration."""
    tensors = inputs(randn, device, torch.float32, 17, 1, 16, 16, "channel")
    leaves = [part.detach().requires_grad_() for part in tensors]
    torch.library.opcheck(triton_form.forward, (*leaves, True, True))
    q, k, v, *_, state = leaves
    torch.library.opcheck(triton_form.forward, (q, k, v, None, None, None, None, False, True))
    token = [part[:, 0] for part in tensors[:6]]
    torch.library.opcheck(step, (*token, state.detach()))


@pytest.mark.parametrize(("keys", "most"), [(16, 264), (64, 264), (128, 132)])
def test_three_stages_where_all_programs_run_at_once(keys, most):
    """Those of 128 keys take 140 KiB of shared memory: one on a multiprocessor, of which there are 132."""

    def stages(programs, precision="bf16"):
        return triton_form.launch_shape({"BK": keys, "BV": 64}, programs, precision)["num_stages"]

    assert (stages(most), stages(most + 1), stages(1, "tf32")) == (3, 2, 2)


def test_what_the_kernels_leave_to_the_reference(randn, device):
    q, k, v, a, b, g, state = inputs(randn, device, torch.float32, 3, 2, 16, 8, "channel")
    refuse = triton_form.unsupported
    assert refuse(q, k, v, a, b, g, state) is None
    assert refuse(q, k, v, None, None, None, None) is None
    assert "share" in refuse(q, k.half(), v, a, b)
    assert "state must be" in refuse(q, k, v, a, b, g, state.double())
    assert "together" in refuse(q, k, v, a)
    assert "one a channel" in refuse(q, k, v, a, b, g[..., :3])
    assert "wide" in refuse(*(x.repeat(1, 1, 1, 9) for x in (q, k)), v)
    assert "nothing" in refuse(q[:0], k[:0], v[:0])
    token = [x[:, 0] for x in (q, k, v, a, b, g)]
    assert step_unsupported(*token, state) is None
    assert "contiguous" in step_unsupported(*token, state.mT)
    assert "together" in step_unsupported(*token[:3], None, *token[4:], state)
    assert "gradient" in step_unsupported(*token, state.requires_grad_())
