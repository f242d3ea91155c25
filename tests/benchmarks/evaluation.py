"""The time that decoding and measuring an image takes, by the published protocol's way and by ours. Run it as a script.

The published way draws the disks of the truth of every image, for every evaluation, and decodes them as it decodes the
predictions; ours draws those disks only that the border cuts. Both are given the same heatmaps and must return the same
errors. Pairs alternate; times are of the processor, on one thread.
Usage: python tests/benchmarks/evaluation.py [IMAGES] [PAIRS]
"""

import statistics
import sys
import time

import cv2
import numpy as np
import torch

from ablate.datasets import PaperScale
from ablate.network.heatmaps import centroid, targets, to_network
from ablate.network.metrics import paper_errors, physical_errors

SIZE, NUM_LANDMARKS, SIGMA_PX = 256, 19, 5.0
FILE_WH = (1935, 2400)
BATCH = 8  # images whose maps are in memory together, as in fine-tunings of the paper
SCALE = PaperScale((240.0, 193.5), None)


def decoded(map_HW):
    """The centroid of a map's largest region of at least half the maximum."""
    region_HW = (map_HW >= map_HW.max() / 2).astype(np.uint8)
    contours, _ = cv2.findContours(region_HW, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    moments = cv2.moments(max(contours, key=cv2.contourArea))
    return moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]


def published_way(maps_NKHW, truth_NK2, sizes_N2):
    """Errors (N, K) of protocol `paper`, as it is described: map by map, truth and prediction decoded alike."""
    axis = np.arange(SIZE)
    errors = []
    for maps_KHW, truth_K2, sizes_2 in zip(maps_NKHW, truth_NK2, sizes_N2, strict=True):
        found, known = [], []
        (whole_K2,) = np.rint(to_network(truth_K2[None], sizes_2[None], SIZE))
        for map_HW, (x, y) in zip(maps_KHW.numpy(), whole_K2, strict=True):
            gaussian_HW = np.exp(-((axis - x) ** 2 + (axis[:, None] - y) ** 2) / (2 * SIGMA_PX**2))
            disk_HW = (gaussian_HW >= 0.5 * gaussian_HW.max()).astype(np.float32)
            found.append(decoded(map_HW))
            known.append(decoded(disk_HW))
        errors.append(np.linalg.norm((np.rint(found) - np.rint(known)) * np.asarray(SCALE.frame) / SIZE, axis=1))
    return np.stack(errors)


def our_way(maps_NKHW, truth_NK2, sizes_N2):
    """The same errors, and those of protocol `physical`."""
    points_NK2 = np.concatenate([centroid(maps_BKHW).double().numpy() for maps_BKHW in maps_NKHW.split(BATCH)])
    physical_errors(points_NK2, truth_NK2, np.full((len(truth_NK2), 2), 0.1))
    return paper_errors(points_NK2, truth_NK2, sizes_N2, image_size=SIZE, scale=SCALE)


def main(num_images: int = 20, num_pairs: int = 7) -> None:
    """Print the milliseconds of an image either way, and their ratio."""
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    truth_NK2 = generator.uniform(200, 1700, (num_images, NUM_LANDMARKS, 2))
    sizes_N2 = np.tile(FILE_WH, (num_images, 1))
    seen_NK2 = to_network(truth_NK2 + generator.normal(0, 20, truth_NK2.shape), sizes_N2, SIZE)
    maps_NKHW, _ = targets(torch.from_numpy(seen_NK2).float(), SIZE, sigma=SIGMA_PX, shape="gaussian")
    assert np.allclose(
        published_way(maps_NKHW, truth_NK2, sizes_N2), our_way(maps_NKHW, truth_NK2, sizes_N2), atol=1e-9
    )
    spent = {published_way: [], our_way: []}
    for _ in range(num_pairs):
        for way, times in spent.items():
            start = time.process_time()
            way(maps_NKHW, truth_NK2, sizes_N2)
            times.append((time.process_time() - start) / num_images * 1000)
    for way, times in spent.items():
        print(f"{way.__name__:<14} {statistics.median(times):6.2f} ms an image ({min(times):.2f} to {max(times):.2f})")
    ratios = [theirs / ours for theirs, ours in zip(*spent.values(), strict=True)]
    print(f"ratio          {statistics.median(ratios):6.2f} (median of {num_pairs} pairs)")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
