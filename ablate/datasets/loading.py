"""Finding data sets, reading their labels, and preparing their images for a network.

Shape suffixes: N images, H = W = image size, E signed differences, K landmarks, 2 = (x, y).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ablate.datasets import synthetic
from ablate.datasets.builtin import DATASETS
from ablate.datasets.cache import Cache, Prepared, cache_path, open_cache, read_cache, write_cache
from ablate.datasets.duplicates import find_duplicates, image_hash, seen_earlier
from ablate.datasets.folder import DESCRIPTION, read_folder
from ablate.datasets.images import prepare
from ablate.datasets.layout import read_layout, split_records
from ablate.datasets.places import Copy, Place
from ablate.datasets.source import place_of
from ablate.datasets.types import (
    SPLITS,
    UNLABELLED,
    ByteArray,
    Dataset,
    DatasetInfo,
    FloatArray,
    IntArray,
    PaperScale,
    Part,
    Pool,
    Problems,
    Record,
    Split,
    SplitName,
    Unit,
)
from ablate.errors import InputError, nearest
from ablate.space import BUILT_IN_DATASETS

SMALLEST_IMAGE_PX = 16


@dataclass(frozen=True)
class Contents:
    """The records of a data set and what holds for all of them."""

    name: str
    folder: str | None  # as printed, also of an address; None: generated
    num_landmarks: int
    unit: Unit
    sdr_thresholds: tuple[float, ...]
    paper: PaperScale | None
    records: tuple[Record, ...]  # all that are labelled, by sorted name
    splits: Mapping[SplitName, tuple[Record, ...]]
    unlabelled: tuple[Record, ...] = ()  # images for pre-training alone
    excluded: int = 0  # images left out as in the paper
    left_out: int = 0  # images left out because they have no label
    num_images: int | None = None  # as published
    landmark_names: tuple[str, ...] = ()  # of every landmark, or none
    restore: Callable[[], bool] = lambda: False  # mends files that were damaged since they were fetched, see `Copy`

    @property
    def ordered(self) -> list[Record]:
        """The records in the order train, val, test, unlabelled."""
        return [*(record for name in SPLITS for record in self.splits[name]), *self.unlabelled]

    @property
    def parts(self) -> list[Part]:
        """Where each record in `ordered` stands."""
        return [*(name for name in SPLITS for _ in self.splits[name]), *([UNLABELLED] * len(self.unlabelled))]


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
        splits=split_records(layout, records, split_problems),
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


def outside_landmarks(record: Record) -> list[str]:
    """Name the landmarks that lie beyond the outer edge of their image's pixels."""
    width, height = record.size
    return [
        f"{record.name} landmark {index} at ({x:.1f}, {y:.1f}) of {width} x {height}"
        for index, (x, y) in enumerate(record.points_K2)
        if x < -0.5 or y < -0.5 or x > width - 0.5 or y > height - 0.5
    ]


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
    train, val, test = (len(contents.splits[split]) for split in SPLITS)
    return DatasetInfo(
        name=name,
        unit=contents.unit,
        num_landmarks=contents.num_landmarks,
        sdr_thresholds=contents.sdr_thresholds,
        paper=contents.paper,
        train=train,
        val=val,
        test=test,
        unlabelled=len(contents.unlabelled),
        folder=contents.folder,
        warnings=tuple(problems.warnings),
        landmark_names=contents.landmark_names,
    )


def dataset_fingerprint(name: str, data_dir: Path | str | None = None) -> str:
    """Return the fingerprint that `load_dataset` gives, without decoding pixels."""
    return _fingerprint(read_contents(name, data_dir, Problems(stop=True)))


def load_dataset(name: str, data_dir: Path | str | None, image_size: int) -> Dataset:
    """Return the data set with every image at `image_size` x `image_size`, from the cache where it is kept.

    The cache is keyed by the content of images and labels: a changed file is decoded again. However many processes
    of a node load the same data at once, one of them decodes, and one fetches what lies at an address.

    Raises:
        InputError: an unknown name, wrong labels, an image that cannot be decoded, an address that cannot be read,
            or a cache that cannot be written.
    """
    if image_size < SMALLEST_IMAGE_PX:
        raise InputError(f"image_size must be at least {SMALLEST_IMAGE_PX} px; got {image_size}")
    cache = open_cache(place_of(data_dir).folder)
    for _ in range(2):
        with open_contents(name, data_dir, Problems(stop=True)) as contents:
            fingerprint = _fingerprint(contents)
            path = cache_path(cache.folder, name, image_size, fingerprint)
            prepared = _prepared(contents, cache, path, image_size)
        if prepared is not None:
            return _dataset(contents, fingerprint, prepared, image_size)
    raise InputError(
        f"{cache.folder}: the cache must keep what was written to it; files of '{name}' were damaged again after they "
        "had been mended; check the disk, or set ABLATE_CACHE to a folder on another"
    )


def _prepared(contents: Contents, cache: Cache, path: Path, image_size: int) -> Prepared | None:
    """Return the images from the cache, or prepare them there; None if files had to be mended, to be read again."""

    def kept() -> Prepared | None:
        return read_cache(path, num_images=len(contents.ordered), image_size=image_size)

    prepared = kept()
    if prepared is None:
        with cache.locked(path.name):
            prepared = kept()  # another process may have been first
            if prepared is None and not contents.restore():
                prepared = _prepare(contents.ordered, contents.parts, image_size)
                cache.make_room(path.name, prepared.images_NHW.nbytes)
                write_cache(path, prepared)
    return prepared


def _dataset(contents: Contents, fingerprint: str, prepared: Prepared, image_size: int) -> Dataset:
    parts, start = [], 0
    for split in SPLITS:
        members = contents.splits[split]
        part = slice(start, start := start + len(members))
        parts.append(
            Split(
                names=tuple(record.name for record in members),
                images_NHW=prepared.images_NHW[part],
                points_NK2=points_of(members),
                sizes_N2=sizes_of(members),
                unit_per_pixel_N2=np.array([record.unit_per_pixel for record in members], dtype=np.float64),
                duplicates_N=prepared.duplicates_N[part],
            )
        )
    return Dataset(
        name=contents.name,
        unit=contents.unit,
        image_size=image_size,
        num_landmarks=contents.num_landmarks,
        sdr_thresholds=contents.sdr_thresholds,
        paper=contents.paper,
        train=parts[0],
        val=parts[1],
        test=parts[2],
        unlabelled=Pool(tuple(record.name for record in contents.unlabelled), prepared.images_NHW[start:]),
        fingerprint=fingerprint,
        landmark_names=contents.landmark_names,
    )


def prepare_dataset(name: str, data_dir: Path | str | None, image_sizes: Iterable[int]) -> list[Path]:
    """Fill the cache for each image size and return its files; raise `InputError` as `load_dataset` does."""
    folder = open_cache(place_of(data_dir).folder).folder
    return [
        cache_path(folder, name, image_size, load_dataset(name, data_dir, image_size).fingerprint)
        for image_size in image_sizes
    ]


def points_of(records: Sequence[Record]) -> FloatArray:
    """Return landmarks (N, K, 2) in pixels of the files."""
    return np.stack([record.points_K2 for record in records])


def sizes_of(records: Sequence[Record]) -> IntArray:
    """Return (N, 2) width and height of the files."""
    return np.array([record.size for record in records], dtype=np.int64)


def num_threads() -> int:
    """Threads that decode at once; decoders release the interpreter's lock."""
    return min(4, os.cpu_count() or 1)


def _prepare(records: Sequence[Record], parts: Sequence[Part], image_size: int) -> Prepared:
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
    return Prepared(images_NHW, seen_earlier(pairs, parts))


def _fingerprint(contents: Contents) -> str:
    """16 hex digits over pictures, labels to 1e-6 px, splits, scales, unit and thresholds."""
    with ThreadPoolExecutor(num_threads()) as pool:
        digests = list(pool.map(lambda record: record.digest(), contents.ordered))
    rows = [
        [
            part,
            record.name,
            digest,
            record.size,
            [f"{value:.6f}" for value in record.points_K2.ravel()],
            [f"{value:.9g}" for value in record.unit_per_pixel],
        ]
        for part, record, digest in zip(contents.parts, contents.ordered, digests, strict=True)
    ]
    text = json.dumps([contents.unit, contents.sdr_thresholds, rows], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
        splits={split: tuple(record for record in records if record.split == split) for split in SPLITS},
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
