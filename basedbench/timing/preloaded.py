"""What the server of worker processes does once for all of them, beside its imports; none of it touches a GPU.

Triton looks for a compiled kernel by a key of its own files, which takes half a second to make: their contents are
hashed, the compiler's hundreds of megabytes among them. A process that is forked afterwards has it.
"""

from contextlib import suppress

from basedbench.timing.worker import driver_is_there


def make_triton_key() -> str | None:
    """The key, which Triton keeps; None if this version makes it elsewhere, and then each process does."""
    with suppress(ImportError, OSError):
        from triton.runtime.cache import triton_key

        return str(triton_key())
    return None


if driver_is_there():
    make_triton_key()
