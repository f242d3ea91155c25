"""A contact sheet of a data set, to see whether its landmarks lie where they should.

Each picture keeps its aspect and is drawn from the original file, so that what is seen does not depend on
the network's image size.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ablate.datasets.images import normalise, resize
from ablate.datasets.loading import open_contents
from ablate.datasets.types import Part, Problems, Record
from ablate.errors import InputError
from ablate.store.local_write import write_local

_CAPTION_PX = 18
_COLOURS = ("#ff5a5f", "#ffd166", "#06d6a0", "#4cc9f0", "#f78fff", "#ff9f1c")


def preview_dataset(
    name: str,
    data_dir: Path | str | None,
    out_path: Path | str,
    *,
    columns: int = 6,
    rows: int = 3,
    cell_px: int = 320,
) -> Path:
    """Write a PNG of `columns` x `rows` radiographs, spread evenly over the data set, with named landmarks.

    A landmark without a name has its number, from 0; each caption names file and split. Returns the path written;
    raises `InputError` for an unusable data set or a path that cannot be written.
    """
    for argument, value, least in (("columns", columns, 1), ("rows", rows, 1), ("cell_px", cell_px, 32)):
        if value < least:
            raise InputError(f"{argument} must be at least {least}; got {value}")
    path = Path(out_path).expanduser()
    if path.suffix.lower() != ".png":
        raise InputError(f"the preview must be written to a .png file; got '{path}'")
    with open_contents(name, data_dir, Problems(stop=True)) as contents:
        records, parts = contents.divisions[0].ordered, contents.divisions[0].parts
        names = contents.landmark_names or tuple(map(str, range(contents.num_landmarks)))
        count = min(columns * rows, len(records))
        chosen = np.linspace(0, len(records) - 1, count).round().astype(int)
        columns = min(columns, count)
        sheet = Image.new("RGB", (columns * cell_px, -(-count // columns) * (cell_px + _CAPTION_PX)), "#202020")
        for position, index in enumerate(chosen):
            cell = _draw(records[index], parts[index], names, cell_px)
            sheet.paste(cell, (position % columns * cell_px, position // columns * (cell_px + _CAPTION_PX)))
    _write(path, sheet)
    return path


def _draw(record: Record, part: Part, names: Sequence[str], cell_px: int) -> Image.Image:
    """Draw one radiograph, scaled to fit, with its landmarks and caption."""
    width, height = record.size
    scale = cell_px / max(width, height)
    shown_width, shown_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (cell_px - shown_width) // 2, (cell_px - shown_height) // 2
    cell = Image.new("RGB", (cell_px, cell_px + _CAPTION_PX), "#202020")
    grey_HW = normalise(resize(record.grey(), shown_width, shown_height))
    cell.paste(Image.fromarray(grey_HW).convert("RGB"), (left, top))
    draw = ImageDraw.Draw(cell)
    font = ImageFont.load_default(size=11)
    shown_K2 = (record.points_K2 + 0.5) * (shown_width / width, shown_height / height) - 0.5 + (left, top)
    for landmark, (x, y) in enumerate(shown_K2):
        if np.isnan(x):
            continue
        colour = _COLOURS[landmark % len(_COLOURS)]
        draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill=colour, outline="black")
        draw.text((x + 4, y - 6), names[landmark], fill=colour, font=font, stroke_width=1, stroke_fill="black")
    draw.text((4, cell_px + 2), f"{record.name}  {part}", fill="white", font=font)
    return cell


def _write(path: Path, sheet: Image.Image) -> None:
    """Publish the picture in one step."""
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_local(path, buffer.getvalue())
    except OSError as error:
        raise InputError(f"{path}: the preview must be writable; {error.strerror}; choose another path") from error
