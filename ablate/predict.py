"""Landmarks in new images, predicted by the network of a finished trial.

Shapes: N images, K landmarks, 2 = (x, y) in pixels of the image files.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load as load_tensors

from ablate import tables
from ablate.datasets.images import IMAGE_SUFFIXES, is_image, normalise, prepare, read_grey
from ablate.errors import InputError, nearest
from ablate.network.building import build_network
from ablate.network.evaluation import predict
from ablate.space import TrialSpec
from ablate.store import Store
from ablate.store.layout import MODEL, SPEC, trial_folder
from ablate.store.local_write import write_local


def predict_folder(run: Store, trial_id: str, images: Path, out: Path, *, overlays: bool) -> list[str]:
    """Predict the landmarks of an image, or of every image in a folder, and write them to `out`.

    `out` receives `predictions.csv` (image,x0,y0,x1,y1,... in pixels of the files, the layout of a data set's
    `landmarks.csv`) and, with `overlays`, a PNG of each image with its numbered landmarks.

    Args:
        run: the store of the trial's run.
        trial_id: 12 hex digits, as in the run's table of trials.
        images: an image file or a folder of them.
        out: folder; made where it is missing.
        overlays: whether to draw the landmarks into the images.

    Returns:
        Lines of text that say what was written.

    Raises:
        InputError: the trial is unknown, not finished or was run without --keep-weights; an image is unreadable; `out`
            cannot be written.
    """
    spec, tensors = _load_trial(run, trial_id)
    paths = sorted(path for path in images.iterdir() if is_image(path)) if images.is_dir() else [images]
    if not paths or not all(is_image(path) for path in paths):
        raise InputError(f"{images}: must be an image or a folder of images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    greys = [read_grey(path) for path in paths]
    sizes_N2 = np.array([(grey.shape[1], grey.shape[0]) for grey in greys])
    images_NHW = np.stack([prepare(grey, spec.image_size) for grey in greys])
    output = next(tensor for name, tensor in tensors.items() if _is_output_bias(name))
    network = build_network(spec.network, num_outputs=len(output), image_size=spec.image_size, seed=spec.seed)
    network.load_state_dict(tensors)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    points_NK2 = predict(network.to(device), images_NHW, sizes_N2, spec, device=device)
    _write_csv(out / "predictions.csv", [path.name for path in paths], points_NK2)
    lines = [f"{out / 'predictions.csv'}: {points_NK2.shape[1]} landmarks in {len(paths)} images"]
    if overlays:
        for path, grey, points_K2 in zip(paths, greys, points_NK2, strict=True):
            draw_overlay(normalise(grey), points_K2).save(out / f"{path.name}.png")
        lines.append(f"{out}: {len(paths)} overlays, one PNG for each image")
    return lines


def _is_output_bias(name: str) -> bool:
    return name in ("net.conv_out.bias", "net.segmentation_head.0.bias")


def _load_trial(run: Store, trial_id: str) -> tuple[TrialSpec, dict[str, torch.Tensor]]:
    status = tables.trial_status(run)
    if status.get(trial_id) != "finished":
        finished = [name for name, state in status.items() if state == "finished"]
        raise InputError(
            f"TRIAL_ID must be a finished trial of {run.label}, which has {len(finished)}; got '{trial_id}'"
            f"{nearest(trial_id, finished)}; `ablate status` and `ablate plan --trials` list them"
        )
    try:
        files = run.load(trial_folder(trial_id))
    except FileNotFoundError as error:
        raise InputError(
            f"trial {trial_id} of {run.label} has no weights: run it with --keep-weights (in a new --out, or after "
            "deleting its row), then predict"
        ) from error
    return TrialSpec.model_validate_json(files[SPEC]), load_tensors(files[MODEL])


def _write_csv(path: Path, names: list[str], points_NK2: np.ndarray) -> None:
    header = ["image", *(f"{axis}{k}" for k in range(points_NK2.shape[1]) for axis in "xy")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(
        [name, *(f"{v:.2f}" for v in points.ravel())] for name, points in zip(names, points_NK2, strict=True)
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_local(path, text.getvalue().encode())
    except OSError as error:
        raise InputError(
            f"--out must be a folder that can be written; got '{path.parent}' ({error.strerror})"
        ) from error


def draw_overlay(image_HW: np.ndarray, points_K2: np.ndarray) -> Image.Image:
    """Return a grey image (H, W) uint8 as RGB with numbered crosses at `points_K2`, (x, y) in its pixels."""
    picture = Image.fromarray(image_HW).convert("RGB")
    draw = ImageDraw.Draw(picture)
    arm = max(3, round(max(picture.size) / 150))
    for number, (x, y) in enumerate(points_K2):
        draw.line((x - arm, y, x + arm, y), fill="#ffb000", width=max(1, arm // 3))
        draw.line((x, y - arm, x, y + arm), fill="#ffb000", width=max(1, arm // 3))
        draw.text((x + arm, y + arm / 2), str(number), fill="#ffb000", font_size=max(10, 3 * arm))
    return picture
