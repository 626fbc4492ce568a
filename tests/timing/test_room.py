"""What fits a device, counted before anything is built."""

import pytest
import torch

from basedbench.config import load_suite
from basedbench.contenders.language_costs import held_bytes
from basedbench.timing.choose import choose
from basedbench.timing.language import LanguageSubject
from basedbench.timing.room import BEYOND_STATES, CONTEXT_BYTES, PROCESS_BYTES, does_not_fit, side_by_side
from tests.timing.conftest import TINY, TINY_LAYERS, make_case, make_model_case

GIB = 2**30


@pytest.mark.parametrize("family", TINY_LAYERS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_is_counted_is_what_is_held(family: str, dtype: str) -> None:
    case = make_model_case(family, dtype=dtype)
    subject = LanguageSubject(case, "cpu")
    with torch.no_grad():
        subject.load()
    positions = 4 * case.batch if "position" in subject.state else 0  # left out of the formula
    assert sum(held_bytes(case)) == subject.facts()["memory_bytes"] - positions


def test_beyond_the_device_is_said_with_both_numbers() -> None:
    case = make_model_case("attention")
    needed = sum(held_bytes(case))
    assert does_not_fit(case, needed) is None
    assert does_not_fit(case, needed - 1) == f"needs {needed / GIB:.1f} GiB of memory, {needed / GIB:.1f} GiB are free"
    assert does_not_fit(make_case(batch=2**31 - 1), 1) is None  # operators are not counted


def test_what_64_bits_cannot_count_does_not_fit() -> None:
    sizes = TINY | {"d_model": 2**31 - 2, "layers": ["linear"]}
    case = make_model_case("based", overrides=sizes)
    assert does_not_fit(case, 2**62) == "it has weights of more bytes than can be counted; give it smaller sizes."


def test_on_a_cpu_nothing_is_tried_that_would_swap() -> None:
    """The float32 copy of 16-bit weights, and what reading a prompt takes, come on top; a GPU may try."""
    case = make_model_case("based", dtype="bf16", batch=1, length=8)
    weights, states = held_bytes(case)
    assert states < 2 * weights
    assert does_not_fit(case, 3 * weights) is None
    assert does_not_fit(case, 3 * weights - 1) is not None
    assert does_not_fit(case.model_copy(update={"device": "cuda"}), weights + states) is None
    written_out = make_model_case("attention", mode="prefill", batch=2, length=2048, contender="sdpa-math")
    fused = written_out.model_copy(update={"contender": "sdpa-flash"})
    scores = 2 * TINY["heads"] * 2048**2 * 4  # one number each, of one layer
    assert does_not_fit(fused, scores) is None
    assert does_not_fit(written_out, 2 * scores) is not None


def test_processes_on_a_cpu_need_less_room() -> None:
    cases = [make_model_case("attention"), make_model_case("based")]
    room = 2 * PROCESS_BYTES + GIB // 8
    assert side_by_side(cases, room, 2) == [cases]
    on_gpu = [case.model_copy(update={"device": "cuda"}) for case in cases]
    assert side_by_side(on_gpu, room, 2) == [[case] for case in on_gpu]


def test_everything_that_fits_stays_side_by_side() -> None:
    cases = [make_model_case("attention"), make_model_case("based"), make_model_case("mamba")]
    assert side_by_side(cases, 8 * GIB, 3) == [cases]
    assert side_by_side([], 8 * GIB, 0) == []
    operators = [make_case("ours"), make_case("reference")]
    assert side_by_side(operators, 1, 2) == [operators]


def test_small_ones_find_room_beside_large_ones() -> None:
    shape = {"batch": 2**13, "length": 2**10, "device": "cuda"}
    large = [make_model_case("attention", contender=name, **shape) for name in ("sdpa-math", "ours")]
    small = [make_model_case(family, device="cuda") for family in ("based", "mamba")]
    cases = [large[0], small[0], large[1], small[1]]
    _, states = held_bytes(large[0])
    room = CONTEXT_BYTES * len(cases) + int(1.5 * BEYOND_STATES * states)
    assert side_by_side(cases, room, 4) == [[large[0], *small], [large[1]]]
    assert side_by_side(cases, CONTEXT_BYTES * 4, 4) == [[case] for case in cases]  # each may try alone


def test_the_copy_for_the_check_needs_room_beside_what_is_there() -> None:
    cases = [make_model_case("based", dtype="bf16", batch=1, length=8, device="cuda") for _ in range(2)]
    weights, states = held_bytes(cases[0])
    both = CONTEXT_BYTES * 2 + 2 * weights + 2 * int(BEYOND_STATES * states) + 2
    assert len(side_by_side(cases, both, 2)) == 2
    assert len(side_by_side(cases, both + 2 * weights, 2)) == 1


def test_generation_on_80_gib_has_no_part_that_exceeds_the_device() -> None:
    device = 80 * GIB
    cases = choose(load_suite("generation", "throughput"), "cuda")
    place = [case for case in cases if (case.batch, case.length) == (128, 1024) and "1.3b" in case.model]
    parts = side_by_side(place, device, 9)
    assert sorted(case.id for part in parts for case in part) == sorted(case.id for case in place)
    assert all(sum(map(sum, map(held_bytes, part))) < device for part in parts)
    assert len(parts) < len(place)
    assert sum(does_not_fit(case, device) is not None for case in cases) == 63
