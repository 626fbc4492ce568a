"""What every mixer promises (basedbench/checking/laws.py), over every registered mixer and several option sets."""

import pytest
import torch

from basedbench.checking.laws import CHANGED, LAWS, Law, broken
from basedbench.checking.subject import BATCH, LENGTH, Subject, stated_formula

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
    ("linear_attention", 24, {"feature_map": "identity", "feature_dim": 8}),
    ("linear_attention", 24, {"feature_map": "relu", "feature_dim": 8}),
    ("linear_attention", 24, {"feature_map": "square", "feature_dim": 6, "heads": 2}),
    ("linear_attention", 24, {"feature_map": "cosformer", "feature_dim": 8, "max_length": 50}),
    ("linear_attention", 24, {"feature_map": "performer", "feature_dim": 5, "features": 13, "heads": 2}),
    ("linear_attention", 16, {"feature_map": "performer", "feature_dim": 4}),
    ("linear_attention", 24, {"feature_map": "hedgehog", "feature_dim": 4, "heads": 3}),
    ("linear_attention", 24, {"feature_map": "taylor1", "feature_dim": 8}),
    ("linear_attention", 24, {"feature_map": "taylor2", "feature_dim": 5, "heads": 2}),
    ("linear_attention", 24, {"feature_map": "taylor3", "feature_dim": 4, "heads": 2}),
    ("linear_attention", 24, {"feature_map": "all_poly", "feature_dim": 8, "features": 6}),
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
    ("delta_net", 24, {}),
    ("delta_net", 12, {"heads": 3, "d_conv": 2, "expand_v": 2}),
    ("gated_delta_net", 24, {}),
    ("gated_delta_net", 12, {"heads": 1, "expand_v": 1, "gate": True}),
    ("kda", 24, {}),
    ("kda", 12, {"heads": 3, "expand_v": 2, "rank": 5}),
    ("rwkv7", 24, {"head_dim": 12}),
    ("rwkv7", 16, {"head_dim": 16, "decay_rank": 3, "gate_rank": 5, "rate_rank": 2}),
    ("gla", 24, {}),
    ("gla", 16, {"heads": 4, "expand_k": 1.0, "expand_v": 1.5, "decay_rank": 3, "d_conv": 4}),
    ("retnet", 24, {}),
    ("gla", 200, {"heads": 2, "expand_k": 0.29, "expand_v": 0.57}),  # 114 values, of 113.99999999999999
    ("retnet", 16, {"heads": 1, "expand_v": 1.0}),
    ("rwkv4", 24, {}),
    ("rwkv4", 16, {"depth": 0.0}),
]
# identity, and all_poly where training begins, divide by sums of either sign, which come close to zero: rounding is
# magnified, in any implementation.
# test_feature_maps.py holds identity to a bound that knows how much.
MAGNIFIED = ("gradients are right", "bfloat16 is close")
IDS = [f"{name}-{d_model}-{options}" for name, d_model, options in CASES]

pytestmark = pytest.mark.parametrize("subject", [Subject(*case) for case in CASES], ids=IDS)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_law(law: Law, subject: Subject) -> None:
    if subject.options.get("feature_map") in ("identity", "all_poly") and law.name in MAGNIFIED:
        pytest.skip("it magnifies rounding")
    assert broken(law, subject) == []


def test_the_state_has_a_stated_size(subject: Subject) -> None:
    assert stated_formula(subject.name) is not None


def test_every_later_output_depends_on_the_inputs(subject: Subject) -> None:
    mixer, x_BLD = subject.build(), subject.inputs()
    changed_BLD = x_BLD.clone()
    changed_BLD[:, CHANGED:] += 10
    difference_L = (mixer(changed_BLD) - mixer(x_BLD)).abs().amax((0, 2))
    assert difference_L[CHANGED:].min() > 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_step_in_a_cuda_graph(subject: Subject) -> None:
    mixer = subject.build(torch.float32).cuda()
    x_BLD = subject.inputs(dtype=torch.float32).cuda()
    with torch.inference_mode():
        slot_BD, state = x_BLD[:, 0].clone(), mixer.init_state(BATCH, LENGTH, device="cuda")
        mixer.step(slot_BD, mixer.init_state(BATCH, LENGTH, device="cuda"))
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
def test_training_in_a_cuda_graph(subject: Subject) -> None:
    mixer = subject.build(torch.float32).cuda()
    x_BLD = subject.inputs(dtype=torch.float32).cuda()
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
