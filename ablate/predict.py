"""Landmarks in new images, predicted by the network of a finished trial.

Shapes: N images, K landmarks, 2 = (x, y) in pixels of the image files.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load as load_tensors

from ablate import tables
from ablate.datasets.images import IMAGE_SUFFIXES, is_image, normalise, prepare, read_grey
from ablate.errors import InputError, nearest
from ablate.network.building import build_network, outline
from ablate.network.evaluation import Predictions, predict
from ablate.space import TrialSpec
from ablate.store import Store
from ablate.store.layout import MODEL, SPEC, trial_folder
from ablate.store.local_write import write_local
from ablate.store.run_file import read_run_file


def predict_folder(run: Store, trial_id: str, images: Path, out: Path, *, overlays: bool) -> list[str]:
    """Predict the landmarks of an image, or of every image in a folder, and write them to `out`.

    `out` receives `predictions.csv` (image,x0,y0,x1,y1,... in pixels of the files, and confidence0,...; it can be the
    `landmarks.csv` of a data set), `predictions-long.csv` (image,landmark,name,x,y,confidence, a row for each landmark;
    the name is the number where the data set has none) and, with `overlays`, a PNG of each image with its landmarks.

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
    num_landmarks = _num_landmarks(spec, tensors)
    network = build_network(
        spec.network,
        num_outputs=num_landmarks,
        image_size=spec.image_size,
        seed=spec.seed,
        precision=spec.precision,
    )
    network.load_state_dict(tensors)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = predict(network.to(device), images_NHW, sizes_N2, spec, device=device)
    names = _landmark_names(run, spec.dataset, num_landmarks)
    files = [path.name for path in paths]
    _write_csv(out / "predictions.csv", _wide(files, found))
    _write_csv(out / "predictions-long.csv", _long(files, names, found))
    lines = [
        f"{out / 'predictions.csv'}: {num_landmarks} landmarks in {len(paths)} images",
        f"{out / 'predictions-long.csv'}: a row for each landmark",
    ]
    if overlays:
        stems = Counter(path.stem for path in paths)
        for path, grey, points_K2 in zip(paths, greys, found.points_NK2, strict=True):
            name = path.stem if stems[path.stem] == 1 else path.name
            draw_overlay(normalise(grey), points_K2, names).save(out / f"{name}.png")
        lines.append(f"{out}: {len(paths)} overlays, one PNG for each image")
    return lines


def _landmark_names(run: Store, dataset: str, num_landmarks: int) -> list[str]:
    """Return the names that the run's data set gives its landmarks, or their numbers."""
    facts = read_run_file(run).get("data", {}).get(dataset, {})
    return [str(name) for name in facts.get("landmark_names") or range(num_landmarks)]


def _num_landmarks(spec: TrialSpec, tensors: Mapping[str, torch.Tensor]) -> int:
    """Return how many landmarks weights find: the length of what has one element in a network of one output."""
    one, _ = outline(spec.network, spec.image_size)
    own = one.state_dict()
    return next(len(tensors[name]) for name in sorted(one.output_names()) if own[name].shape == (1,))


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


def _wide(files: Sequence[str], found: Predictions) -> list[list[object]]:
    """Return a row for each image, after the header."""
    num_landmarks = found.points_NK2.shape[1]
    places = [f"{axis}{k}" for k in range(num_landmarks) for axis in "xy"]
    rows: list[list[object]] = [["image", *places, *(f"confidence{k}" for k in range(num_landmarks))]]
    for file, points_K2, confidence_K in zip(files, found.points_NK2, found.confidence_NK, strict=True):
        rows.append([file, *(f"{v:.2f}" for v in points_K2.ravel()), *(f"{v:.3f}" for v in confidence_K)])
    return rows


def _long(files: Sequence[str], names: Sequence[str], found: Predictions) -> list[list[object]]:
    """Return a row for each landmark of each image, after the header."""
    rows: list[list[object]] = [["image", "landmark", "name", "x", "y", "confidence"]]
    for file, points_K2, confidence_K in zip(files, found.points_NK2, found.confidence_NK, strict=True):
        for k, (name, (x, y), share) in enumerate(zip(names, points_K2, confidence_K, strict=True)):
            rows.append([file, k, name, f"{x:.2f}", f"{y:.2f}", f"{share:.3f}"])
    return rows


def _write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_local(path, text.getvalue().encode())
    except OSError as error:
        raise InputError(
            f"--out must be a folder that can be written; got '{path.parent}' ({error.strerror})"
        ) from error


def draw_overlay(image_HW: np.ndarray, points_K2: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Return a grey image (H, W) uint8 as RGB with a named cross at each of `points_K2`, (x, y) in its pixels."""
    picture = Image.fromarray(image_HW).convert("RGB")
    draw = ImageDraw.Draw(picture)
    arm = max(3, round(max(picture.size) / 150))
    for name, (x, y) in zip(names, points_K2, strict=True):
        draw.line((x - arm, y, x + arm, y), fill="#ffb000", width=max(1, arm // 3))
        draw.line((x, y - arm, x, y + arm), fill="#ffb000", width=max(1, arm // 3))
        draw.text((x + arm, y + arm / 2), name, fill="#ffb000", font_size=max(10, 3 * arm))
    return picture
