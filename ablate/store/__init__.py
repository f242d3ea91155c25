"""The store of a run: its files in a folder or an object store, each of them complete or absent.

This room reads and writes files and artifacts, waits for a store that does not answer, keeps a second driver off a run
and passes requests to stop on. `layout` says where a run keeps what. The room knows nothing of what the files mean;
every room above may call it, and all that a run keeps goes through it.
"""

from ablate.store.errors import (
    TROUBLES,
    CorruptArtifact,
    LockLost,
    StoreAway,
    StoreFull,
    StoreRefused,
    StoreTrouble,
    is_from_store,
)
from ablate.store.files import Store
from ablate.store.manifest import MANIFEST, Entry, Manifest, step_name, step_of
from ablate.store.publishing import BackgroundPublisher

__all__ = [
    "MANIFEST",
    "TROUBLES",
    "BackgroundPublisher",
    "CorruptArtifact",
    "Entry",
    "LockLost",
    "Manifest",
    "Store",
    "StoreAway",
    "StoreFull",
    "StoreRefused",
    "StoreTrouble",
    "is_from_store",
    "step_name",
    "step_of",
]
