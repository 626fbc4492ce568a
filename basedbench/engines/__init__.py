"""Where cases run: this machine's devices."""

from basedbench.engines.devices import cores, resolve_devices
from basedbench.engines.local import Listener, LocalEngine, Place

__all__ = ["Listener", "LocalEngine", "Place", "cores", "resolve_devices"]
