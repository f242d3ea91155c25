"""Radiographs with landmarks: the public sets, a user's own folder, and generated ones.

This room finds a data set in a folder or at an address, reads its labels and file headers, divides it into splits,
decodes the images to the network's size and keeps them in a cache. It knows of no trial and no run. Every room above
may call what is exported here; what else `images` and `source` offer is for those that read images or `--data`
themselves.
"""

from ablate.datasets.builtin import DATASETS
from ablate.datasets.check import CheckReport, check_dataset
from ablate.datasets.importing.importer import import_dataset
from ablate.datasets.importing.options import ImportOptions
from ablate.datasets.importing.report import ImportReport
from ablate.datasets.loading import (
    dataset_fingerprint,
    dataset_names,
    load_dataset,
    open_records,
    prepare_dataset,
    read_records,
    require_dataset,
)
from ablate.datasets.preview import preview_dataset
from ablate.datasets.source import absolute_data_folder, data_folder
from ablate.datasets.types import Dataset, DatasetInfo, PaperScale, Pool, Record, Split

__all__ = [
    "DATASETS",
    "CheckReport",
    "Dataset",
    "DatasetInfo",
    "ImportOptions",
    "ImportReport",
    "PaperScale",
    "Pool",
    "Record",
    "Split",
    "absolute_data_folder",
    "check_dataset",
    "data_folder",
    "dataset_fingerprint",
    "dataset_names",
    "import_dataset",
    "load_dataset",
    "open_records",
    "prepare_dataset",
    "preview_dataset",
    "read_records",
    "require_dataset",
]
