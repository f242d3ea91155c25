"""The table of formats that can be imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ablate.datasets.importing.coco import read_coco
from ablate.datasets.importing.csv_table import read_csv
from ablate.datasets.importing.cvat import read_cvat
from ablate.datasets.importing.exports import Imported
from ablate.datasets.importing.labelme import read_labelme
from ablate.datasets.importing.labelstudio import read_labelstudio
from ablate.datasets.importing.options import ImportOptions, Origin
from ablate.datasets.importing.slicer import read_slicer


@dataclass(frozen=True)
class Format:
    """How one tool's export is read."""

    read: Callable[[Path, ImportOptions], Imported]  # raises `InputError`
    origin: Origin  # which place of the top-left pixel is (0, 0)
    takes_folder: bool = False  # the export is a file for each image


FORMATS = {
    "coco": Format(read_coco, "corner"),
    "labelme": Format(read_labelme, "corner", takes_folder=True),
    "cvat": Format(read_cvat, "corner"),
    "labelstudio": Format(read_labelstudio, "corner"),
    "slicer": Format(read_slicer, "centre", takes_folder=True),
    "csv": Format(read_csv, "centre"),
}
