"""Random views of grey X-ray images, for self-supervision to compare.

Every random number of a view belongs to one image, or to one group of images, so an optimizer step's views do not
depend on how the step is split into forward passes. Shapes: B images, H and W of the image, S side of the view, D
random numbers, G side of the sampling grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class View:
    """How views are drawn: SimCLR's augmentations (Chen et al. 2020, appendix A) without colour.

    Deviations: saturation and hue do not exist in grey images, a random gamma stands for the colour jitter's third
    part; the jitter's order is fixed.
    """

    size: int  # S, pixels
    min_area: float  # smallest share of the image's area that a view shows
    max_area: float = 1.0
    max_log_aspect: float = math.log(4 / 3)
    flip_probability: float = 0.5
    jitter_probability: float = 0.8
    brightness: float = 0.4  # largest relative change
    contrast: float = 0.4  # largest relative change
    log_gamma: float = 0.4  # largest change of the exponent's logarithm
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels at a size of 224, as in SimCLR
    solarize_probability: float = 0.0


NUM_DRAWS = 11
"""Random numbers that one view of one image consumes; solarising takes another."""

SOLARIZED_FROM = 0.5
"""Grey value from which on solarising inverts (Grill et al. 2020, appendix B)."""


def random_view(images_B1HW: Tensor, view: View, generator: torch.Generator, *, drawn_for: int = 1) -> Tensor:
    """Draw and render one view (B, 1, S, S) of each image; `drawn_for` images that follow one another get one draw."""
    num_images, device = images_B1HW.shape[0], images_B1HW.device
    num_drawn = math.ceil(num_images / drawn_for)
    draws = torch.rand((num_drawn, NUM_DRAWS), generator=generator, device=device)
    if view.solarize_probability:  # apart, so that the other draws are those of views that are not solarised
        draws = torch.cat((draws, torch.rand((num_drawn, 1), generator=generator, device=device)), 1)
    return render_views(images_B1HW, draws.repeat_interleave(drawn_for, 0)[:num_images], view)


@torch.no_grad()
def render_views(images_B1HW: Tensor, draws_BD: Tensor, view: View) -> Tensor:
    """Render one view of each image: crop, flip, brightness, contrast, gamma, blur, solarising.

    Args:
        images_B1HW: in [0, 1].
        draws_BD: one row of NUM_DRAWS random numbers in [0, 1) per image, and one more where views are solarised.
        view: sizes and strengths.

    Returns:
        (B, 1, S, S) in [0, 1].
    """
    area, aspect, left, top, flip, jitter, brightness, contrast, gamma, blur, sigma, *solarize = draws_BD.unbind(1)
    views = _crop(images_B1HW, area, aspect, left, top, flip < view.flip_probability, view)
    jittered = _jitter(views, brightness, contrast, gamma, view)
    views = torch.where((jitter < view.jitter_probability)[:, None, None, None], jittered, views)
    low, high = (value * view.size / 224 for value in view.blur_sigma)
    blurred = _blur(views, low + sigma * (high - low), radius=max(1, round(0.05 * view.size)))
    views = torch.where((blur < view.blur_probability)[:, None, None, None], blurred, views)
    for draw_B in solarize:
        inverted = torch.where(views < SOLARIZED_FROM, views, 1 - views)
        views = torch.where((draw_B < view.solarize_probability)[:, None, None, None], inverted, views)
    return views


def _crop(
    images_B1HW: Tensor, area_B: Tensor, aspect_B: Tensor, left_B: Tensor, top_B: Tensor, flip_B: Tensor, view: View
) -> Tensor:
    """Cut a random rectangle and resize it to S x S; a rectangle wider or higher than the image is cut down to it."""
    share = view.min_area + area_B * (view.max_area - view.min_area)
    ratio = torch.exp((2 * aspect_B - 1) * view.max_log_aspect)
    width, height = (share * ratio).sqrt().clamp(max=1), (share / ratio).sqrt().clamp(max=1)
    # In grid_sample's coordinates the image reaches from -1 to 1: the rectangle's centre and half its extent.
    x, y = (1 - width) * (2 * left_B - 1), (1 - height) * (2 * top_B - 1)
    zero = torch.zeros_like(x)
    row_x = torch.stack((torch.where(flip_B, -width, width), zero, x), 1)
    row_y = torch.stack((zero, height, y), 1)
    # A small view of a large part of the image is sampled twice as densely and averaged, or it would alias.
    dense = 2 if view.size < images_B1HW.shape[-1] else 1
    side = view.size * dense
    grid_BGG2 = F.affine_grid(
        torch.stack((row_x, row_y), 1), [images_B1HW.shape[0], 1, side, side], align_corners=False
    )
    views = F.grid_sample(images_B1HW, grid_BGG2, mode="bilinear", padding_mode="border", align_corners=False)
    return F.avg_pool2d(views, dense) if dense > 1 else views


def _jitter(views_B1SS: Tensor, brightness_B: Tensor, contrast_B: Tensor, gamma_B: Tensor, view: View) -> Tensor:
    """Change brightness, contrast about the view's mean, and gamma, each clamped to [0, 1]."""

    def factor(draw_B: Tensor, strength: float) -> Tensor:
        return (1 + (2 * draw_B - 1) * strength)[:, None, None, None]

    views = (views_B1SS * factor(brightness_B, view.brightness)).clamp(0, 1)
    mean = views.mean((1, 2, 3), keepdim=True)
    views = (mean + (views - mean) * factor(contrast_B, view.contrast)).clamp(0, 1)
    return views ** torch.exp((2 * gamma_B - 1) * view.log_gamma)[:, None, None, None]


def _blur(views_B1SS: Tensor, sigma_B: Tensor, radius: int) -> Tensor:
    """Blur each view with its own Gaussian of `sigma_B` pixels, border replicated."""
    offsets = torch.arange(-radius, radius + 1, device=sigma_B.device, dtype=sigma_B.dtype)
    kernels = torch.exp(-0.5 * (offsets / sigma_B[:, None]) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True))[:, None]
    num_views = views_B1SS.shape[0]
    views = F.pad(views_B1SS, (radius, radius, radius, radius), mode="replicate").transpose(0, 1)
    views = F.conv2d(views, kernels[:, :, :, None], groups=num_views)
    return F.conv2d(views, kernels[:, :, None, :], groups=num_views).transpose(0, 1)
