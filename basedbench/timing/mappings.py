"""The state in which a process leaves a GPU's address translation when it maps or frees memory.

After memory was freed, steps that go through gigabytes were up to 7 % slower on an H200 until the device had begun
another context, of any process; what the caches held, and waiting, changed nothing (docs/log/language_models.md).
A capture frees what the allocator holds, so a graph whose process is alone on the device met the slow state, and one
whose process takes turns with others the fast one. Beginning and ending a context gives both the same.
"""

import ctypes

from basedbench.timing.waking import LIBRARY, index_of


def renew_mappings(device: str) -> bool:
    """Begin and end a context of this process beside its primary one; whether the driver could.

    It takes some tenths of a second and, meanwhile, some hundred megabytes of the device's memory.
    """
    context = ctypes.c_void_p()
    try:
        driver = ctypes.CDLL(LIBRARY)
        return not (
            driver.cuCtxCreate_v2(ctypes.byref(context), 0, index_of(device)) or driver.cuCtxDestroy_v2(context)
        )
    except (OSError, AttributeError):
        return False
