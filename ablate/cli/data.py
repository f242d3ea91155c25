"""The commands of `ablate data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ablate.cli import completion
from ablate.cli.interrupts import raise_again
from ablate.cli.shared import DataOption, data_folder_of

NameArgument = Annotated[
    str,
    typer.Argument(
        autocompletion=completion.datasets,
        help="chest, cephalo, hand, synthetic, or the name of a folder with dataset.yaml in --data",
    ),
]

FORMATS = """\b
Example:
  ablate data import labelme annotations/ --images images/ --out mydata

\b
Formats, and which place of the top-left pixel they count from:
  coco         COCO keypoints, one JSON file; corner
  labelme      a folder with a JSON file for each image; corner
  cvat         CVAT for images 1.1, one XML file; corner
  labelstudio  Label Studio's export JSON, one file; corner
  slicer       a folder with a .mrk.json or .fcsv file of 3D Slicer for
               each image; centre
  csv          a table with the columns image,x0,y0,... or
               image,NAME_x,NAME_y,... or image,landmark,x,y; centre
A data set's points count from the centre: 0.5 is subtracted from those that
count from the corner. With --normalised every format counts from the corner."""


def data_import(
    format_name: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            autocompletion=completion.choices("coco", "labelme", "cvat", "labelstudio", "slicer", "csv"),
            help="coco, labelme, cvat, labelstudio, slicer or csv, see below",
        ),
    ],
    source: Annotated[Path, typer.Argument(help="the export: a file, or the folder of a file for each image")],
    out: Annotated[str, typer.Option("--out", help="name of the new data set")],
    data: DataOption = None,
    images: Annotated[Path | None, typer.Option(help="folder of the images; default: beside the export")] = None,
    rescale: Annotated[
        bool,
        typer.Option("--rescale", help="the export states another size than the file has: bring points to the file"),
    ] = False,
    scale: Annotated[
        float | None, typer.Option(help="multiply points by this: pixels of the file for each of theirs")
    ] = None,
    normalised: Annotated[
        bool, typer.Option("--normalised", help="points are shares of width and height, between 0 and 1")
    ] = False,
    missing: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VALUE", help="a landmark with x = y = VALUE is not annotated: --missing=-1, or nan; none"
        ),
    ] = None,
    swap_xy: Annotated[bool, typer.Option("--swap-xy", help="points are y, x")] = False,
    origin: Annotated[
        str | None,
        typer.Option(help="place of the top-left pixel that is (0, 0): corner or centre; default: the format's"),
    ] = None,
    splits: Annotated[
        str | None, typer.Option(metavar="TRAIN,VAL", help="images of each, the rest is test; default: 60 % and 15 %")
    ] = None,
    mm_per_pixel: Annotated[
        float | None, typer.Option(help="millimetres in a pixel; default: errors are in pixels")
    ] = None,
    slicer_spacing: Annotated[
        str | None, typer.Option(metavar="MM", help="millimetres in a pixel, or x,y, as 3D Slicer had them; default 1")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what is found, and write nothing")] = False,
) -> None:
    """Make a data set of an annotation tool's export; what looks wrong is refused with the option that cures it."""
    from ablate.datasets import ImportOptions, import_dataset

    raise_again()
    options = ImportOptions.of_texts(
        images=images,
        rescale=rescale,
        scale=scale,
        normalised=normalised,
        missing=missing or [],
        swap_xy=swap_xy,
        origin=origin,
        splits=splits,
        mm_per_pixel=mm_per_pixel,
        slicer_spacing=slicer_spacing,
        dry_run=dry_run,
    )
    print(import_dataset(format_name, source, out=out, data_dir=data, options=options).text())


def data_check(name: NameArgument, data: DataOption = None) -> None:
    """Report counts, splits, unreadable files, stray landmarks, and radiographs that occur in two splits."""
    from ablate.datasets import check_dataset

    found = check_dataset(name, data_folder_of(data))
    print(found.text())
    raise typer.Exit(2 if found.errors else 0)


def data_preview(
    name: NameArgument,
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="PNG file; default NAME.png")] = None,
) -> None:
    """Write a contact sheet of a data set with its landmarks drawn."""
    from ablate.datasets import preview_dataset

    raise_again()
    path = out or Path(f"{name}.png")
    preview_dataset(name, data_folder_of(data), path)
    print(path)


def data_prepare(
    name: NameArgument,
    data: DataOption = None,
    image_size: Annotated[list[int] | None, typer.Option(min=16, help="network input sizes; default 256")] = None,
) -> None:
    """Decode a data set into the cache ahead of a run."""
    from ablate.datasets import prepare_dataset

    raise_again()
    for path in prepare_dataset(name, data_folder_of(data), image_size or [256]):
        print(path)
