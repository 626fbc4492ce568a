"""What the server of processes that train imports (`forking.TRAINING`)."""

from contextlib import suppress

with suppress(Exception):  # it fails in the command, too, which says so: no page of the server's stack beside that
    import basedbench.engines.preloaded  # noqa: F401
