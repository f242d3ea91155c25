"""The data of a clinic, rebuilt from public cephalograms: few labels, two scanners, patients, diseases in the names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ablate.datasets import read_records

NUM_IMAGES, NUM_LABELLED = 130, 70
SIDES = {"A": (242, 300), "B": (194, 240)}  # px, of the two scanners
WIDTH_MM = 193.5  # of the film
LANDMARKS = tuple(f"L{number}" for number in range(1, 20))


@dataclass(frozen=True)
class Clinic:
    """A folder of images, and what is known of them."""

    images: Path
    points: dict[str, dict[str, tuple[float, float]]]  # annotated images: landmark -> pixels of the file
    columns: dict[str, dict[str, str]]  # every image: scanner, patient, disease, spacing

    @property
    def names(self) -> list[str]:
        return sorted(self.columns)


def build_clinic(xray_data: Path, folder: Path) -> Clinic:
    """Write the first 130 cephalograms, small and renamed, and return them with the labels of every other pair.

    A patient has two images. The first 80 are called COVID, the others Normal, so that the order by name goes with the
    disease. Every third patient's images are from scanner B.
    """
    images = folder / "images"
    images.mkdir(parents=True)
    points, columns = {}, {}
    for number, record in enumerate(read_records("cephalo", xray_data)[:NUM_IMAGES]):
        patient = number // 2
        scanner = "B" if patient % 3 == 0 else "A"
        disease = "COVID" if number < 80 else "Normal"
        name = f"{disease}-{number:03}.png"
        size = SIDES[scanner]
        grey = record.grey()
        Image.fromarray(np.rint(grey).astype(np.uint8)).resize(size, Image.Resampling.BOX).save(images / name)
        columns[name] = {
            "scanner": scanner,
            "patient": f"p{patient:02}",
            "disease": disease,
            "spacing": f"{WIDTH_MM / size[0]:.6f}",
        }
        if patient % 13 < 7:
            places = (record.points_K2 + 0.5) * np.array(size) / np.array(record.size) - 0.5
            points[name] = {mark: (float(x), float(y)) for mark, (x, y) in zip(LANDMARKS, places, strict=True)}
    assert len(points) == NUM_LABELLED
    return Clinic(images, points, columns)
