"""Landmarks as points, as target maps, and decoded from predicted maps.

Shapes: B or N images, K landmarks, H and W of the square network input, 2 = (x, y).

Two coordinate systems meet here and nowhere else. In files, a point is in pixels of the original image; in the
network, in pixels of its input. In both, x runs to the right and the centre of the top-left pixel is (0, 0), so
x_net = (x + 0.5) * W_net / W - 0.5. NaN means not annotated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import cv2
import numpy as np
import torch
from torch import Tensor

Target: TypeAlias = Literal["disk", "gaussian"]
Decoder: TypeAlias = Literal["centroid", "local_mean", "argmax"]
Loss: TypeAlias = Literal["ce", "spatial_ce", "mse"]

HALF_MAXIMUM = math.sqrt(2 * math.log(2))
"""Radius, in sigmas, at which a Gaussian is half its maximum."""

LOCAL_MEAN_SIGMAS = 3.0
"""Half the side of `local_mean`'s window, in sigmas of the target."""


# --- points -----------------------------------------------------------------------------------------


def to_network(points_NK2: np.ndarray, sizes_N2: np.ndarray, image_size: int) -> np.ndarray:
    """Turn points in pixels of files of `sizes_N2` (width, height) into pixels of the network's input."""
    scale_N12 = image_size / np.asarray(sizes_N2, dtype=np.float64)[:, None, :]
    return (np.asarray(points_NK2, dtype=np.float64) + 0.5) * scale_N12 - 0.5


def to_file(points_NK2: np.ndarray, sizes_N2: np.ndarray, image_size: int) -> np.ndarray:
    """Turn points in pixels of the network's input into pixels of files of `sizes_N2` (width, height)."""
    scale_N12 = np.asarray(sizes_N2, dtype=np.float64)[:, None, :] / image_size
    return (np.asarray(points_NK2, dtype=np.float64) + 0.5) * scale_N12 - 0.5


# --- targets ----------------------------------------------------------------------------------------


def targets(points_BK2: Tensor, image_size: int, *, sigma: float, shape: Target) -> tuple[Tensor, Tensor]:
    """Draw the target map of each landmark, on the device of the points.

    `disk` is 1 where a Gaussian around the point is at least half its maximum, else 0 (paper, section 4); it
    holds at least the pixel nearest to a point inside the image, however small sigma is. `gaussian` has
    maximum 1 at the point. Points are not rounded to whole pixels, unlike in the authors' code. A point
    outside the image leaves the part of its shape that reaches into the image.

    Args:
        points_BK2: network pixels; NaN = not annotated.
        image_size: side of the maps in pixels.
        sigma: of the Gaussian, in network pixels.
        shape: disk or gaussian.

    Returns:
        Maps (B, K, H, W), all zero where not annotated, and the mask (B, K) of annotated landmarks.
    """
    annotated_BK = points_BK2.isfinite().all(dim=2)
    points_BK2 = points_BK2.nan_to_num(nan=-1e4)  # far outside: nothing is drawn
    axis = torch.arange(image_size, device=points_BK2.device, dtype=points_BK2.dtype)
    x2_BK1W = (axis - points_BK2[..., 0, None]).square().unsqueeze(2)
    y2_BKH1 = (axis - points_BK2[..., 1, None]).square().unsqueeze(3)
    if shape == "disk":
        radius = max(sigma * HALF_MAXIMUM, math.sqrt(0.5))
        maps_BKHW = (x2_BK1W + y2_BKH1 <= radius**2 * (1 + 1e-6)).to(points_BK2.dtype)
    else:
        maps_BKHW = torch.exp(x2_BK1W / (-2 * sigma**2)) * torch.exp(y2_BKH1 / (-2 * sigma**2))
    return maps_BKHW * annotated_BK[..., None, None], annotated_BK


# --- decoding ---------------------------------------------------------------------------------------


def _as_it_is(logits_BKHW: Tensor) -> Tensor:
    return logits_BKHW


def _softmax_over_pixels(logits_BKHW: Tensor) -> Tensor:
    return logits_BKHW.flatten(2).softmax(dim=2).view_as(logits_BKHW)


SCORES: dict[Loss, Callable[[Tensor], Tensor]] = {
    "ce": _as_it_is,
    "spatial_ce": _softmax_over_pixels,
    "mse": _as_it_is,
}
"""The scores (B, K, H, W) that decoders read, made of the network's logits, by the loss it was trained with.

- `ce`: the logits, which the authors' code thresholds. The softmax across channels, which the loss is made of, gives
  every pixel of the background to some landmark: with 19 landmarks it decodes about as well (10 cephalograms,
  64 x 64, centroid: 3.7 against 4.1 mm at sigma 1.25 px, 4.6 against 4.6 mm at 3 px), with 3 it loses them
  (overfitted blobs, largest error 2.4 against 0.9 px). Where no logit is positive, `centroid` is (0, 0).
- `spatial_ce`: the probabilities, a softmax over the pixels of each map; the logits decode worse.
- `mse`: the output, which is compared with the target as it is.
"""


CONFIDENCE_SIGMAS = 2.0
"""Radius, in sigmas of the target, around a prediction within which a map's mass counts as confidence."""


def confidence(logits_BKHW: Tensor, points_BK2: Tensor, *, loss: Loss, sigma: float) -> Tensor:
    """Return the share (B, K), 0 to 1, of each map's mass that lies around its decoded point.

    The mass is the softmax over the map's pixels or, of a network trained with `mse`, the positive part of its output.
    A map with one sharp peak has nearly 1, one with two equal peaks about a half where one of them is taken, a flat one
    next to nothing. It orders the predictions of one network and is not the probability of being right.

    Args:
        logits_BKHW: output of the network.
        points_BK2: what was decoded of it, in network pixels.
        loss: with which the network was trained.
        sigma: of the targets, in network pixels.
    """
    mass_BKHW = logits_BKHW.clamp(min=0) if loss == "mse" else _softmax_over_pixels(logits_BKHW)
    height, width = logits_BKHW.shape[2:]
    x2_BK1W = (torch.arange(width, device=logits_BKHW.device) - points_BK2[..., 0, None]).square().unsqueeze(2)
    y2_BKH1 = (torch.arange(height, device=logits_BKHW.device) - points_BK2[..., 1, None]).square().unsqueeze(3)
    near_BKHW = x2_BK1W + y2_BKH1 <= max(CONFIDENCE_SIGMAS * sigma, 1.0) ** 2
    total_BK = mass_BKHW.sum(dim=(2, 3))
    return (mass_BKHW * near_BKHW).sum(dim=(2, 3)) / total_BK.clamp(min=torch.finfo(total_BK.dtype).tiny)


def decode(scores_BKHW: Tensor, decoder: Decoder, *, sigma: float) -> Tensor:
    """Return the point that each map of scores shows, in network pixels: (B, K, 2), on the maps' device.

    Args:
        scores_BKHW: maps as `SCORES` makes them of the network's logits, or target maps.
        decoder: `centroid`, see `centroid`; `argmax`: the whole pixel with the largest score;
            `local_mean`: the mean position around that pixel, weighted by the positive part of the scores, in
            a window that reaches `LOCAL_MEAN_SIGMAS` sigmas to each side.
        sigma: of the targets, in network pixels.
    """
    if decoder == "centroid":
        return centroid(scores_BKHW)
    width = scores_BKHW.shape[3]
    peak_BK = scores_BKHW.flatten(2).argmax(dim=2)
    x_BK, y_BK = peak_BK % width, peak_BK // width
    if decoder == "argmax":
        return torch.stack((x_BK, y_BK), dim=2).to(scores_BKHW.dtype)
    reach = max(1, math.ceil(LOCAL_MEAN_SIGMAS * sigma))
    columns = torch.arange(width, device=scores_BKHW.device)
    rows = torch.arange(scores_BKHW.shape[2], device=scores_BKHW.device)
    near_BKHW = ((columns - x_BK[..., None]).abs() <= reach).unsqueeze(2) & (
        (rows - y_BK[..., None]).abs() <= reach
    ).unsqueeze(3)
    weights_BKHW = scores_BKHW.clamp(min=0) * near_BKHW
    total_BK = weights_BKHW.sum(dim=(2, 3))
    mean_BK2 = torch.stack(
        ((weights_BKHW.sum(dim=2) * columns).sum(dim=2), (weights_BKHW.sum(dim=3) * rows).sum(dim=2)), dim=2
    )
    peak_BK2 = torch.stack((x_BK, y_BK), dim=2).to(scores_BKHW.dtype)
    found_BK1 = (total_BK > 0).unsqueeze(2)  # where no score is positive, the peak itself
    return torch.where(found_BK1, mean_BK2 / total_BK.clamp(min=torch.finfo(total_BK.dtype).tiny)[..., None], peak_BK2)


def centroid(scores_BKHW: Tensor) -> Tensor:
    """Return the centroid of the largest region of at least half the maximum (paper; authors' decoder).

    Each map is thresholded at half its maximum. Of the outer contours, polygons through the centres of border
    pixels, the one of largest area counts, with the centroid of its image moments. That is the polygon's
    centroid, not the mean of the pixels. Where nothing is positive, and where every contour has area zero (one
    pixel, or one line of pixels), the point is (0, 0). OpenCV finds the contours on the CPU.

    Returns:
        (B, K, 2) in network pixels, on the maps' device.
    """
    maximum_BK11 = scores_BKHW.amax(dim=(2, 3), keepdim=True)
    half_BK11 = torch.where(maximum_BK11 > 0, maximum_BK11 / 2, math.inf)
    if scores_BKHW.device.type == "cpu":
        region_BKHW = scores_BKHW.detach().numpy() >= half_BK11.detach().numpy()  # numpy is several times as fast here
    else:
        region_BKHW = (scores_BKHW >= half_BK11).cpu().numpy()
    points_BK2 = np.zeros((*region_BKHW.shape[:2], 2))
    for index in np.ndindex(points_BK2.shape[:2]):
        contours, _ = cv2.findContours(region_BKHW[index].view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        moments = cv2.moments(max(contours, key=cv2.contourArea)) if contours else {"m00": 0.0}
        if moments["m00"] > 0:
            points_BK2[index] = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
    return torch.from_numpy(points_BK2).to(scores_BKHW)
