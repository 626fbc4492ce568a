"""Settings of torch that hold for a whole process: what a user's code makes of them must not reach others' runs."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from operator import attrgetter

import torch
import torch.utils._device  # by `get_default_device`, on its first call: now, before processes are forked

_BACKENDS = (
    *("backends", "backends.cuda.matmul"),
    *("backends.cudnn", "backends.cudnn.conv", "backends.cudnn.rnn"),
    *("backends.mkldnn", "backends.mkldnn.matmul", "backends.mkldnn.conv", "backends.mkldnn.rnn"),
)


@contextmanager
def settings_kept() -> Iterator[None]:
    """Put torch's default dtype and device, gradient mode and number of threads back at the end."""
    dtype, gradients, threads = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    device = torch.get_default_device()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)  # None: no mode around every call
        torch.set_grad_enabled(gradients)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _precisions() -> dict[str, str]:
    """What each backend's float32 products and convolutions may be rounded to; nothing in a torch without that."""
    names = _BACKENDS if hasattr(torch.backends, "fp32_precision") else ()
    return {name: attrgetter(name)(torch).fp32_precision for name in names}


def _legacy() -> tuple[str, bool] | None:
    """The older settings, each of several of those; None where torch refuses to say, as its parts were set apart."""
    with suppress(RuntimeError):
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    return None


@contextmanager
def all_kept() -> Iterator[None]:
    """The same, with the global random state and the precision and determinism of products."""
    precisions, legacy = _precisions(), _legacy()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        with settings_kept(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        if _legacy() != legacy and legacy is not None:
            torch.set_float32_matmul_precision(legacy[0])
            torch.backends.cudnn.allow_tf32 = legacy[1]
        for name, was in precisions.items():  # the whole before its parts, which follow it
            backend = attrgetter(name)(torch)
            if backend.fp32_precision != was:
                backend.fp32_precision = was
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
