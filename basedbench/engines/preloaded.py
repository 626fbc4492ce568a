"""What the server of processes that train does once for all of them: what timing/preloaded.py does, and more imports.

A module with kernels is imported where it is needed first; of these a model has twenty, 10 to 30 ms each.
"""

from pkgutil import iter_modules

from basedbench.forking import driver_is_there
from basedbench.timing import preloaded  # first: it puts the shield up that operators are registered with

NEEDED = ("basedbench.engines.compile_ahead", "basedbench.training.run")
KERNELS = "basedbench.kernels"


def preload() -> None:
    """All of it; kernels only on a machine with a GPU."""
    preloaded.import_all(NEEDED)
    if driver_is_there():
        package = __import__(KERNELS, fromlist=["__path__"])
        found = [one.name for one in iter_modules(package.__path__) if one.name.endswith(("_triton", "_gluon"))]
        preloaded.import_all(tuple(f"{KERNELS}.{name}" for name in found))


preload()
