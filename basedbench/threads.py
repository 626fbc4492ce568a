"""Threads that a user's own file has begun, and that Python would wait for at the end of a process."""

import atexit
import os
import sys
import threading
from contextlib import suppress


def leave(code: object = 0) -> None:
    """End the process with an exit code if such threads live in it; else return.

    Nothing of ours is in them, and they may never end. Threads of pools are left to Python.
    """
    pools = getattr(sys.modules.get("concurrent.futures.thread"), "_threads_queues", ())  # which end when they are idle
    ours = {threading.main_thread(), *pools}
    if not any(one not in ours and not one.daemon and one.is_alive() for one in threading.enumerate()):
        return
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
