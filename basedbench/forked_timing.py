"""What the server of processes that time imports (`forking.TIMING`)."""

from contextlib import suppress

with suppress(Exception):  # it fails in the command, too, which says so: no page of the server's stack beside that
    import basedbench.timing.preloaded  # noqa: F401
