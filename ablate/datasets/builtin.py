"""The public data sets, and the readers of their label files.

The differences between the sets are the rows of `DATASETS`; facts are from the paper (Di Via et al., WACV
2025, arXiv 2407.18125) and the layouts that the sets are redistributed in. Shape suffixes: K landmarks,
2 = (x, y).
"""

from __future__ import annotations

import math
from pathlib import Path, PurePath

import numpy as np

from ablate.datasets.layout import Frame, Label, Layout, Reference
from ablate.datasets.splitting import SplitRule
from ablate.datasets.types import FloatArray, PaperScale, Problems

CEPHALO_FILM_MM = (193.5, 240.0)
"""Width and height of a film: 1935 x 2400 px at 0.1 mm (ISBI 2015 challenge)."""

HAND_REFERENCE = (0, 4, 50.0)
"""The wrist is 50 mm wide between landmarks 0 and 4 (Payer et al. 2019)."""

CHEST_EXCLUDED = ("0059", "0178", "0228", "0267", "0276", "0285", "0295", "0303", "0310")
"""Radiographs that the paper leaves out."""


def read_chest(folder: Path, problems: Problems) -> dict[str, Label | None]:
    """Read `labels/NAME.txt`: line 1 the number of points, then `x y` as shares of width and height."""
    labels: dict[str, Label | None] = {}
    for path in _text_files(folder / "labels", problems):
        labels[path.stem] = None
        lines = _lines(path, problems)
        if lines is None:
            continue
        if not lines or lines[0].strip() != "6":
            problems.error(
                f"{path}:1: must be the number of points, 6; got {lines[0] if lines else ''!r}; "
                "restore the file from the public set"
            )
            continue
        points_K2 = _points(path, lines[1:], None, num_landmarks=6, first_line=2, problems=problems)
        if points_K2 is not None:
            labels[path.stem] = Label(points_K2, str(path))
    return labels


def read_cephalo(folder: Path, problems: Problems) -> dict[str, Label | None]:
    """Read both annotators' `NAME.txt`, 19 lines `x,y` in pixels; the truth is the mean of the two.

    What follows the 19 lines (the clinical classification) is ignored.
    """
    annotators = ("400_junior", "400_senior")
    read: dict[str, dict[str, FloatArray | None]] = {name: {} for name in annotators}
    for name in annotators:
        for path in _text_files(folder / name, problems):
            lines = _lines(path, problems)
            read[name][path.stem] = (
                None
                if lines is None
                else _points(path, lines[:19], ",", num_landmarks=19, first_line=1, problems=problems)
            )
    junior, senior = (read[name] for name in annotators)
    labels: dict[str, Label | None] = {}
    for key in sorted(junior.keys() | senior.keys()):
        labels[key] = None
        if key not in junior or key not in senior:
            problems.error(
                f"{folder / annotators[key in junior] / (key + '.txt')}: file not found; every radiograph needs both "
                "annotators' labels; restore the file from the public set"
            )
            continue
        first_K2, second_K2 = junior[key], senior[key]
        if first_K2 is not None and second_K2 is not None:
            labels[key] = Label((first_K2 + second_K2) / 2, str(folder / annotators[0] / f"{key}.txt"))
    return labels


def read_hand(folder: Path, problems: Problems) -> dict[str, Label | None]:
    """Read `labels/all.csv`: no header, the image's id, then x0,y0,... of 37 landmarks in pixels."""
    path = folder / "labels" / "all.csv"
    labels: dict[str, Label | None] = {}
    first_rows: dict[str, int] = {}
    for number, line in enumerate(_lines(path, problems) or [], start=1):
        if not line.strip():
            continue
        name, *fields = line.split(",")
        where = f"{path}:{number}"
        key = _hand_key(name.strip())
        earlier = first_rows.setdefault(key, number)
        if earlier != number:
            problems.error(f"{where}: image {name.strip()!r} already has a row in line {earlier}; remove one of them")
            continue
        labels[key] = None
        if len(fields) != 74:
            problems.error(
                f"{where}: must be an image id and 37 pairs x,y, 75 columns; got {len(fields) + 1}; "
                "restore the file from the public set"
            )
            continue
        pairs = [",".join(fields[i : i + 2]) for i in range(0, 74, 2)]
        points_K2 = _points(path, pairs, ",", num_landmarks=37, first_line=None, problems=problems, line=number)
        if points_K2 is not None:
            labels[key] = Label(points_K2, where)
    return labels


def _hand_key(name: str) -> str:
    """The table writes ids as numbers, so that file 0123.jpg belongs to row 123."""
    stem = PurePath(name).stem
    return str(int(stem)) if stem.isdecimal() else stem


def _stem(name: str) -> str:
    return PurePath(name).stem


def _text_files(folder: Path, problems: Problems) -> list[Path]:
    paths = sorted(path for path in folder.glob("*.txt") if path.name[0] != ".")
    if not paths:
        problems.error(f"{folder}: must hold the label files (.txt); found none; copy them there from the public set")
    return paths


def _lines(path: Path, problems: Problems) -> list[str] | None:
    try:
        return path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        problems.error(f"{path}: label file cannot be read ({reason}); restore it from the public set")
        return None


def _points(
    path: Path,
    lines: list[str],
    separator: str | None,
    *,
    num_landmarks: int,
    first_line: int | None,
    problems: Problems,
    line: int = 0,
) -> FloatArray | None:
    """Parse one pair of numbers per element of `lines`, which stand in one line of the file or in many."""
    if len(lines) != num_landmarks:
        problems.error(
            f"{path}: must hold {num_landmarks} points; got {len(lines)}; restore the file from the public set"
        )
        return None
    points = []
    for index, text in enumerate(lines):
        try:
            x, y = (float(part) for part in text.split(separator))
        except ValueError:
            x = y = math.nan
        if not (math.isfinite(x) and math.isfinite(y)):
            number = line if first_line is None else first_line + index
            problems.error(
                f"{path}:{number}: landmark {index} must be two numbers; got {text!r}; "
                "restore the file from the public set"
            )
            return None
        points.append((x, y))
    return np.array(points, dtype=np.float64)


DATASETS: dict[str, Layout] = {
    "chest": Layout(
        name="chest",
        title="Shenzhen chest X-ray set",
        num_landmarks=6,
        unit="px",
        scale=Frame(256, 256),  # pixels of the paper's 256 x 256 image: there is no physical scale
        sdr_thresholds=(3.0, 6.0, 9.0),
        image_folder="pngs",
        label_file="labels",
        label_key=_stem,
        read_labels=read_chest,
        splits=SplitRule(195, 34),
        fractions=True,
        excluded=frozenset(f"CHNCXR_{number}_0" for number in CHEST_EXCLUDED),
        unlabelled="leave out",  # the public folder also holds radiographs that nobody annotated
        num_images=270,
        paper=PaperScale(frame=(256.0, 256.0), reference=None),
        source="images: https://www.kaggle.com/nikhilpandey360/chest-xray-masks-and-labels, "
        "labels: chest_labels.zip of "
        "https://github.com/MIRACLE-Center/YOLO_Universal_Anatomical_Landmark_Detection",
        tree="pngs/CHNCXR_*.png, labels/CHNCXR_*.txt",
    ),
    "cephalo": Layout(
        name="cephalo",
        title="ISBI 2015 cephalometric challenge",
        num_landmarks=19,
        unit="mm",
        scale=Frame(*CEPHALO_FILM_MM),
        sdr_thresholds=(2.0, 2.5, 3.0, 4.0),
        image_folder="jpg",
        label_file="400_junior",
        label_key=_stem,
        read_labels=read_cephalo,
        splits=SplitRule(130, 20, 250),
        num_images=400,
        annotators_apart=2.15,  # mm, junior to senior over all radiographs and landmarks; 2.02 on the test images
        paper=PaperScale(frame=(240.0, 193.5), reference=None),  # axes exchanged, as in the authors' code
        source="http://www-o.ntust.edu.tw/~cweiwang/ISBI2015/challenge1/",
        tree="jpg/*.jpg, 400_junior/*.txt, 400_senior/*.txt",
    ),
    "hand": Layout(
        name="hand",
        title="Digital Hand Atlas",
        num_landmarks=37,
        unit="mm",
        scale=Reference(*HAND_REFERENCE),
        sdr_thresholds=(2.0, 4.0, 10.0),
        image_folder="jpg",
        label_file="labels/all.csv",
        label_key=_hand_key,
        read_labels=read_hand,
        splits=SplitRule(550, 59),
        unlabelled="leave out",  # as in the paper
        spare_labels=1,  # the public table has 910 rows for 909 images
        num_images=909,
        paper=PaperScale(frame=None, reference=HAND_REFERENCE),
        source="images: https://ipilab.usc.edu/research/baaweb, labels: all.csv of "
        "https://github.com/christianpayer/MedicalDataAugmentationTool-HeatmapRegression",
        tree="jpg/*.jpg, labels/all.csv",
    ),
}
"""The public data sets. All go through the same reader; what differs is here."""


def annotators_apart(dataset: str) -> float | None:
    """Return the mean distance of a public data set's two annotators, in its unit; None where there is one."""
    return DATASETS[dataset].annotators_apart if dataset in DATASETS else None
