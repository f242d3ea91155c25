"""Generated radiographs, which need no download.

They are frontal knee radiographs, drawn from a model: femur, tibia, fibula and patella with cortex and trabeculae in
a soft-tissue envelope, attenuation summed along the ray, film curve, scatter, noise, collimation and a side
marker. Pose (rotation, shift, size, knee angle, patella), shape, exposure and noise vary, so that landmarks
can only be found by looking. Image `index` is a function of `index` alone.

Shape suffixes: N images, H, W height and width, K landmarks, P outline points, 2 = (x, y). Lengths of the
model are millimetres, origin at the knee joint, x to the fibula's side, y towards the foot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from ablate.datasets.types import ByteArray, Float32Array, FloatArray, Record, SplitName

GENERATOR_VERSION = 1
"""Raised when any picture or landmark changes, so that fingerprints tell."""

WIDTH, HEIGHT = 192, 240
MM_PER_PIXEL = 0.9
SDR_THRESHOLDS_MM = (2.0, 4.0, 6.0, 10.0)
COUNTS: dict[SplitName, int] = {"train": 130, "val": 20, "test": 100}

LANDMARKS = (
    "medial epicondyle of the femur",
    "lateral epicondyle of the femur",
    "lowest point of the medial condyle",
    "lowest point of the lateral condyle",
    "intercondylar notch",
    "medial edge of the tibial plateau",
    "lateral edge of the tibial plateau",
    "medial tibial spine",
    "lateral tibial spine",
    "tip of the fibula's head",
    "upper pole of the patella",
    "lower pole of the patella",
)

_OVERSAMPLING = 2
_MARGIN_PX = 6.0  # landmarks stay this far inside image and collimation

# Outlines in mm, read off a textbook knee; the landmarks stand among their points.
_FEMUR = (
    (-15, -340), (-15, -90), (-17, -66), (-25, -46), (-40, -27), (-40, -14), (-33, -4), (-21, 0), (-11, -4), (-5, -13),
    (0, -18), (5, -13), (11, -4), (21, -1), (32, -5), (38, -15), (39, -27), (26, -46), (18, -66), (15, -90), (15, -340),
)  # fmt: skip
_TIBIA = (
    (-13, 340), (-12, 110), (-14, 80), (-20, 52), (-30, 32), (-38, 20), (-39, 9), (-22, 8), (-11, 7), (-5, 0), (0, 5),
    (5, 1), (11, 7), (22, 8), (37, 9), (36, 20), (27, 34), (17, 54), (12, 80), (11, 110), (11, 340),
)  # fmt: skip
_FIBULA = (
    (32, 340), (31, 90), (31, 52), (29, 38), (32, 24), (39, 18), (43, 27), (41, 40), (38, 54), (38, 90), (39, 340),
)  # fmt: skip
_PATELLA = ((0, -52), (15, -47), (20, -33), (13, -18), (0, -10), (-13, -18), (-20, -33), (-15, -47))
_ENVELOPE = (
    (-68, -340), (-64, -100), (-57, -45), (-54, 0), (-51, 30), (-54, 80), (-50, 340),
    (52, 340), (56, 80), (54, 30), (55, 0), (58, -45), (66, -100), (70, -340),
)  # fmt: skip

_LETTERS = (  # strokes in pixels: R and L; a font would tie the picture to OpenCV's version
    (((-4, 7), (-4, -7), (2, -7), (5, -4), (2, 0), (-4, 0)), ((0, 0), (5, 7))),
    (((-4, -7), (-4, 7), (5, 7)),),
)

_FEMUR_LANDMARKS = (4, 16, 7, 13, 10)  # indices into _FEMUR in the order of LANDMARKS
_TIBIA_LANDMARKS = (6, 14, 9, 11)
_FIBULA_TIP = 5
_PATELLA_POLES = (0, 4)


@dataclass(frozen=True)
class Radiograph:
    """One generated picture with its landmarks."""

    image_HW: ByteArray
    points_K2: FloatArray  # pixels of the picture


@dataclass(frozen=True)
class _Outlines:
    """The parts of one knee in pixels of the picture."""

    envelope_P2: FloatArray
    bones: tuple[tuple[FloatArray, float, float], ...]  # outline, attenuation when thick, share of the cortex
    points_K2: FloatArray


def file_name(index: int) -> str:
    """Name of radiograph `index`, sorted like the index."""
    return f"synthetic_{index:04d}.png"


@dataclass(frozen=True)
class SyntheticRecord(Record):
    """A radiograph that is drawn when its pixels are asked for."""

    index: int

    def grey(self) -> Float32Array:
        """Draw the picture."""
        return render(self.index).image_HW.astype(np.float32)

    def digest(self) -> str:
        """Name the picture by generator version and index: its last bits may differ between processors."""
        return f"synthetic-{GENERATOR_VERSION}-{self.index}"


def synthetic_records() -> tuple[SyntheticRecord, ...]:
    """Return all radiographs, 130 for training, 20 for validation, 100 for testing; nothing is drawn yet."""
    splits = [name for name, count in COUNTS.items() for _ in range(count)]
    records = []
    for index, split in enumerate(splits):
        outlines, _ = _pose(_generator(index))
        scale = (MM_PER_PIXEL, MM_PER_PIXEL)
        records.append(SyntheticRecord(file_name(index), (WIDTH, HEIGHT), outlines.points_K2, scale, split, index))
    return tuple(records)


def _generator(index: int) -> np.random.Generator:
    return np.random.default_rng((GENERATOR_VERSION, index))


def render(index: int) -> Radiograph:
    """Draw radiograph `index`, 192 x 240 pixels (width x height) at 0.9 mm per pixel."""
    generator = _generator(index)
    outlines, aperture_42 = _pose(generator)
    attenuation_HW = np.zeros((HEIGHT * _OVERSAMPLING, WIDTH * _OVERSAMPLING), np.float32)
    _add_body(attenuation_HW, outlines.envelope_P2, 1.0, cortex=0.0, largest_px=70.0)
    texture_HW = _smooth_noise(generator, 1.3) + 0.6 * _smooth_noise(generator, 4.0)
    for outline_P2, strength, cortex in outlines.bones:
        _add_body(attenuation_HW, outline_P2, strength, cortex=cortex, largest_px=16.0, texture_HW=texture_HW)
    attenuation_HW *= 1 + 0.03 * _smooth_noise(generator, 14.0)  # fat and muscle
    image_HW = _expose(attenuation_HW, aperture_42, generator)
    return Radiograph(image_HW, outlines.points_K2)


def _pose(generator: np.random.Generator) -> tuple[_Outlines, FloatArray]:
    """Sample a knee and a collimator window until every landmark lies inside both."""
    while True:
        outlines = _knee(generator)
        aperture_42 = _aperture(generator)
        points_K2 = outlines.points_K2
        inside = (points_K2 >= _MARGIN_PX) & (points_K2 <= np.array([WIDTH, HEIGHT]) - 1 - _MARGIN_PX)
        contour = aperture_42.astype(np.float32).reshape(-1, 1, 2)
        distances = [cv2.pointPolygonTest(contour, (float(x), float(y)), True) for x, y in points_K2]
        if inside.all() and min(distances) >= _MARGIN_PX:
            return outlines, aperture_42


def _knee(generator: np.random.Generator) -> _Outlines:
    angle = math.radians(generator.uniform(-24, 24))
    bend = math.radians(generator.uniform(-11, 11))
    pixels_per_mm = generator.uniform(0.68, 1.02) / MM_PER_PIXEL
    origin_2 = np.array([WIDTH / 2, HEIGHT / 2]) + generator.uniform(-0.26, 0.26, 2) * np.array([WIDTH, HEIGHT])
    width = generator.uniform(0.92, 1.08)
    gap_mm = generator.uniform(-1.5, 2.5)

    def place(outline_P2: FloatArray) -> FloatArray:
        """Model millimetres to pixels: the knee's pose on the film."""
        return np.asarray(_turn(outline_P2, angle) * pixels_per_mm + origin_2, dtype=np.float64)

    def shape(points: tuple[tuple[float, float], ...], jitter_mm: float) -> FloatArray:
        outline_P2 = np.array(points, dtype=np.float64) * (width, 1.0)
        return np.asarray(outline_P2 + generator.normal(0, jitter_mm, outline_P2.shape), dtype=np.float64)

    femur_P2 = shape(_FEMUR, 0.8)
    tibia_P2 = shape(_TIBIA, 0.8) + np.array([generator.uniform(-3, 3), gap_mm])
    fibula_P2 = shape(_FIBULA, 0.6) + np.array([generator.uniform(-4, 3), gap_mm + generator.uniform(-6, 6)])
    tibia_P2, fibula_P2 = _turn(tibia_P2, bend), _turn(fibula_P2, bend)
    patella_P2 = shape(_PATELLA, 0.8) * generator.uniform(0.85, 1.1)
    patella_P2 += (generator.uniform(-9, 9), generator.uniform(-14, 6))
    envelope_P2 = shape(_ENVELOPE, 1.5) * (generator.uniform(0.95, 1.25), 1.0)
    below = envelope_P2[:, 1] > 0
    envelope_P2[below] = _turn(envelope_P2[below], bend)
    points_K2 = np.concatenate(
        [
            femur_P2[list(_FEMUR_LANDMARKS)],
            tibia_P2[list(_TIBIA_LANDMARKS)],
            fibula_P2[[_FIBULA_TIP]],
            patella_P2[list(_PATELLA_POLES)],
        ]
    )
    dense = generator.uniform(0.75, 1.2)  # bone density
    bones = (
        (place(femur_P2), 0.95 * dense, 0.5),
        (place(tibia_P2), 0.9 * dense, 0.5),
        (place(fibula_P2), 0.5 * dense, 0.6),
        (place(patella_P2), 0.5 * dense, 0.45),
    )
    return _Outlines(place(envelope_P2), bones, place(points_K2))


def _turn(points_P2: FloatArray, angle: float) -> FloatArray:
    """Rotate points about the origin, by `angle` radians from x towards y."""
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return np.asarray(points_P2 @ rotation.T, dtype=np.float64)


def _aperture(generator: np.random.Generator) -> FloatArray:
    """Corners (4, 2) of the collimator window in pixels; most are a little smaller than the film, some larger."""
    inset = generator.uniform(-0.05, 0.13, 4) * np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
    left, top, right, bottom = inset[0], inset[1], WIDTH - 1 - inset[2], HEIGHT - 1 - inset[3]
    corners_42 = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    centre_2 = corners_42.mean(axis=0)
    turned_42 = _turn(corners_42 - centre_2, math.radians(generator.uniform(-4, 4)))
    return np.asarray(turned_42 + centre_2, dtype=np.float64)


def _fill(outline_P2: FloatArray) -> ByteArray:
    """Draw a filled outline, in pixels of the picture, into an oversampled mask of 0 and 255."""
    mask_HW = np.zeros((HEIGHT * _OVERSAMPLING, WIDTH * _OVERSAMPLING), np.uint8)
    corners_P2 = (outline_P2 + 0.5) * _OVERSAMPLING - 0.5
    # four fractional bits; a corner's pixel centre is an integer, as for landmarks
    cv2.fillPoly(mask_HW, [np.rint(corners_P2 * 16).astype(np.int32)], (255,), lineType=cv2.LINE_8, shift=4)
    return mask_HW


def _add_body(
    attenuation_HW: Float32Array,
    outline_P2: FloatArray,
    strength: float,
    *,
    cortex: float,
    largest_px: float,
    texture_HW: Float32Array | None = None,
) -> None:
    """Add a rounded body in place: grows from the outline inwards like a circle's chord, with a dense rim."""
    curve_P2 = _smooth(outline_P2)
    mask_HW = _fill(curve_P2)
    low = np.clip(np.floor(curve_P2.min(axis=0) * _OVERSAMPLING).astype(int) - 3, 0, None)
    high = np.ceil(curve_P2.max(axis=0) * _OVERSAMPLING).astype(int) + 4
    window = np.s_[low[1] : high[1], low[0] : high[0]]  # the slices end at the picture's edge
    # a body goes on beyond the picture, whose edge is no rim: replicate it before measuring depth
    border = 24
    wide_HW = cv2.copyMakeBorder(mask_HW[window], border, border, border, border, cv2.BORDER_REPLICATE)
    depth_HW = cv2.distanceTransform(wide_HW, cv2.DIST_L2, 5)[border:-border, border:-border] / _OVERSAMPLING
    body_HW = np.sqrt(1 - (1 - np.minimum(depth_HW / largest_px, 1)) ** 2)
    if cortex:
        inside_HW = (depth_HW > 0).astype(np.float32)
        rim_HW = np.exp(-(((depth_HW - 1.6) / 1.3) ** 2)) * inside_HW
        body_HW = (1 - cortex) * body_HW + cortex * rim_HW + 0.25 * cortex * inside_HW
    if texture_HW is not None:
        body_HW = body_HW * (1 + 0.05 * texture_HW[window])
    attenuation_HW[window] += np.float32(strength) * body_HW


def _smooth(outline_P2: FloatArray) -> FloatArray:
    """Closed cubic Hermite curve through the points, 8 steps from each to the next."""
    before, after = np.roll(outline_P2, 1, axis=0), np.roll(outline_P2, -1, axis=0)
    beyond = np.roll(outline_P2, -2, axis=0)
    t = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
    a, b, c, d = (points_P2[:, None, :] for points_P2 in (before, outline_P2, after, beyond))
    # tangents in proportion to the side, so that a long side next to a short one does not overshoot
    scale = np.linalg.norm(c - b, axis=-1, keepdims=True)
    tangent_b = (c - a) * scale / (np.linalg.norm(b - a, axis=-1, keepdims=True) + scale + 1e-9)
    tangent_c = (d - b) * scale / (np.linalg.norm(d - c, axis=-1, keepdims=True) + scale + 1e-9)
    curve = (
        (2 * t**3 - 3 * t**2 + 1) * b
        + (t**3 - 2 * t**2 + t) * tangent_b
        + (3 * t**2 - 2 * t**3) * c
        + (t**3 - t**2) * tangent_c
    )
    return np.asarray(curve.reshape(-1, 2), dtype=np.float64)


def _smooth_noise(generator: np.random.Generator, sigma_px: float) -> Float32Array:
    """Blurred white noise of standard deviation 1 on the oversampled grid."""
    shape = (HEIGHT * _OVERSAMPLING, WIDTH * _OVERSAMPLING)
    step = max(2, int(sigma_px))  # coarse noise is drawn coarse
    coarse = generator.standard_normal((shape[0] // step + 1, shape[1] // step + 1)).astype(np.float32)
    blurred = cv2.GaussianBlur(coarse, (0, 0), sigma_px * _OVERSAMPLING / step)
    noise_HW = cv2.resize(blurred, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(noise_HW / noise_HW.std(), dtype=np.float32)


def _expose(attenuation_HW: Float32Array, aperture_42: FloatArray, generator: np.random.Generator) -> ByteArray:
    """Turn oversampled attenuation into the grey picture: beam, scatter, film curve, noise, window, marker."""
    transmitted_HW = np.exp(-1.15 * attenuation_HW)
    height, width = transmitted_HW.shape
    coarse_HW = cv2.resize(transmitted_HW, (width // 8, height // 8), interpolation=cv2.INTER_AREA)
    scatter_HW = cv2.resize(cv2.GaussianBlur(coarse_HW, (0, 0), 2.5), (width, height), interpolation=cv2.INTER_LINEAR)
    share = generator.uniform(0.05, 0.25)
    beam_HW = (1 - share) * transmitted_HW + share * scatter_HW
    beam_HW = cv2.resize(beam_HW, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    light_HW = cv2.GaussianBlur(beam_HW, (0, 0), 0.5).astype(np.float64)
    direction = generator.uniform(-0.2, 0.2, 2)  # heel effect
    y_H, x_W = np.linspace(-1, 1, HEIGHT), np.linspace(-1, 1, WIDTH)
    light_HW *= 1 + direction[0] * y_H[:, None] + direction[1] * x_W[None, :]
    photons = generator.uniform(150, 1500)
    grain_HW = cv2.GaussianBlur(generator.standard_normal(light_HW.shape), (0, 0), 0.6) * 1.6
    light_HW = np.maximum(light_HW + np.sqrt(np.maximum(light_HW, 0.02) / photons) * grain_HW, 0.02)
    film_HW: FloatArray = 1 - light_HW ** generator.uniform(0.6, 1.3)  # more light, blacker film
    film_HW = np.asarray(0.04 + np.clip(film_HW, 0, 1) * generator.uniform(0.7, 0.95), dtype=np.float64)
    if generator.random() < 0.6:
        _mark(film_HW, aperture_42, generator)
    window_HW = cv2.resize(_fill(aperture_42), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float64)
    window_HW = cv2.GaussianBlur(window_HW, (0, 0), 1.2) / 255
    seen_HW = film_HW * window_HW + (1 - window_HW) * generator.uniform(0.0, 0.05)
    return np.asarray(np.rint(255 * np.clip(seen_HW, 0, 1)), dtype=np.uint8)


def _mark(film_HW: FloatArray, aperture_42: FloatArray, generator: np.random.Generator) -> None:
    """Put a lead letter into a corner of the window."""
    corner_2 = aperture_42[generator.integers(4)]
    centre_2 = corner_2 + (aperture_42.mean(axis=0) - corner_2) * 0.2
    letter_HW = np.zeros(film_HW.shape, np.uint8)
    for stroke in _LETTERS[generator.integers(2)]:
        stroke_P2 = np.array(stroke, dtype=np.float64) + centre_2
        cv2.polylines(letter_HW, [np.rint(stroke_P2 * 16).astype(np.int32)], False, (255,), 2, cv2.LINE_AA, shift=4)
    np.maximum(film_HW, letter_HW * (0.95 / 255), out=film_HW)
