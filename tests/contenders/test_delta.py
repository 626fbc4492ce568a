"""The delta rule and gated linear attention as cases: what they draw and cost, and peers, with stand-ins for theirs."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from basedbench.config.throughput import Case
from basedbench.contenders import fla, get_contender, operator_of
from basedbench.contenders.costs import bytes_of, flops_of
from basedbench.contenders.draw import Draw
from basedbench.contenders.operators import bind
from basedbench.timing.correctness import Verdict, check
from tests.contenders.conftest import small

DECAYS = ["none", "head", "channel"]
MODES = ["fwd", "fwd_bwd"]


def case_of(decay: str, mode: str = "fwd", contender: str = "fla-chunk", **changes: Any) -> Case:
    return small("delta_rule", mode, contender, config={"decay": decay}, **changes)


def written_out(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, scale: float | None
) -> tuple[Tensor, None]:
    """Token by token; scaled by 1/sqrt(K) unless told otherwise, as all of fla is."""
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    state = torch.zeros(*k[:, 0].shape, v.shape[-1], dtype=v.dtype)
    outputs = []
    for t in range(q.shape[1]):
        if g is not None:
            decay = g[:, t] if g.dim() == 4 else g[:, t].unsqueeze(-1)
            state = state * decay.exp().unsqueeze(-1)
        new = v[:, t]
        if beta is not None:
            new = beta[:, t].unsqueeze(-1) * (new - torch.einsum("bhk,bhkv->bhv", k[:, t], state))
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], new)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, 1), None


@pytest.fixture
def stood_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions with the signatures of flash-linear-attention's, a CPU as a GPU."""
    functions = {
        "delta_rule": ("chunk_delta_rule", lambda q, k, v, beta, scale=None: written_out(q, k, v, None, beta, scale)),
        "gated_delta_rule": ("chunk_gated_delta_rule", _gated(dims=3)),
        "kda": ("chunk_kda", _gated(dims=4)),
        "gla": ("chunk_gla", lambda q, k, v, g, scale=None: written_out(q, k, v, g, None, scale)),
    }
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, (function, stand_in) in functions.items():
        module = ModuleType(name)
        setattr(module, function, stand_in)
        monkeypatch.setitem(sys.modules, f"fla.ops.{name}", module)
    monkeypatch.setattr(fla.Chunk, "package", "torch")


def _gated(dims: int) -> Any:
    def rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float | None = None) -> Any:
        assert g.dim() == dims
        assert beta.dim() == 3
        return written_out(q, k, v, g, beta, scale)

    return rule


def checked(case: Case) -> Verdict:
    one = get_contender(case.contender)
    with torch.set_grad_enabled(case.mode == "fwd_bwd"):
        return check(case, one, one.build(case), "cpu")


@pytest.mark.usefixtures("stood_in")
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("mode", MODES)
def test_the_rule_of_peers_is_the_operator_on_what_a_case_draws(decay: str, mode: str) -> None:
    """Outputs and gradients of q, k, v, beta and g."""
    assert checked(case_of(decay, mode)).reason is None


@pytest.mark.usefixtures("stood_in")
@pytest.mark.parametrize("mode", MODES)
def test_gated_linear_attention_of_peers_is_the_operator(mode: str) -> None:
    assert checked(small("gated_linear_attention", mode, "fla-chunk")).reason is None


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("mode", [*MODES, "decode"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_decay_passes_the_check_in_every_mode(decay: str, mode: str, dtype: str) -> None:
    verdict = checked(case_of(decay, mode, "ours", dtype=dtype))
    assert verdict.reason is None
    assert 0 < verdict.error <= verdict.bound


@pytest.mark.parametrize("decay", DECAYS)
def test_keys_have_unit_norm_and_decays_one_for_what_they_are_called_after(decay: str) -> None:
    case = case_of(decay)
    drawn = operator_of(case).draw(Draw(case, 0, "cpu"))
    torch.testing.assert_close(drawn["k_BLHK"].norm(dim=-1), torch.ones(2, 40, 2))
    assert ((drawn["beta_BLH"] > 0) & (drawn["beta_BLH"] < 1)).all()
    decays = {name: x for name, x in drawn.items() if name.startswith("g_")}
    shapes = {"none": {}, "head": {"g_BLH": (2, 40, 2)}, "channel": {"g_BLHK": (2, 40, 2, 8)}}
    assert {name: x.shape for name, x in decays.items()} == shapes[decay]
    assert all((x < 0).all() and x.dtype == torch.float32 for x in decays.values())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", MODES)
def test_the_least_bytes_count_decays_in_float32(dtype: str, mode: str) -> None:
    cases = [case_of(decay, mode, "reference", dtype=dtype) for decay in DECAYS]
    for case in (*cases, small("gated_linear_attention", mode, "reference", dtype=dtype)):
        tensors = operator_of(case).draw(Draw(case, 0, "cpu"))
        given = sum(x.nbytes for x in tensors.values())
        made = bind(operator_of(case).reference, case)(tensors).nbytes
        assert bytes_of(case) == (3 * given + 2 * made if mode == "fwd_bwd" else given + made)


def test_operations_of_a_step_are_two_reads_and_an_update_of_the_state() -> None:
    assert flops_of(case_of("channel", "decode")) == 2 * 2 * 3 * (2 * 8 * 6)
    assert flops_of(case_of("none", length=4000)) == 2 * 2 * 4000 * 3 * (2 * 8 * 6)
    assert flops_of(case_of("none", length=1)) == 2 * 2 * 2 * 2 * (8 + 6)


@pytest.mark.usefixtures("stood_in")
@pytest.mark.parametrize(
    ("decay", "changes", "reason"),
    [
        ("none", {"device": "cpu"}, "needs a CUDA device"),
        ("none", {"mode": "decode"}, "whole sequences only"),
        ("none", {"dtype": "fp32"}, "bf16 and fp16 only"),
        ("channel", {"key_dim": 512}, "key widths up to 256"),
        ("channel", {}, None),
        ("head", {}, None),
        ("head", {"mode": "fwd"}, None),
    ],
)
def test_what_is_beyond_a_peer_has_a_reason(decay: str, changes: dict[str, Any], reason: str | None) -> None:
    case = case_of(decay, **{"mode": "fwd_bwd", "device": "cuda", "dtype": "bf16"} | changes)
    found = get_contender("fla-chunk").supports(case)
    assert found is None if reason is None else reason in str(found)


@pytest.mark.usefixtures("stood_in")
@pytest.mark.parametrize(
    ("triton", "capability", "refused"),
    [
        ("3.3.1", (9, 0), False),
        ("3.4.0", (9, 0), True),
        ("3.6.0+gitabc", (9, 0), True),
        ("3.7.1", (9, 0), False),
        ("3.6.0", (8, 0), False),
    ],
)
def test_the_gated_backward_is_refused_where_its_compiler_is_wrong(
    triton: str, capability: tuple[int, int], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triton.__version__", triton)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(fla, "find_spec", lambda name: None)
    one = get_contender("fla-chunk")
    found = {decay: one.supports(case_of(decay, "fwd_bwd", device="cuda", dtype="bf16")) for decay in DECAYS}
    assert found["none"] is found["channel"] is None
    assert ("refuses Hopper" in str(found["head"])) is refused
    monkeypatch.setattr(fla, "find_spec", lambda name: name)  # TileLang is installed
    assert one.supports(case_of("head", "fwd_bwd", device="cuda", dtype="bf16")) is None


def test_a_missing_package_is_the_reason() -> None:
    case = case_of("none", device="cuda", dtype="bf16")
    one = get_contender("fla-chunk")
    if one.version is not None:
        pytest.skip("flash-linear-attention is installed")
    assert one.supports(case) == "flash-linear-attention is not installed"
