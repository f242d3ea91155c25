"""Starting points of one's own as artifacts of a run: read or downloaded once, and there for stages of every node."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ablate.network.starting import Start
from ablate.network.weights import WeightsFile
from ablate.space import TrialSpec, WeightsSpec
from ablate.store import CorruptArtifact, Store
from ablate.store.layout import MODEL, ORDER, start_folder

logger = logging.getLogger("ablate")


def publish_starts(store: Store, trials: Iterable[TrialSpec]) -> None:
    """Put the starting points of trials into the store, unless they are there.

    Raises:
        InputError: see `Start.read`.
    """
    for spec in dict.fromkeys(trial.pretrain for trial in trials):
        if isinstance(spec, WeightsSpec):
            publish_start(store, spec)


def publish_start(store: Store, spec: WeightsSpec) -> None:
    """Put the tensors of a starting point into the store, unless they are there.

    Raises:
        InputError: see `Start.read`.
    """
    folder = start_folder(spec.name, spec.content)
    if store.manifest(folder) is not None:
        return
    found, source = Start.read(spec)
    tensors = {name: tensor.contiguous().clone() for name, tensor in found.tensors.items()}
    order = {"names": list(tensors), "container": found.container, "beside": found.beside, "ordered": found.is_ordered}
    files = {MODEL: save_tensors(tensors), ORDER: json.dumps(order, indent=1).encode()}
    store.publish(folder, files, name=spec.name, source=source)


def start_of(store: Store, spec: WeightsSpec) -> Start:
    """Return a starting point from the store, into which it is put where it is not there.

    What is damaged there is left aside for the file itself.

    Raises:
        InputError: see `Start.read`.
    """
    publish_start(store, spec)
    folder = start_folder(spec.name, spec.content)
    try:
        files, manifest = store.load(folder), store.manifest(folder)
    except CorruptArtifact as error:
        logger.warning("%s; the file that it is from is read again", error)
        return Start.read(spec)
    order, tensors = json.loads(files[ORDER]), load_tensors(files[MODEL])
    found = WeightsFile(
        {name: tensors[name] for name in order["names"]}, order["container"], tuple(order["beside"]), order["ordered"]
    )
    return Start(found, str(manifest.facts["source"]) if manifest else spec.name)
