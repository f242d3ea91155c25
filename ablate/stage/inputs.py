"""What stages start from: the images of a pre-training, and the network of a fine-tuning."""

from __future__ import annotations

import logging

import numpy as np

from ablate.datasets import Dataset
from ablate.datasets.types import Sizes
from ablate.errors import InputError
from ablate.finetune import select_shots
from ablate.network.base import Network
from ablate.network.building import build_network
from ablate.network.imagenet import load_imagenet
from ablate.network.starting import load_start
from ablate.space import ImagenetSpec, Pretraining, TrialSpec, WeightsSpec
from ablate.stage.checkpoints import load_snapshot
from ablate.stage.starts import start_of
from ablate.store import Store
from ablate.store.layout import step_folder

logger = logging.getLogger("ablate")


def pretraining_images(pretraining: Pretraining, dataset: Dataset) -> np.ndarray:
    """Return the images (N, H, W), uint8, that a pre-training sees; labels play no part.

    Raises:
        InputError: there are none.
    """
    match pretraining.fields.images:
        case "all":
            parts = [dataset.train.images_NHW, dataset.val.images_NHW, dataset.unlabelled.images_NHW]
            return np.concatenate(parts)
        case "train":
            return dataset.train.images_NHW
        case "unlabelled":
            check_unlabelled(pretraining, len(dataset.unlabelled.names))
            return dataset.unlabelled.images_NHW
        case "shots":
            assert pretraining.selection is not None
            chosen = select_shots(pretraining.selection, len(dataset.train.names), dataset=dataset.name)
            images_NHW: np.ndarray = dataset.train.images_NHW[chosen]
            return images_NHW


def check_unlabelled(pretraining: Pretraining, num_unlabelled: int) -> None:
    """Refuse a pre-training on unlabelled images where there are none."""
    if pretraining.fields.images == "unlabelled" and not num_unlabelled:
        raise InputError(
            f"pretrain.images must not be unlabelled for data set {pretraining.fields.dataset}, which has no image "
            "without a label; choose all, train or shots"
        )


def check_whole_groups(pretraining: Pretraining, sizes: Sizes) -> None:
    """Refuse a pre-training whose passes over the images end with whole groups where there is not one such group."""
    fields = pretraining.fields
    if getattr(fields, "epoch_end", "full") == "full":
        return
    shots = sizes.train if pretraining.selection is None else pretraining.selection.shots
    found = {
        "all": sizes.train + sizes.val + sizes.unlabelled,
        "train": sizes.train,
        "unlabelled": sizes.unlabelled,
        "shots": sizes.train if shots == "all" else min(shots, sizes.train),
    }[fields.images]
    if found < fields.batch_size:
        raise InputError(
            f"pretrain.epoch_end short needs at least pretrain.batch_size {fields.batch_size} images; data set "
            f"{fields.dataset} has {found} of pretrain.images {fields.images}; lower batch_size, or set epoch_end: full"
        )


def initial_network(spec: TrialSpec, num_landmarks: int, store: Store, folder: str | None) -> tuple[Network, float]:
    """Return the network a trial's fine-tuning starts from, and the seconds of pre-training in it.

    `folder` holds the pre-training's snapshots; None where nothing was pre-trained.
    """
    network = build_network(
        spec.network, num_outputs=num_landmarks, image_size=spec.image_size, seed=spec.seed, precision=spec.precision
    )
    pretraining = spec.pretraining
    if pretraining is not None and folder is not None:
        steps = pretraining.fields.steps
        snapshot = load_snapshot(store, folder, steps)
        if getattr(spec.pretrain, "transfer", "network") == "encoder":
            snapshot = {name: snapshot[name] for name in network.encoder_state()}
        network.load_initial(snapshot)
        manifest = store.manifest(step_folder(folder, steps))
        return network, float(manifest.facts.get("seconds", 0.0)) if manifest else 0.0
    if isinstance(spec.pretrain, ImagenetSpec):
        logger.info("%s", load_imagenet(network, spec.pretrain.weights))
    elif isinstance(spec.pretrain, WeightsSpec):
        logger.info("%s", load_start(network, spec.pretrain, start_of(store, spec.pretrain)))
    return network, 0.0
