"""The sum over kernels, and that a CPU case is left alone."""

from types import SimpleNamespace

import torch

from basedbench.config.throughput import MeasureSection
from basedbench.timing.clock import WallClock
from basedbench.timing.cross_check import device_time_ms
from basedbench.timing.session import Session
from tests.timing.conftest import make_case


def test_only_what_ran_on_the_device_counts() -> None:
    kinds = torch.autograd.DeviceType
    events = [SimpleNamespace(device_type=kinds.CUDA, device_time=t) for t in (1500.0, 500.0)]
    events.append(SimpleNamespace(device_type=kinds.CPU, device_time=9e9))
    assert device_time_ms(events) == 2.0


def test_a_cpu_case_has_no_other_tools() -> None:
    session = Session(make_case(), MeasureSection(cross_check=True), "cpu", WallClock())
    session.prepare()
    assert session.close() == {}
