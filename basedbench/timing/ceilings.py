"""What this machine can do: copy bandwidth, rate of matrix products, cost of a launch; measured, never looked up.

Tables keyed by product name go wrong (power limits, memory variants, virtual machines). One row each is stored with the
fingerprint; throughput rows give the fraction of these that they reach.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from basedbench.config import case_id
from basedbench.config.throughput import AnyCase
from basedbench.store import code_version, device_name, fingerprint
from basedbench.store.dataset import rows
from basedbench.store.schema import blank_row
from basedbench.timing.clock import Clock, WallClock
from basedbench.timing.rows import times
from basedbench.timing.samplers import ColdSampler, CpuSampler, Sampler
from basedbench.timing.samples import Round
from basedbench.timing.stopping import StoppingRule
from basedbench.timing.telemetry import Telemetry
from basedbench.timing.timeline import noted

SUITE = "calibration"
# Far beyond every cache, and products large enough to keep every core or multiprocessor busy.
COPY_BYTES = {"cpu": 2**27, "cuda": 2**30}
PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}
# A CPU for which PyTorch has no products of bfloat16 takes seconds for such a one, at a rate that all sizes have.
EMULATED_SIZE = 256
PRODUCTS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16", "fp16")}
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAUNCHES = 200
SAMPLES_A_ROUND, ROUND_MS = 5, 10.0  # fewer samples where so long a round has less


@dataclass(frozen=True)
class Ceiling:
    """One thing to measure; a sample is one `call`, which does `calls` of it."""

    name: str
    dtype: str | None
    call: Callable[[], object]
    bytes: int | None = None
    flops: int | None = None
    calls: int = 1


def stored_ceilings(root: Path | str, device: str, threads: int | None = None) -> dict[str, float]:
    """The newest rates of this device in a results folder: "copy" in bytes/s, "matmul_bf16" in operations/s."""
    name, setting = device_name(device), _setting(device, threads)
    mine = [row for row in rows(root, "calibration", understood=True) if row["device_name"] == name]
    mine = [row for row in mine if row["status"] == "ok" and json.loads(row["config"]) == setting]
    rates = {row["ceiling"]: row["bytes_per_s"] or row["flops_per_s"] for row in mine}
    return {ceiling: rate for ceiling, rate in rates.items() if rate}


def fractions_of(cases: Iterable[AnyCase]) -> tuple[str, ...]:
    """The ceilings that the rows of these cases give fractions of."""
    return ("copy", *sorted({f"matmul_{case.dtype}" for case in cases}))


def rates_of(device: str) -> list[str]:
    """The ceilings of a device that `stored_ceilings` gives: rates, so not what a launch costs."""
    return ["copy", *(f"matmul_{dtype}" for dtype in PRODUCTS[_kind(device)])]


def calibrate(
    device: str,
    seconds: float,
    threads: int | None = None,
    names: Collection[str] = (),
    origin: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Measure every ceiling of a device, or those of these names, for about `seconds` each; yields rows to be stored.

    `threads` are those of a CPU, torch's default if None; they are in force when this is done, too. `origin` is what
    `origin_of` says, if that is known.
    """
    if device == "cpu" and threads:
        torch.set_num_threads(threads)
    setting = {"suite": SUITE, "status": "ok", "config": _setting(device, threads), "device": _kind(device)}
    common = setting | dict(origin or origin_of(device))
    for name, make in _ceilings(device):
        if names and name not in names:
            continue
        with noted(f"ceiling {name}"):
            ceiling = make()
            measured = _measured(ceiling, device, seconds)
        identity = {"ceiling": name, "device_name": common["device_name"], "setting": common["config"]}
        yield blank_row("calibration") | common | {"case_id": case_id(identity)} | measured
        del ceiling
        if device != "cpu":
            torch.cuda.empty_cache()


def origin_of(device: str) -> dict[str, Any]:
    """The columns of a row that say where it comes from."""
    return {
        "code_version": code_version(),
        "device_name": device_name(device),
        "fingerprint": fingerprint(device),
    }


def _ceilings(device: str) -> Iterator[tuple[str, Callable[[], Ceiling]]]:
    """The name of each ceiling and what makes it: their tensors should not be held together."""
    yield "copy", partial(_copy, device)
    for dtype in PRODUCTS[_kind(device)]:
        yield f"matmul_{dtype}", partial(_product, device, dtype)
    yield "launch", partial(_launch, device)


def _copy(device: str) -> Ceiling:
    size = COPY_BYTES[_kind(device)]
    source = torch.randint(2**31, (size // 4,), dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    return Ceiling("copy", None, lambda: target.copy_(source), bytes=2 * size)


def _product(device: str, dtype: str) -> Ceiling:
    emulated = device == "cpu" and dtype == "bf16" and not _multiplies_bf16()
    size = EMULATED_SIZE if emulated else PRODUCT_SIZE[_kind(device)]
    a, b = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
    out = torch.empty_like(a)

    def call() -> None:
        torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
        torch.matmul(a, b, out=out)
        torch.set_float32_matmul_precision("highest")

    return Ceiling(f"matmul_{dtype}", dtype, call, flops=2 * size**3)


def _multiplies_bf16() -> bool:
    """Whether PyTorch has products of bfloat16 for this CPU; a build without oneDNN has none."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _launch(device: str) -> Ceiling:
    """The host's cost of one small operation, in a long row of them."""
    one = torch.ones(1, device=device)

    def call() -> None:
        for _ in range(LAUNCHES):
            one.mul_(1.0)
        if device != "cpu":
            torch.cuda.synchronize()

    return Ceiling("launch", None, call, calls=LAUNCHES)


def _measured(ceiling: Ceiling, device: str, seconds: float) -> dict[str, Any]:
    """Rounds until the median is known, and the columns that follow."""
    clock, rule, telemetry = WallClock(), StoppingRule(seconds=seconds), Telemetry(device)
    sampler, rounds, stop = _sampler(ceiling, device, clock), list[Round](), None
    start = clock.now()
    count = max(1, min(SAMPLES_A_ROUND, int(ROUND_MS / max(sampler.sample(2)[-1], 1e-6))))
    while stop is None:
        before = telemetry.read()
        samples = [sample / ceiling.calls for sample in sampler.sample(count)]
        rounds.append(Round(samples, [before, telemetry.read()], sampler.exposed))
        stop = rule.reason([one.samples_ms for one in rounds], clock.now() - start)
    columns = times(rounds)
    per_second = 1e3 / columns["median_ms"]
    return columns | {
        "ceiling": ceiling.name,
        "dtype": ceiling.dtype,
        "stop_reason": stop,
        "bytes": ceiling.bytes,
        "flops": ceiling.flops,
        "bytes_per_s": ceiling.bytes * per_second if ceiling.bytes else None,
        "flops_per_s": ceiling.flops * per_second if ceiling.flops else None,
    }


def _sampler(ceiling: Ceiling, device: str, clock: Clock) -> Sampler:
    if device == "cpu" or ceiling.name == "launch":
        return CpuSampler([ceiling.call], clock, estimate_ms=1.0)
    return ColdSampler([ceiling.call], device, enqueue_ms=0.1)


def _kind(device: str) -> str:
    return device.partition(":")[0]


def _setting(device: str, threads: int | None) -> dict[str, Any]:
    """What changes a ceiling besides the device."""
    return {"threads": threads or torch.get_num_threads()} if device == "cpu" else {}
