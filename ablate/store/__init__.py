"""The store of a run: what it made, whole or absent, wherever it lies and whatever happens to it."""

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
