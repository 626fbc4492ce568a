"""The suites that a CPU can run: what they expand to, and that every model in them can be built and weighed."""

import math
from collections import Counter

import pytest

from basedbench.cli.recall_input import choose_suite
from basedbench.config import load_suite
from basedbench.models.state import state_bytes
from basedbench.training.cases import RecallCase, recall_cases
from basedbench.training.run import build_model
from tests.training.conftest import tiny_suite

OWN_CONVOLUTION = {"mamba", "mamba2"}


def models(name: str) -> dict[str, RecallCase]:
    """One case for each model of a suite."""
    return {case.model_label: case for case in recall_cases(load_suite(name, "recall"))}


def test_quick_compares_every_family_at_several_sizes() -> None:
    sizes = Counter(case.mixer for case in models("quick").values())
    assert sizes.keys() == {"attention", "sliding_window", "based", "linear_attention", "mamba", "mamba2"}
    assert all(sizes[mixer] >= 3 for mixer in ("sliding_window", "based", "mamba", "mamba2"))


def test_quick_tries_several_learning_rates_except_on_the_slowest_family() -> None:
    runs = Counter(case.model_label for case in recall_cases(load_suite("quick")))
    assert {label.split()[0] for label, rates in runs.items() if rates < 2} == {"mamba"}


def test_learning_rates_of_the_command_line_replace_those_of_families() -> None:
    suite = choose_suite("quick", ["cpu"], lr="0.03", seed=None, epochs=None, precision=None)
    assert {case.learning_rate for case in recall_cases(suite)} == {0.03}


def test_a_family_with_learning_rates_of_its_own_is_trained_at_those() -> None:
    models = [{"mixer": "based", "grid": {"d_model": 16}}, {"mixer": "attention", "grid": {"d_model": 16}}]
    suite = tiny_suite([models[0] | {"learning_rates": [0.003, 0.004]}, models[1]], learning_rates=[0.01])
    rates = [(case.mixer, case.learning_rate) for case in recall_cases(suite)]
    assert rates == [("based", 0.003), ("based", 0.004), ("attention", 0.01)]


def test_quick_tests_beyond_what_it_trains() -> None:
    case = next(iter(models("quick").values()))
    assert case.longest > max(segment.length for segment in case.train.segments)
    assert {(s.length, s.pairs) for s in case.train.segments} < {(s.length, s.pairs) for s in case.test.segments}
    assert case.test.examples >= 200


def test_quick_stacks_a_mixer_with_its_own_convolution_alone() -> None:
    for case in models("quick").values():
        below = [] if case.mixer in OWN_CONVOLUTION else ["base_conv"]
        assert [layer.mixer for layer in case.layers] == [*below, case.mixer]


def test_quick_has_attention_at_the_largest_state() -> None:
    weights = {label: state_bytes(build_model(case), case.longest) for label, case in models("quick").items()}
    largest = max(weights, key=lambda label: weights[label])
    assert largest.startswith("attention")


def test_smoke_is_three_models_of_a_few_steps() -> None:
    cases = recall_cases(load_suite("smoke", "recall"))
    assert [case.mixer for case in cases] == ["attention", "based", "mamba"]
    assert all(case.steps_per_epoch * case.train.epochs <= 10 for case in cases)


@pytest.mark.parametrize("name", ["quick", "smoke"])
def test_every_model_can_be_built(name: str) -> None:
    for case in models(name).values():
        parameters = list(build_model(case).parameters())
        assert all(math.isfinite(parameter.abs().sum().item()) for parameter in parameters)
