"""The pictures that a run keeps, so that its report needs neither the data nor a GPU.

`pictures/<data set>/<image>.jpg` are thumbnails of the test radiographs in their own proportions, with an
`index.json` written last; `pictures/ddpm/<pretrain key>.png` shows noising (above) and sampling (below).
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
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


def write_thumbnails(store: Store, dataset: Dataset, data_dir: Path | str | None) -> None:
    """Write a thumbnail of each test image, then `index.json` with sizes and duplicates; nothing where that exists.

    Args:
        store: of the run.
        dataset: whose test images are shown.
        data_dir: folder or address of the data; None for the default.

    Raises:
        InputError: the data cannot be read.
    """
    listed = thumbnail_index(dataset.name)
    if store.exists(listed):
        return
    wanted = dict(zip(dataset.test.names, dataset.test.duplicates_N, strict=True))
    index = {}
    with open_records(dataset.name, data_dir) as records:
        for record in records:
            if record.name not in wanted:
                continue
            picture = Image.fromarray(normalise(record.grey()))
            index[record.name] = {
                "width": picture.width,
                "height": picture.height,
                "duplicate": bool(wanted[record.name]),
            }
            picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            data = io.BytesIO()
            picture.save(data, "JPEG", quality=80)
            store.write(thumbnail_file(dataset.name, record.name), data.getvalue())
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
