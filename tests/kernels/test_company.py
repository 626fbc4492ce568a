"""Launches divided for a device that others share: how many programs, and where that holds."""

import threading

import pytest
import torch

from basedbench.kernels.company import FEWER, MANY, company, in_company, most_programs


def test_fewer_programs_inside() -> None:
    few, many = FEWER
    assert most_programs(528, MANY) == 528
    with in_company():
        assert (most_programs(528), most_programs(528, MANY), most_programs(528, MANY + 1)) == (
            528 // few,
            528 // few,
            528 // many,
        )
        assert most_programs(1) == 1
        with in_company():
            assert most_programs(528) == 528 // few
    assert most_programs(528) == 528


def test_an_error_inside_ends_it() -> None:
    with pytest.raises(ValueError, match="inside"), in_company():
        raise ValueError("inside")
    assert most_programs(528) == 528


def test_it_holds_in_the_thread_of_a_backward_pass() -> None:
    """Autograd has threads of its own for GPUs."""
    found: list[int] = []
    with in_company():
        thread = threading.Thread(target=lambda: found.append(most_programs(100)))
        thread.start()
        thread.join()
    assert found == [100 // FEWER[0]]


def test_on_a_cpu_nothing_changes() -> None:
    with company(torch.device("cpu")):
        assert most_programs(528) == 528
