"""Contenders that go wrong in every way; loaded by worker processes in tests."""

import ctypes
import os
import sys
import time

from basedbench.contenders import contender
from basedbench.kernels import taylor_attention


def behave(name, action):
    @contender("taylor_attention", name=name)
    def function(q, k, v):
        action()
        return taylor_attention(q, k, v)


def raise_error(error):
    raise error


behave("good", lambda: print("noise on stdout"))
behave("dies", lambda: (print("last words", file=sys.stderr, flush=True), os.abort()))
behave("segfaults", lambda: ctypes.string_at(0))
behave("exits", lambda: os._exit(3))
behave("leaves", lambda: sys.exit(4))
behave("odd", lambda: raise_error(GeneratorExit("gone")))
behave("killed", lambda: os.kill(os.getpid(), 9))
behave("hangs", lambda: time.sleep(60))
behave("raises", lambda: raise_error(ValueError("no such thing")))
behave("hungry", lambda: raise_error(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")))
behave("unable", lambda: raise_error(RuntimeError("No available kernel. Aborting execution.")))


@contender("taylor_attention", name="wrong")
def _wrong(q, k, v):
    return 2 * taylor_attention(q, k, v)


@contender("taylor_attention", name="signature")
def _signature(q):
    return q
