"""Radiographs with landmarks: the public sets, a user's own folder, and generated ones."""

from ablate.datasets.builtin import DATASETS
from ablate.datasets.check import CheckReport, check_dataset
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
from ablate.datasets.source import data_folder
from ablate.datasets.types import Dataset, DatasetInfo, PaperScale, Record, Split

__all__ = [
    "DATASETS",
    "CheckReport",
    "Dataset",
    "DatasetInfo",
    "PaperScale",
    "Record",
    "Split",
    "check_dataset",
    "data_folder",
    "dataset_fingerprint",
    "dataset_names",
    "load_dataset",
    "open_records",
    "prepare_dataset",
    "preview_dataset",
    "read_records",
    "require_dataset",
]
