"""What every mixer promises, checked over every registered mixer and several option sets."""

import re
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from basedbench.mixers import check_options, get_mixer

CASES = [
    ("attention", 24, {}),
    ("attention", 24, {"heads": 3, "dropout": 0.0}),
    ("sliding_window", 24, {"window": 8}),
    ("sliding_window", 24, {"window": 1, "heads": 2}),
    ("sliding_window", 16, {"window": 100}),
    ("based", 24, {"feature_dim": 8}),
    ("based", 24, {"feature_dim": 1, "heads": 3}),
    ("based", 16, {"feature_dim": 4, "heads": 2, "window": 5}),
    ("linear_attention", 24, {"feature_dim": 8}),
    ("linear_attention", 24, {"feature_dim": 5, "heads": 2}),
    ("hyena", 24, {}),
    ("hyena", 16, {"filter_order": 8, "emb_dim": 5, "short_filter": 2, "max_length": 48}),
    ("h3", 24, {}),
    ("h3", 12, {"d_state": 8, "head_dim": 3}),
    ("base_conv", 24, {}),
    ("base_conv", 16, {"kernel_size": 5}),
    ("mamba", 20, {"d_state": 4}),
    ("mamba", 16, {"d_state": 8, "d_conv": 2, "expand": 1}),
    ("mamba2", 24, {"head_dim": 16, "d_state": 4}),
    ("mamba2", 16, {"head_dim": 8, "d_state": 8, "groups": 2, "d_conv": 3}),
]
IDS = [f"{name}-{d_model}-{options}" for name, d_model, options in CASES]
LENGTH = 33

pytestmark = pytest.mark.parametrize(("name", "d_model", "options"), CASES, ids=IDS)


def build(name, d_model, options, dtype=torch.float64):
    torch.manual_seed(0)
    return get_mixer(name)(d_model, **options).to(dtype).eval()


def inputs(d_model, batch=3, length=LENGTH, dtype=torch.float64):
    return torch.randn(batch, length, d_model, dtype=dtype, generator=torch.Generator().manual_seed(1))


def steps(mixer, x_BLD, state):
    outputs = []
    for x_BD in x_BLD.unbind(1):
        y_BD, state = mixer.step(x_BD, state)
        outputs.append(y_BD)
    return torch.stack(outputs, 1), state


def layout(state):
    return {key: (tensor.shape, tensor.dtype) for key, tensor in state.items()}


def size(state):
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


@pytest.mark.parametrize("length", [1, 2, 17, LENGTH])
def test_forward_prefill_and_steps_agree(name, d_model, options, length):
    mixer, x_BLD = build(name, d_model, options), inputs(d_model, length=length)
    with torch.inference_mode():
        y_BLD = mixer(x_BLD)
        stepped_BLD, _ = steps(mixer, x_BLD, mixer.init_state(3, length, torch.float64))
        torch.testing.assert_close(mixer.prefill(x_BLD)[0], y_BLD)
        torch.testing.assert_close(stepped_BLD, y_BLD)


@pytest.mark.parametrize("reserve", [False, True])
@pytest.mark.parametrize("prompt", [1, 7, 16, LENGTH - 1])
def test_prefill_of_a_part_then_steps(name, d_model, options, prompt, reserve):
    mixer, x_BLD = build(name, d_model, options), inputs(d_model)
    with torch.inference_mode():
        head_BLD, state = mixer.prefill(x_BLD[:, :prompt], LENGTH + 5 if reserve else None)
        tail_BLD, _ = steps(mixer, x_BLD[:, prompt:], state)
        torch.testing.assert_close(torch.cat((head_BLD, tail_BLD), 1), mixer(x_BLD))


def test_state_of_prefill_is_that_of_steps(name, d_model, options):
    mixer, x_BLD = build(name, d_model, options), inputs(d_model)
    with torch.inference_mode():
        _, state = mixer.prefill(x_BLD, LENGTH + 5)
        _, stepped = steps(mixer, x_BLD, mixer.init_state(3, LENGTH + 5, torch.float64))
    assert layout(state) == layout(stepped)
    for key, tensor in state.items():
        torch.testing.assert_close(tensor, stepped[key])
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, f"{key} is a view into something larger"


def test_causal(name, d_model, options):
    mixer, x_BLD = build(name, d_model, options), inputs(d_model)
    changed_BLD = x_BLD.clone()
    changed_BLD[:, 20:] += 10
    difference_L = (mixer(changed_BLD) - mixer(x_BLD)).abs().amax((0, 2))
    assert difference_L[:20].max() < 1e-12
    assert difference_L[20:].min() > 1e-6


def test_sequences_of_a_batch_are_independent(name, d_model, options):
    mixer, x_BLD = build(name, d_model, options), inputs(d_model)
    alone_BLD = torch.cat([mixer(x_1LD) for x_1LD in x_BLD.split(1)])
    torch.testing.assert_close(mixer(x_BLD), alone_BLD)


def test_sequences_of_different_age_decode_together(name, d_model, options):
    mixer, x_BLD = build(name, d_model, options), inputs(d_model, batch=2)
    with torch.inference_mode():
        young, old = (mixer.prefill(x_BLD[i : i + 1, :n], LENGTH)[1] for i, n in ((0, 3), (1, 20)))
        state = {key: torch.cat((young[key], old[key])) for key in young}
        y_BD, state = mixer.step(torch.stack((x_BLD[0, 3], x_BLD[1, 20])), state)
        y_BD, _ = mixer.step(torch.stack((x_BLD[0, 4], x_BLD[1, 21])), state)
        torch.testing.assert_close(y_BD[0], mixer(x_BLD[:1, :5])[0, -1])
        torch.testing.assert_close(y_BD[1], mixer(x_BLD[1:, :22])[0, -1])


def test_gradients_against_float64(name, d_model, options):
    wide, narrow = build(name, d_model, options), build(name, d_model, options, torch.float32)
    wide.load_state_dict(narrow.state_dict())
    x_BLD, weights_BLD = inputs(d_model, dtype=torch.float32), torch.randn(3, LENGTH, d_model)
    gradients = []
    for mixer, dtype in ((wide, torch.float64), (narrow, torch.float32)):
        leaf_BLD = x_BLD.to(dtype).requires_grad_()
        (mixer(leaf_BLD) * weights_BLD.to(dtype)).sum().backward()
        gradients.append({"input": leaf_BLD.grad} | {key: p.grad for key, p in mixer.named_parameters()})
    for key, exact in gradients[0].items():
        assert exact.norm() > 0, key
        assert (gradients[1][key].double() - exact).norm() < 1e-5 * exact.norm() + 1e-6, key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("length", [1, 48])
def test_measured_state_is_the_formula_of_the_docstring(name, d_model, options, dtype, length):
    mixer = build(name, d_model, options, torch.float32)
    (formula,) = re.findall(r"^ *state_bytes = (.+)$", sys.modules[type(mixer).__module__].__doc__, re.M)
    given = check_options(name, d_model, options)
    names = given | {"d": d_model, "L": length, "e": dtype.itemsize, "a": 8 if dtype == torch.float64 else 4}
    expected = eval(formula, {}, names | {"f": given.get("feature_dim")})
    assert size(mixer.init_state(1, length, dtype)) == expected
    assert size(mixer.init_state(1, length, dtype, "meta")) == expected
    assert size(mixer.init_state(4, length, dtype)) == 4 * expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_prefill_carries_what_init_state_promises(name, d_model, options, dtype):
    mixer = build(name, d_model, options, dtype)
    with torch.inference_mode():
        _, state = mixer.prefill(inputs(d_model, dtype=dtype), 40)
    assert layout(state) == layout(mixer.init_state(3, 40, dtype))
    assert all(tensor.shape[0] == 3 for tensor in state.values())


def test_bfloat16_is_close_to_float32(name, d_model, options):
    narrow = build(name, d_model, options, torch.bfloat16)
    wide = build(name, d_model, options, torch.float32)
    wide.load_state_dict(narrow.state_dict())
    x_BLD = inputs(d_model, dtype=torch.bfloat16)
    with torch.inference_mode():
        y_BLD, exact_BLD = narrow(x_BLD), wide(x_BLD.float())
        stepped_BLD, _ = steps(narrow, x_BLD, narrow.init_state(3, LENGTH, torch.bfloat16))
    for result in (y_BLD, stepped_BLD):
        assert result.dtype == torch.bfloat16
        assert (result.float() - exact_BLD).norm() < 0.05 * exact_BLD.norm()


def test_nothing_is_read_back_to_the_host(name, d_model, options):
    """On tensors without values, a shape or branch that depends on data raises, as it would break a CUDA graph."""
    with FakeTensorMode():
        mixer, x_BLD = get_mixer(name)(d_model, **options), torch.empty(3, LENGTH, d_model)
        mixer.train()(x_BLD).sum().backward()
        with torch.no_grad():
            y_BLD, state = mixer.prefill(x_BLD, 40)
            y_BD, after = mixer.step(x_BLD[:, 0], state)
    assert y_BLD.shape == x_BLD.shape
    assert y_BD.shape == x_BLD[:, 0].shape
    assert layout(after) == layout(state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_step_in_a_cuda_graph(name, d_model, options):
    mixer = build(name, d_model, options, torch.float32).cuda()
    x_BLD = inputs(d_model, dtype=torch.float32).cuda()
    with torch.inference_mode():
        slot_BD, state = x_BLD[:, 0].clone(), mixer.init_state(3, LENGTH, device="cuda")
        mixer.step(slot_BD, mixer.init_state(3, LENGTH, device="cuda"))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y_BD, _ = mixer.step(slot_BD, state)
        outputs = []
        for x_BD in x_BLD.unbind(1):
            slot_BD.copy_(x_BD)
            graph.replay()
            outputs.append(y_BD.clone())
        torch.testing.assert_close(torch.stack(outputs, 1), mixer(x_BLD), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_in_a_cuda_graph(name, d_model, options):
    mixer = build(name, d_model, options, torch.float32).cuda()
    x_BLD = inputs(d_model, dtype=torch.float32).cuda()
    parameters = list(mixer.parameters())
    expected = torch.autograd.grad(mixer(x_BLD).square().sum(), parameters)
    slot_BLD, graph = x_BLD.clone(), torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.autograd.grad(mixer(slot_BLD).square().sum(), parameters)
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        found = torch.autograd.grad(mixer(slot_BLD).square().sum(), parameters)
    graph.replay()
    for gradient, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-3, atol=1e-3)
