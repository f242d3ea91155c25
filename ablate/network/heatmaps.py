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
import torch.nn.functional as F
from torch import Tensor

Target: TypeAlias = Literal["disk", "pixel_disk", "gaussian"]
Decoder: TypeAlias = Literal["centroid", "local_mean", "dark", "soft_argmax", "argmax"]
Loss: TypeAlias = Literal["ce", "spatial_ce", "mse", "adaptive", "wing"]

HALF_MAXIMUM = math.sqrt(2 * math.log(2))
"""Radius, in sigmas, at which a Gaussian is half its maximum."""

LOCAL_MEAN_SIGMAS = 3.0
"""Half the side of `local_mean`'s window, in sigmas of the target."""

DARK_SIGMAS = 3.0
"""Half the side of the kernel by which `dark` smooths, in sigmas of the target."""


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
    holds at least the pixel nearest to a point inside the image, however small sigma is. `pixel_disk` is the
    same around the nearest whole pixel, as in the authors' code. `gaussian` has maximum 1 at the point. A point
    outside the image leaves the part of its shape that reaches into the image.

    Args:
        points_BK2: network pixels; NaN = not annotated.
        image_size: side of the maps in pixels.
        sigma: of the Gaussian, in network pixels.
        shape: disk, pixel_disk or gaussian.

    Returns:
        Maps (B, K, H, W), all zero where not annotated, and the mask (B, K) of annotated landmarks.
    """
    around_BK2 = points_BK2.round() if shape == "pixel_disk" else points_BK2
    annotated_BK, x2_BK1W, y2_BKH1 = _squared_distances(around_BK2, image_size)
    if shape != "gaussian":
        radius = max(sigma * HALF_MAXIMUM, math.sqrt(0.5))
        maps_BKHW = (x2_BK1W + y2_BKH1 <= radius**2 * (1 + 1e-6)).to(points_BK2.dtype)
    else:
        maps_BKHW = torch.exp(x2_BK1W / (-2 * sigma**2)) * torch.exp(y2_BKH1 / (-2 * sigma**2))
    return maps_BKHW * annotated_BK[..., None, None], annotated_BK


def gaussians(points_BK2: Tensor, image_size: int, sigmas_K: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a Gaussian of maximum 1 at each landmark, as `targets` do, of a sigma of its own that gradients reach.

    Args:
        points_BK2: network pixels; NaN = not annotated.
        image_size: side of the maps in pixels.
        sigmas_K: in network pixels.

    Returns:
        Maps (B, K, H, W), all zero where not annotated, and the mask (B, K) of annotated landmarks.
    """
    annotated_BK, x2_BK1W, y2_BKH1 = _squared_distances(points_BK2, image_size)
    share_K11 = (-2 * sigmas_K.square())[:, None, None]
    maps_BKHW = torch.exp(x2_BK1W / share_K11) * torch.exp(y2_BKH1 / share_K11)
    return maps_BKHW * annotated_BK[..., None, None], annotated_BK


def _squared_distances(points_BK2: Tensor, image_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mask (B, K) of annotated landmarks, and squared distances on x (B, K, 1, W) and y (B, K, H, 1)."""
    annotated_BK = points_BK2.isfinite().all(dim=2)
    points_BK2 = points_BK2.nan_to_num(nan=-1e4)  # far outside: nothing is drawn
    axis = torch.arange(image_size, device=points_BK2.device, dtype=points_BK2.dtype)
    x2_BK1W = (axis - points_BK2[..., 0, None]).square().unsqueeze(2)
    y2_BKH1 = (axis - points_BK2[..., 1, None]).square().unsqueeze(3)
    return annotated_BK, x2_BK1W, y2_BKH1


# --- decoding ---------------------------------------------------------------------------------------


def _as_it_is(logits_BKHW: Tensor) -> Tensor:
    return logits_BKHW


def _softmax_over_pixels(logits_BKHW: Tensor) -> Tensor:
    return logits_BKHW.flatten(2).softmax(dim=2).view_as(logits_BKHW)


SCORES: dict[Loss, Callable[[Tensor], Tensor]] = {
    "ce": _as_it_is,
    "spatial_ce": _softmax_over_pixels,
    "mse": _as_it_is,
    "adaptive": _as_it_is,
    "wing": _softmax_over_pixels,
}
"""The scores (B, K, H, W) that decoders read, made of the network's logits, by the loss it was trained with.

- `ce`: the logits, which the authors' code thresholds. The softmax across channels, which the loss is made of, gives
  every pixel of the background to some landmark: with 19 landmarks it decodes about as well (10 cephalograms,
  64 x 64, centroid: 3.7 against 4.1 mm at sigma 1.25 px, 4.6 against 4.6 mm at 3 px), with 3 it loses them
  (overfitted blobs, largest error 2.4 against 0.9 px). Where no logit is positive, `centroid` is (0, 0).
- `spatial_ce`: the probabilities, a softmax over the pixels of each map; the logits decode worse.
- `mse` and `adaptive`: the output, which is compared with the target as it is.
- `wing`: the probabilities, whose mean position over the whole map (`soft_argmax`) is what the loss is about.
"""


CONFIDENCE_SIGMAS = 2.0
"""Radius, in sigmas of the target, around a prediction within which a map's mass counts as confidence."""


def confidence(logits_BKHW: Tensor, points_BK2: Tensor, *, loss: Loss, sigma: float) -> Tensor:
    """Return the share (B, K), 0 to 1, of each map's mass that lies around its decoded point.

    The mass is the softmax over the map's pixels or, of a network trained with `mse` or `adaptive`, the positive part
    of its output. A map with one sharp peak has nearly 1, one with two equal peaks about a half where one of them is
    taken, a flat one next to nothing. It orders the predictions of one network and is not the probability of being
    right.

    Args:
        logits_BKHW: output of the network.
        points_BK2: what was decoded of it, in network pixels.
        loss: with which the network was trained.
        sigma: of the targets, in network pixels.
    """
    mass_BKHW = logits_BKHW.clamp(min=0) if loss in ("mse", "adaptive") else _softmax_over_pixels(logits_BKHW)
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
            a window that reaches `LOCAL_MEAN_SIGMAS` sigmas to each side; `soft_argmax`: the same over the whole map;
            `dark`, see `dark`.
        sigma: of the targets, in network pixels.
    """
    if decoder == "centroid":
        return centroid(scores_BKHW)
    if decoder == "dark":
        return dark(scores_BKHW, sigma)
    width = scores_BKHW.shape[3]
    peak_BK = scores_BKHW.flatten(2).argmax(dim=2)
    x_BK, y_BK = peak_BK % width, peak_BK // width
    peak_BK2 = torch.stack((x_BK, y_BK), dim=2).to(scores_BKHW.dtype)
    if decoder == "argmax":
        return peak_BK2
    weights_BKHW = scores_BKHW.clamp(min=0)
    if decoder == "local_mean":
        reach = max(1, math.ceil(LOCAL_MEAN_SIGMAS * sigma))
        columns = torch.arange(width, device=scores_BKHW.device)
        rows = torch.arange(scores_BKHW.shape[2], device=scores_BKHW.device)
        near_BKHW = ((columns - x_BK[..., None]).abs() <= reach).unsqueeze(2) & (
            (rows - y_BK[..., None]).abs() <= reach
        ).unsqueeze(3)
        weights_BKHW = weights_BKHW * near_BKHW
    is_found_BK1 = (weights_BKHW.sum(dim=(2, 3)) > 0).unsqueeze(2)  # where no score is positive, the peak itself
    return torch.where(is_found_BK1, mean_position(weights_BKHW), peak_BK2)


def mean_position(weights_BKHW: Tensor) -> Tensor:
    """Return the mean position (B, K, 2) of each map's pixels, weighted by its values, none of which is negative."""
    columns = torch.arange(weights_BKHW.shape[3], device=weights_BKHW.device)
    rows = torch.arange(weights_BKHW.shape[2], device=weights_BKHW.device)
    total_BK = weights_BKHW.sum(dim=(2, 3))
    sums_BK2 = torch.stack(
        ((weights_BKHW.sum(dim=2) * columns).sum(dim=2), (weights_BKHW.sum(dim=3) * rows).sum(dim=2)), dim=2
    )
    return sums_BK2 / total_BK.clamp(min=torch.finfo(total_BK.dtype).tiny)[..., None]


def dark(scores_BKHW: Tensor, sigma: float) -> Tensor:
    """Return the maximum of the parabola through the logarithm around each map's peak (Zhang et al. 2020, DARK).

    Maps are smoothed by a Gaussian of the target's sigma, and derivatives of the logarithm are taken at the largest
    pixel by differences between neighbours, so that a Gaussian is found exactly, but for what smoothing loses beyond
    the border. Where the logarithm has no maximum there, the pixel itself is the point, which is never left by more
    than a pixel on either axis. Deviation: the authors' second derivatives span two pixels.

    Args:
        scores_BKHW: maps; what is not positive counts as next to nothing.
        sigma: of the targets, in network pixels.

    Returns:
        (B, K, 2) in network pixels, computed on the maps' device without waiting for it.
    """
    height, width = scores_BKHW.shape[2:]
    reach = max(1, math.ceil(DARK_SIGMAS * sigma))
    offsets = torch.arange(-reach, reach + 1, device=scores_BKHW.device, dtype=scores_BKHW.dtype)
    kernel = torch.exp(offsets.square() / (-2 * sigma**2))
    kernel = kernel / kernel.sum()
    maps_N1HW = scores_BKHW.flatten(0, 1).unsqueeze(1)
    maps_N1HW = F.conv2d(maps_N1HW, kernel.view(1, 1, 1, -1), padding=(0, reach))
    smooth_BKP = F.conv2d(maps_N1HW, kernel.view(1, 1, -1, 1), padding=(reach, 0)).view(*scores_BKHW.shape[:2], -1)
    highest_BK, peak_BK = smooth_BKP.max(dim=2)
    x_BK = (peak_BK % width).clamp(1, width - 2)  # so that all its neighbours are in the map
    y_BK = (peak_BK // width).clamp(1, height - 2)
    least_BK = highest_BK.clamp(min=torch.finfo(highest_BK.dtype).tiny) * _LEAST_SHARE

    def log_at(dx: int, dy: int) -> Tensor:
        index_BK1 = ((y_BK + dy) * width + x_BK + dx).unsqueeze(2)
        return torch.maximum(smooth_BKP.gather(2, index_BK1).squeeze(2), least_BK).log()

    middle, left, right, up, down = log_at(0, 0), log_at(-1, 0), log_at(1, 0), log_at(0, -1), log_at(0, 1)
    dx, dy = (right - left) / 2, (down - up) / 2
    dxx, dyy = right - 2 * middle + left, down - 2 * middle + up
    dxy = (log_at(1, 1) - log_at(1, -1) - log_at(-1, 1) + log_at(-1, -1)) / 4
    determinant = dxx * dyy - dxy.square()
    is_maximum_BK1 = ((determinant > 0) & (dxx < 0)).unsqueeze(2)
    step_BK2 = torch.stack((dxy * dy - dyy * dx, dxy * dx - dxx * dy), dim=2) / determinant.unsqueeze(2)
    peak_BK2 = torch.stack((x_BK, y_BK), dim=2).to(scores_BKHW.dtype)
    return peak_BK2 + torch.where(is_maximum_BK1, step_BK2, 0).clamp(-1, 1)


_LEAST_SHARE = 1e-6  # of a map's maximum, which takes the place of smaller values under the logarithm


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
