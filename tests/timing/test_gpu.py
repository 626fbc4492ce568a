"""What can only be seen on a GPU: samplers, memory, telemetry, workers that lose their context."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from triton.runtime.autotuner import Autotuner

from basedbench.config import load_suite
from basedbench.config.throughput import MeasureSection
from basedbench.contenders import get_contender
from basedbench.models.language import LanguageModel
from basedbench.timing.beside import compile_ahead
from basedbench.timing.ceilings import calibrate
from basedbench.timing.clock import WallClock
from basedbench.timing.cross_check import cross_check
from basedbench.timing.flush import LONGEST_BLOCKER_MS
from basedbench.timing.kept import Kept
from basedbench.timing.kinds import NOTHING_TO_TUNE
from basedbench.timing.language import LanguageSubject
from basedbench.timing.mappings import renew_mappings
from basedbench.timing.memory import peak_memory
from basedbench.timing.samplers import ColdSampler, GraphSampler, captured, wall_ms
from basedbench.timing.samples import Round
from basedbench.timing.session import Session
from basedbench.timing.subject import subject_of
from basedbench.timing.telemetry import Telemetry
from basedbench.timing.worker import Failure, Worker, Workers, _set_up
from tests.contenders.conftest import FORMS, small
from tests.timing.conftest import TINY_LAYERS, make_case, make_model_case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda:0"
OWN = ["ours", "reference", "sdpa-flash", "sdpa-cudnn", "sdpa-efficient", "sdpa-math", "flex", "torch", "torch-compile"]
PLUGIN = str(Path(__file__).with_name("plugin_gpu.py"))
MEASURE = MeasureSection(round_ms=2, timeout=300)


def test_cold_samples_do_not_wait_for_the_host() -> None:
    x = torch.randn(2**20, device=DEVICE)
    sampler = ColdSampler([lambda: x.mul_(1.0)], DEVICE, enqueue_ms=0.05)
    sampler.sample(5)
    before = sampler.exposed
    samples = sampler.sample(20)
    assert len(samples) == 20
    assert all(sample > 0 for sample in samples)
    assert sampler.exposed == before


def test_a_call_that_waits_for_the_device_is_exposed_and_the_blocker_bounded() -> None:
    x = torch.randn(2**10, device=DEVICE)
    sampler = ColdSampler([lambda: x.sum().item()], DEVICE, enqueue_ms=0.01)
    sampler.sample(20)
    assert sampler.exposed == 20
    assert sampler.lead.milliseconds == LONGEST_BLOCKER_MS


def test_a_graph_runs_every_input_set_as_often() -> None:
    counters = [torch.zeros((), device=DEVICE) for _ in range(3)]
    sampler = GraphSampler([lambda c=c: c.add_(1) for c in counters])
    assert sampler.passes > 1
    before, exposed = [int(c) for c in counters], sampler.exposed
    assert all(sample > 0 for sample in sampler.sample(4))
    assert sampler.exposed == exposed
    torch.cuda.synchronize()
    assert [int(c) - b for c, b in zip(counters, before, strict=True)] == [4 * sampler.passes] * 3
    assert wall_ms([lambda: counters[0].add_(1)], WallClock(), 10) > 0


def test_peak_memory_is_exact() -> None:
    def call() -> torch.Tensor:
        a = torch.ones(2**22, device=DEVICE)  # 16 MiB
        b = a + 1
        del a
        return b * 2

    assert peak_memory(call, DEVICE) == 2 * 2**24


def test_the_card_tells_what_it_does() -> None:
    reading = Telemetry(DEVICE).read()
    if reading is None:
        pytest.skip("NVML cannot be asked here")
    assert 100 < reading.clock_mhz < 5000
    assert 0 < reading.temperature_c < 120
    assert reading.power_w > 0


@pytest.mark.parametrize(
    ("name", "operator", "mode"),
    [(name, *form) for name in OWN for form in FORMS if form[0] in get_contender(name).operators],
)
def test_contenders_are_right_or_say_why_not(name: str, operator: str, mode: str) -> None:
    case = small(operator, mode, name, device="cuda", dtype="bf16", length=200, key_dim=16, value_dim=16)
    case = case.model_copy(update={"cache": "hot" if mode == "decode" else "cold"})
    if reason := get_contender(name).supports(case):
        pytest.skip(reason)
    session = Session(case, MEASURE, DEVICE, WallClock())
    facts = session.prepare()
    assert facts["status"] == "ok", facts["reason"]
    assert facts["graph"] == (mode == "decode")
    assert (facts["wall_ms"] is not None) == (mode == "decode")
    assert facts["peak_memory_bytes"] >= 0
    assert all(sample > 0 for sample in session.round().samples_ms)
    session.close()


@pytest.mark.parametrize(("contender", "status"), [("greedy", "oom"), ("asserts", "runtime_error")])
def test_a_lost_context_costs_one_case(contender: str, status: str) -> None:
    lost = make_case(contender, device="cuda", cache="cold", dtype="bf16")
    with Workers(DEVICE, [PLUGIN]) as workers:
        answer = workers.of(lost).prepare(lost, MEASURE)
        assert isinstance(answer, Failure)
        assert answer.status == status
        workers.discard(lost)
        good = make_case("reference", device="cuda", cache="cold", dtype="bf16")
        facts = workers.of(good).prepare(good, MEASURE)
        assert isinstance(facts, dict)
        assert facts["status"] == "ok"


def test_what_cannot_be_captured_is_unsupported_in_a_graph() -> None:
    case = make_case("syncs", device="cuda", cache="hot", dtype="bf16")
    with Workers(DEVICE, [PLUGIN]) as workers:
        answer = workers.of(case).prepare(case, MEASURE)
    assert isinstance(answer, Failure)
    assert answer.status == "unsupported"
    assert "cannot be captured" in answer.reason


@pytest.mark.parametrize("operator", ["short_conv", "sliding_window", "linear_cross_entropy", "taylor_attention"])
def test_what_is_compiled_ahead_is_all_that_is_launched(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_suite("steady", "throughput").expand("cuda", [])
    case = next(one for one in found if (one.subject, one.contender, one.mode) == (operator, "ours", "fwd_bwd"))
    subject, missing = subject_of(case, DEVICE), list[str]()
    with torch.set_grad_enabled(True):
        compile_ahead(case, DEVICE)
        monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", lambda **asked: missing.append(asked["repr"]))
        subject.load()
        subject.start()
        assert not missing
        assert subject.check().reason is None


# Backward passes of peers that are refused, and over what; how far off they are, their adapters say.
REFUSED = {
    ("linear_attention", None): "the gradient of q_BLHK",
}


@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd"])
@pytest.mark.parametrize(
    ("operator", "contender", "config"),
    [
        ("taylor_attention", "fla-parallel", {}),
        ("taylor_attention", "fla-fused-chunk", {}),
        ("linear_attention", "fla-chunk", {}),
        ("gated_linear_attention", "fla-chunk", {}),
        *(("delta_rule", "fla-chunk", {"decay": decay}) for decay in ("none", "head", "channel")),
    ],
)
def test_what_a_peer_launches_and_chooses_from_is_all_compiled_ahead(
    operator: str, contender: str, config: dict[str, str], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it chooses for itself afterwards, if it does: with what was compiled its results are right."""
    shape = {"batch": 2, "length": 512, "heads": 2, "key_dim": 16 if operator == "taylor_attention" else 64}
    case = make_case(
        contender, operator=operator, mode=mode, device="cuda", dtype="bf16", cache="cold", config=config, **shape
    ).model_copy(update={"value_dim": 64})
    if reason := get_contender(contender).supports(case):
        pytest.skip(reason)
    for name in ("FLA_CACHE_RESULTS", "TRITON_CACHE_AUTOTUNING"):
        monkeypatch.setenv(name, "0")
    subject, missing, tuned = subject_of(case, DEVICE), list[str](), list[str]()
    tune = Autotuner.run

    def seen(self: Autotuner, *arguments: object, **options: object) -> object:
        tuned.append(self.base_fn.__name__)
        return tune(self, *arguments, **options)

    with torch.set_grad_enabled(subject.grad):
        compile_ahead(case, DEVICE)
        torch.cuda.synchronize()
        monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", lambda **asked: missing.append(asked["repr"]))
        monkeypatch.setattr(Autotuner, "run", seen)
        subject.load()
        subject.start()
        assert not missing
        assert bool(tuned) == (contender not in NOTHING_TO_TUNE)
        verdict = subject.check()
    known = REFUSED.get((operator, config.get("decay"))) if mode == "fwd_bwd" else None
    assert verdict.reason is None or (known and verdict.reason.startswith(known))
    assert verdict.error < 0.02  # and no further off than roundings take it


@pytest.mark.filterwarnings("ignore:.*determin")
@pytest.mark.parametrize(("operator", "mode"), FORMS)
def test_a_call_for_nothing_leaves_nothing_behind(operator: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What operators of PyTorch do with the garbage between kernels stops no device, and nothing keeps it."""
    if (operator, mode) in [("attention", "fwd"), ("attention", "fwd_bwd")]:
        pytest.skip("ours computes attention in decoding only")
    case = small(operator, mode, device="cuda", dtype="bf16", cache="cold", length=600, key_dim=16, value_dim=64)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)  # memory holds NaN, or the largest of all numbers
    try:
        compile_ahead(case, DEVICE)
        torch.cuda.synchronize()
    finally:
        torch.use_deterministic_algorithms(False)
    assert Session(case, MEASURE, DEVICE, WallClock()).prepare()["status"] == "ok"


def test_torch_finds_the_context_that_the_driver_was_asked_for() -> None:
    code = """
import torch
from basedbench.timing.waking import make_context, open_device
assert make_context(0)
open_device("cuda:0")
assert float(torch.ones(4, device="cuda").sum()) == 4
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_context_beside_torchs_own_comes_and_goes() -> None:
    x = torch.ones(4, device=DEVICE)
    held = torch.cuda.memory_allocated()
    assert renew_mappings(DEVICE)
    assert float(x.sum()) == 4  # this process's own context is current again
    assert torch.cuda.memory_allocated() == held


def test_ceilings_of_the_gpu() -> None:
    found = {row["ceiling"]: row for row in calibrate(DEVICE, seconds=0.1)}
    assert list(found) == ["copy", "matmul_fp32", "matmul_tf32", "matmul_bf16", "matmul_fp16", "launch"]
    assert all(row["device"] == "cuda" and row["median_ms"] > 0 for row in found.values())


def test_other_tools_find_about_the_same() -> None:
    """A large product: one kernel, far longer than any of the three methods' own costs."""
    x = torch.randn(4096, 4096, device=DEVICE, dtype=torch.bfloat16)
    ours = sorted(ColdSampler([lambda: x @ x], DEVICE, enqueue_ms=0.05).sample(20))[10]
    found = cross_check([lambda: x @ x])
    assert found["do_bench_ms"] == pytest.approx(ours, rel=0.25)
    assert found["profiler_ms"] == pytest.approx(ours, rel=0.25)


@pytest.mark.parametrize("family", TINY_LAYERS)
@pytest.mark.parametrize("mode", ["generation", "prefill"])
def test_whole_models_are_right_and_run_as_their_mode_asks(family: str, mode: str) -> None:
    wide = {"d_model": 128, "heads": 2, "feature_dim": 16, "d_state": 16, "vocab_size": 512}
    case = make_model_case(
        family, device="cuda", dtype="bf16", mode=mode, cache="hot" if mode == "generation" else "cold"
    )
    case = case.model_copy(update={"overrides": case.overrides | wide, "contender": "ours"})
    if family == "attention":
        case = case.model_copy(update={"contender": "sdpa-flash"})
    session = Session(case, MEASURE, DEVICE, WallClock())
    facts = session.prepare()
    assert facts["status"] == "ok", facts.get("reason")
    assert facts["graph"], facts["reason"]
    assert facts["reason"] is None
    assert facts["wall_ms"] > 0
    assert facts["largest_batch"] > 3
    assert all(sample > 0 for sample in session.round().samples_ms)
    session.close()


def prompts(family: str, length: int) -> LanguageSubject:
    """A model loaded for a prompt in bfloat16."""
    wide = {"d_model": 128, "heads": 2, "feature_dim": 16, "d_state": 16, "vocab_size": 512}
    case = make_model_case(family, device="cuda", dtype="bf16", mode="prefill", cache="cold", length=length)
    by = "sdpa-flash" if family == "attention" else "ours"
    subject = LanguageSubject(case.model_copy(update={"overrides": case.overrides | wide, "contender": by}), DEVICE)
    with torch.no_grad(), subject.context():
        subject.load()
        subject.start()
    return subject


@pytest.mark.parametrize("family", TINY_LAYERS)
@pytest.mark.parametrize("length", [17, 1000, 2048])
def test_a_replayed_prompt_gives_what_a_launched_one_gives(family: str, length: int) -> None:
    subject = prompts(family, length)
    with torch.no_grad(), subject.context():
        launched = []
        for call in subject.calls():
            logits, state = call()
            launched.append([logits.clone(), *(tensor.clone() for tensor in state.values())])
        found: list[torch.Tensor] = []

        def capture(call):
            def keep():
                found[:] = [call()[0]]

            return captured(keep)

        for replay, expected in zip(subject.replayed(capture), launched, strict=True):
            for tensor in subject.state.values():
                tensor.zero_()
            replay()
            got = [found[0], *subject.state.values()]
            for a, b in zip(got, expected, strict=True):
                assert (
                    a.double() - b.double()
                ).norm() <= 1e-3 * b.double().norm()  # a library may split sums otherwise


def waiting(device: str, plugins: list[str]) -> object:
    """A worker's set-up in which prompts wait for the host."""
    prefill = LanguageModel.prefill

    def waits(self, tokens_BL, *arguments, **options):
        tokens_BL.sum().item()
        return prefill(self, tokens_BL, *arguments, **options)

    LanguageModel.prefill = waits
    return _set_up(device, plugins)


def test_a_prompt_that_waits_for_the_host_is_launched_and_its_row_says_so() -> None:
    worker, case = Worker(DEVICE, [], waiting), prompts("based", 64).case
    facts = worker.prepare(case, MEASURE)
    one = worker.round(60)
    worker.stop()
    assert isinstance(facts, dict)
    assert facts["status"] == "ok", facts.get("reason")
    assert facts["graph"] is False
    assert facts["reason"].startswith("launched by the host, cannot be captured in a CUDA graph")
    assert isinstance(one, Round)
    assert all(sample > 0 for sample in one.samples_ms)


def test_a_graph_of_a_prompt_holds_about_what_a_launched_one_needs() -> None:
    subject = prompts("attention", 2**15)
    with torch.no_grad(), subject.context():
        calls = subject.calls()
        calls[0]()
        needed = peak_memory(calls[0], DEVICE)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        subject.replayed(captured)[0]()
        assert torch.cuda.memory_reserved() - before < 1.5 * needed + 2**26


def test_cases_share_a_model_and_its_memory_is_free_once_it_is_forgotten() -> None:
    wide = {"d_model": 1024, "heads": 8, "vocab_size": 4096, "layers": ["attention"] * 40}
    case = make_model_case("attention", device="cuda", dtype="bf16", contender="sdpa-flash")
    case = case.model_copy(update={"overrides": case.overrides | wide})
    kept = Kept(DEVICE)
    torch.cuda.empty_cache()
    before = held()
    errors = []
    for changes in ({}, {"batch": 1, "length": 40}, {"length": 900}):
        session = Session(case.model_copy(update=changes), MEASURE, DEVICE, WallClock(), kept)
        facts = session.prepare()
        assert facts["status"] == "ok", facts.get("reason")
        assert facts["graph"]
        errors.append(facts["error"])
        session.round()
        session.close()
        weights = sum(parameter.nbytes for parameter in kept.model(case).parameters())
        assert weights <= held() - before < weights + 2**26
    assert len(set(errors)) == 1
    session.forget()
    assert held() - before < 2**26 < weights


def held() -> int:
    """Bytes in use, without what cuBLAS keeps for itself: 32 MiB for every stream it was called on."""
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated()
