"""Random augmentation of images, and of their landmarks where there are any: an affine map, then a change of greys.

Shapes: B images, K landmarks, H = W the side of the square image, 2 = (x, y) in network pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ablate.space import AugmentSpec


@dataclass(frozen=True)
class Affine:
    """One affine map per image: a point goes to `matrix @ (point - centre) + centre + shift`, in network pixels."""

    matrix_B22: Tensor
    shift_B2: Tensor
    applied_B: Tensor  # bool; False: this image stays exactly as it is


def draw(spec: AugmentSpec, num_images: int, image_size: int, generator: torch.Generator) -> Affine:
    """Draw one affine map per image on the generator's device.

    Each image is augmented with `spec.probability`; then shift on x and on y, relative change of scale and
    angle are each uniform between minus and plus their largest value (paper, fine-tuning), and so are shears on x and
    on y, by which an image is changed before the rest, where `spec.shear` asks for them: they are drawn last and only
    then. Draw once for all images of an optimizer step, so that its maps do not depend on how it is split into forward
    passes.
    """
    uniform_5B = torch.rand(5, num_images, generator=generator, device=generator.device, dtype=torch.float64)
    signed_4B = 2 * uniform_5B[1:] - 1
    shift_B2 = signed_4B[:2].T * spec.shift * image_size
    scale_B = 1 + signed_4B[2] * spec.scale
    angle_B = signed_4B[3] * math.radians(spec.rotate)
    cos_B, sin_B = scale_B * angle_B.cos(), scale_B * angle_B.sin()
    matrix_B22 = torch.stack((torch.stack((cos_B, -sin_B), dim=1), torch.stack((sin_B, cos_B), dim=1)), dim=1)
    if spec.shear:
        uniform_2B = torch.rand(2, num_images, generator=generator, device=generator.device, dtype=torch.float64)
        x_B, y_B = (2 * uniform_2B - 1) * spec.shear
        one_B = torch.ones_like(x_B)
        shear_B22 = torch.stack((torch.stack((one_B, x_B), dim=1), torch.stack((y_B, one_B), dim=1)), dim=1)
        matrix_B22 = matrix_B22 @ shear_B22
    return Affine(matrix_B22, shift_B2, uniform_5B[0] < spec.probability)


def apply(affine: Affine, images_B1HW: Tensor, points_BK2: Tensor) -> tuple[Tensor, Tensor]:
    """Map images and points alike; pixels from beyond the border repeat the nearest border pixel.

    Args:
        affine: one map per image; moved to the images' device.
        images_B1HW: float, sampled bilinearly.
        points_BK2: network pixels; NaN stays NaN, and a point that leaves the image keeps its coordinates.

    Returns:
        Images (B, 1, H, W) and points (B, K, 2); those of an image that is not augmented are equal bit for bit.
    """
    side = images_B1HW.shape[3]
    centre = (side - 1) / 2
    matrix_B22, shift_B2 = affine.matrix_B22.to(points_BK2), affine.shift_B2.to(points_BK2)
    moved_BK2 = (points_BK2 - centre) @ matrix_B22.transpose(1, 2) + (centre + shift_B2[:, None])
    inverse_B22 = torch.linalg.inv_ex(affine.matrix_B22).inverse  # `inv` waits for a GPU to tell whether there is one
    # grid_sample asks where each output pixel comes from, in units of half the image's side from its centre
    offset_B21 = -(inverse_B22 @ affine.shift_B2[:, :, None]) * 2 / side
    theta_B23 = torch.cat((inverse_B22, offset_B21), dim=2).to(images_B1HW)
    grid_BHW2 = torch.nn.functional.affine_grid(theta_B23, list(images_B1HW.shape), align_corners=False)
    warped_B1HW = torch.nn.functional.grid_sample(
        images_B1HW, grid_BHW2, mode="bilinear", padding_mode="border", align_corners=False
    )
    applied_B = affine.applied_B.to(images_B1HW.device)
    return (
        torch.where(applied_B[:, None, None, None], warped_B1HW, images_B1HW),
        torch.where(applied_B.to(points_BK2.device)[:, None, None], moved_BK2, points_BK2),
    )


def stretched(spec: AugmentSpec, images_B1HW: Tensor) -> Tensor:
    """Return images whose grey values span [0, 1], where `spec.normalize` says after; else as they are.

    Where all values are equal they become 0.
    """
    if spec.normalize == "before":
        return images_B1HW
    low_B111, high_B111 = images_B1HW.amin((1, 2, 3), keepdim=True), images_B1HW.amax((1, 2, 3), keepdim=True)
    return (images_B1HW - low_B111) / (high_B111 - low_B111).clamp(min=torch.finfo(images_B1HW.dtype).tiny)


def change_greys(spec: AugmentSpec, images_B1HW: Tensor, applied_B: Tensor, generator: torch.Generator) -> Tensor:
    """Raise grey values to a power and add noise, both drawn for each image; grey values stay in [0, 1].

    The power is log-uniform between 1 / (1 + `spec.gamma`) and 1 + `spec.gamma`, the standard deviation of the noise
    uniform up to `spec.noise`. Where both are 0, images are returned as they are and nothing is drawn.

    Args:
        spec: the augmentation.
        images_B1HW: float, of one optimizer step, in [0, 1] but for rounding.
        applied_B: bool; False: this image stays exactly as it is.
        generator: on the images' device.
    """
    if not spec.gamma and not spec.noise:
        return images_B1HW
    uniform_2B = torch.rand(2, len(images_B1HW), generator=generator, device=generator.device)
    noise_B1HW = torch.randn(images_B1HW.shape, generator=generator, device=generator.device)
    power_B, deviation_B = (1 + spec.gamma) ** (2 * uniform_2B[0] - 1), spec.noise * uniform_2B[1]
    changed_B1HW = images_B1HW.clamp(0, 1) ** power_B[:, None, None, None]
    changed_B1HW = (changed_B1HW + deviation_B[:, None, None, None] * noise_B1HW).clamp(0, 1)
    return torch.where(applied_B.to(images_B1HW.device)[:, None, None, None], changed_B1HW, images_B1HW)
