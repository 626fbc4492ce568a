"""Kernels that choose by timing: in company every choice is made and none is kept; alone the slow are soon seen."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import triton
from triton.runtime.autotuner import Autotuner, Config
from triton.runtime.jit import JITFunction

from basedbench.timing.beside import compile_beside
from basedbench.timing.tuning import every_choice, look_briefly_first

SIZES = (16, 32, 64, 128)


class Compiled:
    run = None


class Kernels:
    """Stands in for what launches or compiles; the sizes that were asked for, and whether to be launched."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bool]] = []

    def __call__(self, kernel: Any, n: int, *, SIZE: int = 0, warmup: bool = False, **_: Any) -> Compiled:
        self.asked.append((SIZE, warmup))
        return Compiled()


def tuned() -> Autotuner:
    """A kernel that is tuned anew for every n."""

    def kernel(n: int, SIZE: int) -> None: ...

    function = JITFunction.__new__(JITFunction)
    function.fn = kernel
    configs = [Config({"SIZE": size}) for size in SIZES]
    return Autotuner(function, ["n", "SIZE"], configs, ["n"], None, None)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    found = Kernels()
    monkeypatch.setattr(JITFunction, "run", lambda self, *arguments, **options: found(self, *arguments, **options))
    return found


@pytest.fixture
def _shortened() -> Iterator[None]:
    before = {name: inspect.getattr_static(Autotuner, name) for name in ("prune_configs", "do_bench")}
    look_briefly_first()
    yield
    for name, value in before.items():
        setattr(Autotuner, name, value)


def test_every_configuration_is_compiled_once_and_nothing_is_launched(kernels: Kernels) -> None:
    kernel = tuned()
    compile_beside(lambda: [kernel.run(8, grid=(1,), warmup=False) for _ in range(2)], "cpu")
    assert sorted(kernels.asked) == [(size, True) for size in SIZES]


def test_no_choice_is_kept_of_what_was_not_timed(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(*_: object) -> bool:
        raise AssertionError("a choice would be read from the disk, or written there")

    kernel, method = tuned(), inspect.getattr_static(Autotuner, "_bench")
    kernel.cache[8,] = kernel.configs[2]
    kernel.cache_results = True
    monkeypatch.setattr(Autotuner, "check_disk_cache", kept)
    with every_choice():
        for n in (8, 4):
            kernel.run(n, grid=(1,))
    assert [size for size, _ in kernels.asked] == [64, *SIZES, 16]  # what was known, and all for another n
    assert kernel.cache == {(8,): kernel.configs[2]}
    assert inspect.getattr_static(Autotuner, "_bench") is method


@pytest.mark.usefixtures("_shortened")
@pytest.mark.parametrize(
    ("times", "thoroughly"), [((4.0, 2.0, 1.0, 3.0), [16, 32, 64]), ((1.0, 2.0, 1.05, 0.9), [16, 64, 128])]
)
def test_the_best_is_chosen_and_what_is_clearly_slower_has_no_second_look(
    times: tuple[float, ...], thoroughly: list[int], kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[tuple[int, float]] = []

    def do_bench(call: Any, quantiles: Any, warmup: float = 25, rep: float = 100) -> list[float]:
        call()
        size = kernels.asked[-1][0]
        looks.append((size, rep))
        return [times[SIZES.index(size)]] * 3

    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    kernel = tuned()
    for n in (8, 4):  # the best of one tuning is no measure for the next
        looks.clear()
        kernel.run(n, grid=(1,))
        assert kernel.best_config.kwargs["SIZE"] == SIZES[times.index(min(times))]
        assert [size for size, rep in looks if rep < 100] == list(SIZES)
        assert [size for size, rep in looks if rep == 100] == thoroughly


@pytest.mark.usefixtures("_shortened")
def test_a_kernel_with_a_way_of_its_own_keeps_it() -> None:
    kernel = tuned()
    kernel._do_bench = lambda call, quantiles: [1.0]
    assert kernel.do_bench is kernel._do_bench
