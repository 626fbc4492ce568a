"""Result rows: their schema, the parquet dataset that holds them, and the fingerprint of the machine they come from."""

from basedbench.store import schema
from basedbench.store.dataset import Store, compact, load
from basedbench.store.fingerprint import code_version, device_name, fingerprint

__all__ = ["Store", "code_version", "compact", "device_name", "fingerprint", "load", "schema"]
