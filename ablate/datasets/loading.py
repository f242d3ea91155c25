"""Finding data sets, reading their labels, and preparing their images for a network.

Shape suffixes: N images, H = W = image size, E signed differences, K landmarks, 2 = (x, y).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ablate.datasets import synthetic
from ablate.datasets.builtin import DATASETS
from ablate.datasets.cache import Cache, Prepared, cache_path, open_cache, read_cache, write_cache
from ablate.datasets.contents import Contents, fingerprint_of, num_threads, outside_landmarks
from ablate.datasets.duplicates import find_duplicates, image_hash, seen_earlier
from ablate.datasets.folder import read_folder
from ablate.datasets.images import prepare
from ablate.datasets.layout import divide_records, read_layout
from ablate.datasets.places import Copy, Place
from ablate.datasets.source import place_of
from ablate.datasets.splitting import Division
from ablate.datasets.types import (
    DESCRIPTION,
    SPLITS,
    ByteArray,
    Dataset,
    DatasetInfo,
    FloatArray,
    IntArray,
    Part,
    Pool,
    Problems,
    Record,
    Sizes,
    Split,
    SplitName,
    fold_index,
)
from ablate.errors import InputError, nearest
from ablate.space import BUILT_IN_DATASETS

SMALLEST_IMAGE_PX = 16


def dataset_names(data_dir: Path | str | None = None) -> list[str]:
    """Return the built-in data sets, present or not, then the folders with `dataset.yaml` by name.

    Raises:
        InputError: an address cannot be read.
    """
    own = place_of(data_dir).described()
    return [*BUILT_IN_DATASETS, *(name for name in own if name not in BUILT_IN_DATASETS)]


@contextlib.contextmanager
def open_contents(
    name: str, data_dir: Path | str | None, problems: Problems, *, split_problems: Problems | None = None
) -> Iterator[Contents]:
    """Read labels and file headers of a data set and divide it into splits; pixels stay undecoded.

    The files of the records stay where they are until the block ends, also those of a data set that is read by its
    address. Where all problems are gathered, their checksums are compared first. A folder with `dataset.yaml` comes
    before the built-in layout of its name, but `synthetic` is generated whatever lies at an address. All that is
    wrong goes to `problems`, what is wrong with the splits to `split_problems` if given.

    Raises:
        InputError: there is no such data set, its description is wrong, or it cannot be fetched.
    """
    place = place_of(data_dir)
    if name == "synthetic" and (place.folder is None or not place.has_file(f"{name}/{DESCRIPTION}")):
        yield _synthetic_contents()
        return
    plain_name = bool(name) and name[0] != "." and not set(name) & set("/\\\0")
    described = plain_name and place.has_file(f"{name}/{DESCRIPTION}")
    if not described and name not in DATASETS:
        raise _unknown(name, place, plain_name=plain_name)
    if not described and not place.has_folder(name):
        layout = DATASETS[name]
        raise InputError(
            f"{place.label}/{name}: folder not found; data set '{name}' ({layout.title}) is not in the data folder "
            f"{place.label} (folders there: {', '.join(place.folders()) or 'none'}); "
            f"obtain it from {layout.source} and lay it out as {name}/ with {layout.tree}; "
            "or point --data or ABLATE_DATA to the folder that holds it"
        )
    split_problems = split_problems or problems
    with place.opened(name) as copy:
        try:
            if not problems.stop:
                copy.restore()
            try:
                contents = _read(copy, name, described, problems, split_problems)
            except InputError:
                if not copy.restore():
                    raise
                problems.warnings.clear()
                contents = _read(copy, name, described, problems, split_problems)
            yield contents
        except InputError as error:
            message = copy.told(str(error))
            if message == str(error):
                raise
            raise InputError(message) from error
        finally:
            for gathered in (problems.errors, problems.warnings):
                gathered[:] = map(copy.told, gathered)


def _read(copy: Copy, name: str, described: bool, problems: Problems, split_problems: Problems) -> Contents:
    folder = copy.root / name
    layout = read_folder(folder) if described else DATASETS[name]
    reading = read_layout(layout, folder, problems)
    records, unlabelled = (
        tuple(replace(record, sha256=copy.digests.get(record.path.relative_to(folder).as_posix())) for record in found)
        for found in (reading.records, reading.unlabelled)
    )
    return Contents(
        name=name,
        folder=f"{copy.label}/{name}",
        num_landmarks=layout.num_landmarks,
        unit=layout.unit,
        sdr_thresholds=layout.sdr_thresholds,
        paper=layout.paper,
        records=records,
        divisions=divide_records(layout, records, unlabelled, split_problems),
        rule=layout.splits,
        described=described,
        unlabelled=unlabelled,
        excluded=reading.excluded,
        left_out=reading.left_out,
        num_images=layout.num_images,
        landmark_names=layout.landmark_names,
        restore=copy.restore,
    )


def read_contents(
    name: str, data_dir: Path | str | None, problems: Problems, *, split_problems: Problems | None = None
) -> Contents:
    """Return what `open_contents` gives, and raise as it does.

    The files of a data set at an address may be deleted from the cache before their pixels are decoded.
    """
    with open_contents(name, data_dir, problems, split_problems=split_problems) as contents:
        return contents


@contextlib.contextmanager
def open_records(name: str, data_dir: Path | str | None = None) -> Iterator[tuple[Record, ...]]:
    """Return every labelled radiograph by sorted name, whatever the splits; their files stay until the block ends.

    Raises:
        InputError: there is no such data set, its labels are wrong, or it cannot be fetched.
    """
    with open_contents(name, data_dir, Problems(stop=True), split_problems=Problems(stop=False)) as contents:
        yield contents.records


def read_records(name: str, data_dir: Path | str | None = None) -> tuple[Record, ...]:
    """Return what `open_records` gives, and raise as it does; see `read_contents` for the pixels."""
    with open_records(name, data_dir) as records:
        return records


def require_dataset(name: str, data_dir: Path | str | None = None) -> DatasetInfo:
    """Return what labels and file headers tell; raise `InputError` if the data set cannot be used.

    Every label and the header of every image is read, no pixel is decoded: `load_dataset` and
    `prepare_dataset` also find images that are damaged behind their header.
    """
    problems = Problems(stop=True)
    contents = read_contents(name, data_dir, problems)
    outside = [text for record in contents.records for text in outside_landmarks(record)]
    if outside:
        problems.warn(f"{name}: {len(outside)} landmarks lie outside their image, the first: {outside[0]}")
    return DatasetInfo(
        name=name,
        unit=contents.unit,
        num_landmarks=contents.num_landmarks,
        sdr_thresholds=contents.sdr_thresholds,
        paper=contents.paper,
        sizes=tuple(
            Sizes(
                train=len(division.splits["train"]),
                val=len(division.splits["val"]),
                test=len(division.splits["test"]),
                unlabelled=len(division.unlabelled),
            )
            for division in contents.divisions
        ),
        folds=contents.folds,
        folder=contents.folder,
        warnings=tuple(problems.warnings),
        landmark_names=contents.landmark_names,
    )


def dataset_fingerprint(name: str, data_dir: Path | str | None = None) -> str:
    """Return the fingerprint that `load_dataset` gives, without decoding pixels."""
    return fingerprint_of(read_contents(name, data_dir, Problems(stop=True)))


def load_dataset(name: str, data_dir: Path | str | None, image_size: int, fold: int | None = None) -> Dataset:
    """Return the data set with every image at `image_size` x `image_size`, from the cache where it is kept.

    Of a data set that is divided into folds, `fold` says which of them is the test split.

    The cache is keyed by the content of images and labels: a changed file is decoded again. However many processes
    of a node load the same data at once, one of them decodes, and one fetches what lies at an address.

    Raises:
        InputError: an unknown name or fold, wrong labels, an image that cannot be decoded, an address that cannot be
            read, or a cache that cannot be written.
    """
    if image_size < SMALLEST_IMAGE_PX:
        raise InputError(f"image_size must be at least {SMALLEST_IMAGE_PX} px; got {image_size}")
    cache = open_cache(place_of(data_dir).folder)
    for _ in range(2):
        with open_contents(name, data_dir, Problems(stop=True)) as contents:
            division = contents.divisions[fold_index(name, contents.folds, fold)]
            fingerprint = fingerprint_of(contents)
            path = cache_path(cache.folder, name, image_size, fingerprint)
            prepared = _prepared(contents, cache, path, image_size)
        if prepared is not None:
            return _dataset(contents, division, fingerprint, prepared, image_size)
    raise InputError(
        f"{cache.folder}: the cache must keep what was written to it; files of '{name}' were damaged again after they "
        "had been mended; check the disk, or set ABLATE_CACHE to a folder on another"
    )


def _prepared(contents: Contents, cache: Cache, path: Path, image_size: int) -> Prepared | None:
    """Return the images from the cache, or prepare them there; None if files had to be mended, to be read again."""

    def kept() -> Prepared | None:
        return read_cache(path, num_images=len(contents.used), image_size=image_size)

    prepared = kept()
    if prepared is None:
        with cache.locked(path.name):
            prepared = kept()  # another process may have been first
            if prepared is None and not contents.restore():
                prepared = _prepare(contents.used, image_size)
                cache.make_room(path.name, prepared.images_NHW.nbytes)
                write_cache(path, prepared)
    return prepared


def _dataset(contents: Contents, division: Division, fingerprint: str, prepared: Prepared, image_size: int) -> Dataset:
    position = {id(record): place for place, record in enumerate(contents.used)}
    part_of: list[Part | None] = [None] * len(position)
    for record, part in zip(division.ordered, division.parts, strict=True):
        part_of[position[id(record)]] = part
    duplicates_N = seen_earlier(prepared.duplicates_P2, part_of)

    def split(name: SplitName) -> Split:
        members = division.splits[name]
        places = [position[id(record)] for record in members]
        return Split(
            names=tuple(record.name for record in members),
            images_NHW=prepared.images_NHW[places],
            points_NK2=points_of(members),
            sizes_N2=sizes_of(members),
            unit_per_pixel_N2=np.array([record.unit_per_pixel for record in members], dtype=np.float64),
            duplicates_N=duplicates_N[places],
        )

    pool = [position[id(record)] for record in division.unlabelled]
    return Dataset(
        name=contents.name,
        unit=contents.unit,
        image_size=image_size,
        num_landmarks=contents.num_landmarks,
        sdr_thresholds=contents.sdr_thresholds,
        paper=contents.paper,
        train=split("train"),
        val=split("val"),
        test=split("test"),
        unlabelled=Pool(tuple(record.name for record in division.unlabelled), prepared.images_NHW[pool]),
        fingerprint=fingerprint,
        landmark_names=contents.landmark_names,
        folds=contents.folds,
    )


def prepare_dataset(name: str, data_dir: Path | str | None, image_sizes: Iterable[int]) -> list[Path]:
    """Fill the cache for each image size and return its files; raise `InputError` as `load_dataset` does."""
    folder = open_cache(place_of(data_dir).folder).folder
    fold = 0 if require_dataset(name, data_dir).folds is not None else None  # every fold has the same images
    return [
        cache_path(folder, name, image_size, load_dataset(name, data_dir, image_size, fold).fingerprint)
        for image_size in image_sizes
    ]


def points_of(records: Sequence[Record]) -> FloatArray:
    """Return landmarks (N, K, 2) in pixels of the files."""
    return np.stack([record.points_K2 for record in records])


def sizes_of(records: Sequence[Record]) -> IntArray:
    """Return (N, 2) width and height of the files."""
    return np.array([record.size for record in records], dtype=np.int64)


def _prepare(records: Sequence[Record], image_size: int) -> Prepared:
    def decode(record: Record) -> tuple[ByteArray, npt.NDArray[np.int8]]:
        grey_HW = record.grey()
        return prepare(grey_HW, image_size), image_hash(grey_HW)

    pool = ThreadPoolExecutor(num_threads())
    try:
        decoded = list(pool.map(decode, records))
    finally:
        pool.shutdown(cancel_futures=True)
    images_NHW = np.stack([image for image, _ in decoded])
    hashes_NE = np.stack([signs for _, signs in decoded])
    pairs = find_duplicates(hashes_NE, points_of(records), sizes_of(records))
    return Prepared(images_NHW, np.array([(pair.first, pair.second) for pair in pairs], np.int64).reshape(-1, 2))


def _synthetic_contents() -> Contents:
    records = synthetic.synthetic_records()
    return Contents(
        name="synthetic",
        folder=None,
        num_landmarks=len(synthetic.LANDMARKS),
        unit="mm",
        sdr_thresholds=synthetic.SDR_THRESHOLDS_MM,
        paper=None,
        records=records,
        divisions=(
            Division({split: tuple(record for record in records if record.split == split) for split in SPLITS}),
        ),
    )


def _unknown(name: str, place: Place, *, plain_name: bool) -> InputError:
    own = [found for found in place.described() if found not in BUILT_IN_DATASETS]
    cure = ""
    if place.has_file(DESCRIPTION):
        cure = f"; {place.label} is itself a data set, give the folder above it as --data"
    elif plain_name and place.has_folder(name):
        cure = f"; {place.label}/{name} has no {DESCRIPTION}"
    return InputError(
        f"dataset must be one of {', '.join(BUILT_IN_DATASETS)} or a folder with {DESCRIPTION} in {place.label} "
        f"(found: {', '.join(own) or 'none'}); got {name!r}{nearest(name, [*BUILT_IN_DATASETS, *own])}{cure}"
    )
