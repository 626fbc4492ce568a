"""The identity of a case: a hash of what it means, not of how it is spelt."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def case_id(meaning: Mapping[str, Any]) -> str:
    """Twelve hex digits that are the same for equal meanings.

    The order of keys, `1` against `1.0` and digits beyond the tenth make no difference.
    """
    canonical = json.dumps(_canonical(meaning), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float):
        rounded = float(f"{value:.10g}")
        return int(rounded) if rounded.is_integer() else rounded
    return value
