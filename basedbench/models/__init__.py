"""The models that mixers are measured in: the recall scaffold, its dropout, and the state-size measures."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from basedbench.models.dropout import Dropout as Dropout
    from basedbench.models.recall import LayerSpec as LayerSpec
    from basedbench.models.recall import RecallModel as RecallModel
    from basedbench.models.state import state_bytes as state_bytes
    from basedbench.models.state import state_bytes_paper as state_bytes_paper
    from basedbench.models.state import state_bytes_zoology as state_bytes_zoology

_HOMES = {
    "Dropout": "dropout",
    "LayerSpec": "recall",
    "RecallModel": "recall",
    "state_bytes": "state",
    "state_bytes_paper": "state",
    "state_bytes_zoology": "state",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import on first use: mixers need dropout.py from here, and recall.py needs the mixers."""
    if name in _HOMES:
        return getattr(import_module(f"basedbench.models.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'basedbench.models' has no attribute {name!r}")
