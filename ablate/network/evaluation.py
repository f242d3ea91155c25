"""Landmarks that a network predicts in images, and their errors on a test set.

Shapes: N images, K landmarks, H and W of the square network input, 2 = (x, y).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ablate.datasets import Dataset, Split
from ablate.errors import InputError
from ablate.network.base import Network
from ablate.network.heatmaps import SCORES, Decoder, confidence, decode, to_file
from ablate.network.metrics import Summary, paper_errors, physical_errors, summarise
from ablate.space import TrialSpec
from ablate.training import Interrupted, Progress, Report

_MOST_IMAGES = 16  # in one forward pass, where training passes hold no more


def inference_batch_size(spec: TrialSpec, groups: int = 1) -> int:
    """Return how many images one forward pass without gradients takes: no more memory than fine-tuning needs.

    A function of its arguments alone, because another batch size may change the last bits of a result.

    Args:
        spec: the trial.
        groups: of `finetune.batch_size` images, that passes with gradients held; 1 on a CPU.
    """
    batch_size = spec.finetune.batch_size
    return max(min(_MOST_IMAGES, 4 * batch_size), groups * batch_size)


@dataclass(frozen=True)
class Evaluation:
    """Predictions and errors of a network on the test images that count, in their order."""

    split: Split  # the images that count: all, or without duplicates
    points_file_NK2: np.ndarray  # predictions in pixels of the original files, by the trial's decoder
    errors_NK: np.ndarray  # protocol physical, in the data set's unit, NaN = not annotated
    errors_paper_NK: np.ndarray | None  # protocol paper; None for a user's own data
    thresholds: tuple[float, ...]  # of the successful detection rates, in the data set's unit
    seconds: float

    @property
    def summary(self) -> Summary:
        """MRE, median, standard deviation and detection rates of protocol `physical`."""
        return summarise(self.errors_NK, self.thresholds)

    @property
    def paper_summary(self) -> Summary | None:
        """The same of protocol `paper`; None for a user's own data."""
        return None if self.errors_paper_NK is None else summarise(self.errors_paper_NK, self.thresholds)


def as_input(images_NHW: Tensor) -> Tensor:
    """Turn uint8 images (N, H, W) into the network's input: float (N, 1, H, W) in [0, 1], on their device."""
    return images_NHW[:, None].float() / 255


def run_network(network: Network, images_B1HW: Tensor, spec: TrialSpec) -> Tensor:
    """Return logits (B, K, H, W) as fine-tuning and evaluation compute them: at `finetune.timestep`, if any."""
    told = spec.finetune.timestep
    timesteps_B = None if told is None else torch.full((len(images_B1HW),), told, device=images_B1HW.device)
    logits_BKHW: Tensor = network(images_B1HW, timesteps_B)
    return logits_BKHW


def logits_in_batches(
    network: Network, images_NHW: Tensor, spec: TrialSpec, *, device: torch.device | str, batch_size: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield logits (B, K, H, W) of uint8 images (N, H, W) batch by batch, each with the slice of images it is of.

    The network is put into evaluation mode, and no gradients are kept.
    """
    network.eval()
    batch_size = batch_size or inference_batch_size(spec)
    for start in range(0, len(images_NHW), batch_size):
        part = slice(start, min(start + batch_size, len(images_NHW)))
        with torch.no_grad():
            logits_BKHW = run_network(network, as_input(images_NHW[part].to(device)), spec)
        yield part, logits_BKHW


@dataclass(frozen=True, eq=False)
class Predictions:
    """Landmarks that a network finds in images."""

    points_NK2: np.ndarray  # pixels of the original files
    confidence_NK: np.ndarray  # 0 to 1, see `confidence`


def predict(
    network: Network,
    images_NHW: np.ndarray,
    sizes_N2: np.ndarray,
    spec: TrialSpec,
    *,
    device: torch.device | str,
    batch_size: int | None = None,
) -> Predictions:
    """Return the landmarks that `spec.evaluate.decode` reads, in pixels of the original files.

    Args:
        network: with its fine-tuned weights, on `device`.
        images_NHW: uint8, prepared as a data set's images.
        sizes_N2: width and height of the original files.
        spec: of the trial that fine-tuned the network.
        device: where the network is.
        batch_size: images in one forward pass; default `inference_batch_size`.
    """
    points, shares = [], []
    for _, logits_BKHW in logits_in_batches(
        network, torch.from_numpy(images_NHW), spec, device=device, batch_size=batch_size
    ):
        points_BK2 = read_points(logits_BKHW, spec, spec.evaluate.decode)
        fine = spec.finetune
        points.append(_as_array(points_BK2))
        shares.append(_as_array(confidence(logits_BKHW, points_BK2, loss=fine.loss, sigma=fine.sigma)))
    return Predictions(to_file(np.concatenate(points), sizes_N2, spec.image_size), np.concatenate(shares))


def read_points(logits_BKHW: Tensor, spec: TrialSpec, decoder: Decoder) -> Tensor:
    """Return what `decoder` reads in the network's output: (B, K, 2) in network pixels."""
    return decode(SCORES[spec.finetune.loss](logits_BKHW), decoder, sigma=spec.finetune.sigma)


def _as_array(values: Tensor) -> np.ndarray:
    return values.cpu().double().numpy()


def images_that_count(spec: TrialSpec, split: Split) -> Split:
    """Return `split` without the images that also occur in another split, if `spec.exclude_duplicates` says so.

    Raises:
        InputError: no image is left.
    """
    if not spec.exclude_duplicates:
        return split
    keep_N = ~split.duplicates_N
    if not keep_N.any():
        raise InputError(
            f"exclude_duplicates leaves none of the {len(keep_N)} test images of {spec.dataset}: each also occurs in "
            "train or val; set exclude_duplicates: false or change the splits"
        )
    return split.part(np.flatnonzero(keep_N))


def evaluate(
    network: Network,
    spec: TrialSpec,
    split: Split,
    dataset: Dataset,
    *,
    device: torch.device | str,
    report: Report,
    batch_size: int | None = None,
) -> Evaluation:
    """Predict the landmarks of `split` and measure the errors by both protocols.

    Protocol `paper` always decodes by `centroid`, whatever `spec.evaluate.decode` is. Maps are decoded batch
    by batch; no more than one batch of them is in memory.

    Args:
        network: with its fine-tuned weights; moved to `device`.
        spec: of the trial.
        split: whole; see `images_that_count`.
        dataset: what `split` belongs to: scales and thresholds.
        device: where to run.
        report: called after each batch; returns True to ask for a stop.
        batch_size: images in one forward pass; default `inference_batch_size`.

    Raises:
        Interrupted: `report` asked to stop; nothing needs to be saved, evaluation starts anew.
        InputError: see `images_that_count`.
    """
    start_s = time.monotonic()
    split = images_that_count(spec, split)
    network.to(device)
    shape_NK2 = (*split.points_NK2.shape[:2], 2)
    points_NK2, centroids_NK2 = np.empty(shape_NK2), np.empty(shape_NK2)
    for part, logits_BKHW in logits_in_batches(
        network, torch.from_numpy(split.images_NHW), spec, device=device, batch_size=batch_size
    ):
        points_NK2[part] = _as_array(read_points(logits_BKHW, spec, spec.evaluate.decode))
        if dataset.paper is not None:
            same = spec.evaluate.decode == "centroid"
            centroids_NK2[part] = points_NK2[part] if same else _as_array(read_points(logits_BKHW, spec, "centroid"))
        rate = part.stop / max(time.monotonic() - start_s, 1e-9)
        if report(Progress("evaluate", part.stop, len(points_NK2), images_per_second=rate)):
            raise Interrupted
    points_file_NK2 = to_file(points_NK2, split.sizes_N2, spec.image_size)
    return Evaluation(
        split,
        points_file_NK2,
        physical_errors(points_file_NK2, split.points_NK2, split.unit_per_pixel_N2),
        None
        if dataset.paper is None
        else paper_errors(
            centroids_NK2, split.points_NK2, split.sizes_N2, image_size=spec.image_size, scale=dataset.paper
        ),
        dataset.sdr_thresholds,
        time.monotonic() - start_s,
    )
