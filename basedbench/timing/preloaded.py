"""What the server of worker processes does once for all of them, beside its imports; none of it touches a GPU.

Triton looks for a compiled kernel by a key of its own files, which takes half a second to make: their contents are
hashed, the compiler's hundreds of megabytes among them. A process that is forked afterwards has it. It also has what
each would import for itself at first use: half a second for the first backward pass alone.
"""

from contextlib import suppress
from importlib import import_module

from basedbench.timing.timeline import note, noted
from basedbench.timing.worker import driver_is_there

FIRST_USED = ("torch.fx.experimental.symbolic_shapes", "triton.compiler", "triton.backends.nvidia.compiler")


def make_triton_key() -> str | None:
    """The key, which Triton keeps; None if this version makes it elsewhere, and then each process does."""
    with suppress(ImportError, OSError):
        from triton.runtime.cache import triton_key

        return str(triton_key())
    return None


def import_first_used() -> None:
    """The modules; what this machine lacks is missed where it is needed."""
    for name in FIRST_USED:
        with suppress(ImportError):
            import_module(name)


if driver_is_there():
    note("the server has imported what workers need")
    with noted("what each would do for itself"):
        import_first_used()
        make_triton_key()
