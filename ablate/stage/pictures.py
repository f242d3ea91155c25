"""The pictures that a run keeps, so that its report needs neither the data nor a GPU.

`pictures/<data set>/<image>.jpg` are thumbnails of the test radiographs in their own proportions, with an
`index.json` written last; `pictures/ddpm/<pretrain key>.png` shows noising (above) and sampling (below).
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ablate.datasets import Dataset, open_records
from ablate.datasets.images import normalise
from ablate.pretrain import ddpm
from ablate.space import Pretraining
from ablate.store import Store
from ablate.store.layout import strips_file, thumbnail_file, thumbnail_index

THUMBNAIL_PX = 256
"""Longer side of a thumbnail."""


def write_thumbnails(store: Store, folds: Sequence[Dataset], data_dir: Path | str | None) -> None:
    """Write a thumbnail of each test image, then `index.json` with sizes and duplicates; nothing where it lists all.

    Args:
        store: of the run.
        folds: the data set whose test images are shown; or those of its folds that are used.
        data_dir: folder or address of the data; None for the default.

    Raises:
        InputError: the data cannot be read.
    """
    name = folds[0].name
    listed = thumbnail_index(name)
    wanted = {
        image: bool(twice)
        for fold in folds
        for image, twice in zip(fold.test.names, fold.test.duplicates_N, strict=True)
    }
    index: dict[str, dict[str, object]] = json.loads(store.read(listed)) if store.exists(listed) else {}
    if index.keys() >= wanted.keys():
        return
    with open_records(name, data_dir) as records:
        for record in records:
            if record.name not in wanted or record.name in index:
                continue
            picture = Image.fromarray(normalise(record.grey()))
            index[record.name] = {
                "width": picture.width,
                "height": picture.height,
                "duplicate": wanted[record.name],
            }
            picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            data = io.BytesIO()
            picture.save(data, "JPEG", quality=80)
            store.write(thumbnail_file(name, record.name), data.getvalue())
    store.write(listed, json.dumps(index, indent=1).encode())


def write_strips(
    store: Store,
    pretraining: Pretraining,
    tensors: Mapping[str, Tensor],
    image_HW: np.ndarray,
    *,
    device: torch.device,
) -> None:
    """Write a DDPM's strips: an image noised step by step, and a new image drawn from noise.

    Args:
        store: of the run.
        pretraining: a `ddpm` pre-training.
        tensors: one of its snapshots.
        image_HW: uint8, a training image.
        device: where to compute.
    """
    made = ddpm.strips(pretraining, tensors, image_HW, device=device)
    rows = [np.concatenate(list(strip_NHW), axis=1) for strip_NHW in (made.noising_NHW, made.sampling_NHW)]
    data = io.BytesIO()
    Image.fromarray(np.concatenate(rows, axis=0)).save(data, "PNG")
    store.write(strips_file(pretraining.key), data.getvalue())
