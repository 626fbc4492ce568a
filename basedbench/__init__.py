"""basedbench: how much recall does a byte of recurrent state buy, and what does it cost in throughput?

Shape suffixes, used in every name of a tensor: B batch, L length, D model width, H heads, K key or feature width,
V value width (or vocabulary), N state width, T chunk. `q_BLHK` is batch x length x heads x key width.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from basedbench.analysis import pareto_front as pareto_front
    from basedbench.analysis.points import points as points
    from basedbench.errors import UserError as UserError
    from basedbench.store import load as load

__version__ = "0.1.0"
__all__ = ["UserError", "load", "pareto_front", "points"]

_HOMES = {
    "UserError": "basedbench.errors",
    "load": "basedbench.store",
    "pareto_front": "basedbench.analysis",
    "points": "basedbench.analysis.points",
}


def __getattr__(name: str) -> Any:
    """Import the public calls on first use, so that `basedbench --help` stays instant."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'basedbench' has no attribute {name!r}")
