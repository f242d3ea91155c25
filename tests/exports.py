"""Exports of annotation tools, written by hand after their documented layouts; tables by pandas.

`truth` is points by image and landmark, from the centre of the top-left pixel; `shift` moves them to the tool's origin.
`size` is the images' width and height in pixels, or a mapping of each image to its own.
"""

import json
from xml.sax.saxutils import quoteattr

import numpy as np
import pandas as pd

WIDTH, HEIGHT = SIZE = (40, 60)
LANDMARKS = ("nasion", "p2", "p10", "sella")


def of(size, name):
    """Return an image's width and height."""
    return size[name] if isinstance(size, dict) else size


def marks_of(truth):
    """Return every landmark, in the order of the first image that has all."""
    return list(max(truth.values(), key=len))


def as_coco(folder, truth, shift=0.5, size=SIZE):
    marks = marks_of(truth)

    def triple(points, mark):
        return [points[mark][0] + shift, points[mark][1] + shift, 2] if mark in points else [0, 0, 0]

    content = {
        "images": [
            {"id": index, "file_name": f"train/{name}", "width": of(size, name)[0], "height": of(size, name)[1]}
            for index, name in enumerate(truth)
        ],
        "categories": [{"id": 1, "name": "head", "keypoints": marks, "skeleton": [[1, 2]]}],
        "annotations": [
            {
                "id": 100 + index,
                "image_id": index,
                "category_id": 1,
                "num_keypoints": len(points),
                "bbox": [0, 0, 1, 1],
                "keypoints": [value for mark in marks for value in triple(points, mark)],
            }
            for index, points in enumerate(truth.values())
        ],
    }
    path = folder / "person_keypoints.json"
    path.write_text(json.dumps(content))
    return path


def as_labelme(folder, truth, shift=0.5, size=SIZE, data=None):
    path = folder / "labelme"
    path.mkdir()
    for name, points in truth.items():
        shapes = [
            {"label": mark, "points": [[x + shift, y + shift]], "shape_type": "point", "group_id": None, "flags": {}}
            for mark, (x, y) in points.items()
        ]
        shapes.append({"label": "jaw", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon"})
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": f"..\\images\\{name}",
            "imageData": data(name) if data else None,
            "imageWidth": of(size, name)[0],
            "imageHeight": of(size, name)[1],
        }
        (path / name).with_suffix(".json").write_text(json.dumps(content))
    return path


def as_cvat(folder, truth, shift=0.5, size=SIZE):
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "<version>1.1</version>", "<meta/>"]
    marks = marks_of(truth)
    for index, (name, points) in enumerate(truth.items()):
        lines.append(
            f'<image id="{index}" name={quoteattr(name)} width="{of(size, name)[0]}" height="{of(size, name)[1]}">'
        )
        for mark in marks[:2]:
            x, y = points[mark]
            lines.append(f'<points label="{mark}" source="manual" occluded="0" points="{x + shift},{y + shift}"/>')
        lines.append('<skeleton label="head" source="manual" z_order="0">')
        for mark in marks[2:]:
            x, y = points.get(mark, (3, 3))
            outside = int(mark not in points)
            lines.append(f'<points label="{mark}" outside="{outside}" points="{x + shift},{y + shift}"></points>')
        lines.append('</skeleton><box label="jaw" xtl="1" ytl="1" xbr="2" ybr="2"/></image>')
    path = folder / "annotations.xml"
    path.write_text("\n".join([*lines, "</annotations>"]))
    return path


def as_labelstudio(folder, truth, shift=0.5, size=SIZE):
    def result(name, mark, x, y):
        width, height = of(size, name)
        value = {"x": (x + shift) / width * 100, "y": (y + shift) / height * 100, "width": 0.5}
        return {
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": value | {"keypointlabels": [mark]},
            "type": "keypointlabels",
            "from_name": "kp",
            "to_name": "image",
        }

    def address(index, name):
        return f"/data/local-files/?d=set%20one/{name}" if index % 2 else f"/data/upload/3/0a1b2c3d-{name}"

    tasks = [
        {
            "id": index,
            "data": {"image": address(index, name)},
            "annotations": [
                {
                    "id": 1,
                    "was_cancelled": False,
                    "result": [result(name, mark, x, y) for mark, (x, y) in points.items()],
                },
                {"id": 2, "was_cancelled": True, "result": [result(name, "sella", 1, 1)]},
            ],
            "predictions": [],
        }
        for index, (name, points) in enumerate(truth.items())
    ]
    path = folder / "export.json"
    path.write_text(json.dumps(tasks))
    return path


def as_slicer(folder, truth, shift=0.0, size=None, spacing=1.0):
    """Write .mrk.json in LPS, .mrk.json in RAS and .fcsv in RAS in turn."""
    path = folder / "slicer"
    path.mkdir()
    for index, (name, points) in enumerate(truth.items()):
        sign = 1 if index % 3 == 0 else -1
        places = {mark: (sign * x * spacing, sign * y * spacing) for mark, (x, y) in points.items()}
        if index % 3 < 2:
            markup = {
                "type": "Fiducial",
                "coordinateSystem": "LPS" if sign == 1 else "RAS",
                "coordinateUnits": "mm",
                "controlPoints": [
                    {"id": "1", "label": mark, "position": [x, y, 0.0], "positionStatus": "defined"}
                    for mark, (x, y) in places.items()
                ]
                + [{"id": "9", "label": "later", "position": [0.0, 0.0, 0.0], "positionStatus": "undefined"}],
            }
            (path / name).with_suffix(".mrk.json").write_text(json.dumps({"@schema": "markups", "markups": [markup]}))
        else:
            lines = [
                "# Markups fiducial file version = 4.13",
                "# CoordinateSystem = RAS",
                "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID",
                *(f"{k},{x},{y},0,0,0,0,1,1,1,0,{mark},,,2,0" for k, (mark, (x, y)) in enumerate(places.items())),
                "9,0,0,0,0,0,0,1,1,1,0,later,,,0,0",
            ]
            (path / name).with_suffix(".fcsv").write_text("\n".join(lines) + "\n")
    return path


def frame(truth, spelling="{mark}_{axis}"):
    rows = []
    for name, points in truth.items():
        row = {"image": name}
        for mark in marks_of(truth):
            for index, axis in enumerate("xy"):
                row[spelling.format(mark=mark, axis=axis)] = points[mark][index] if mark in points else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def as_csv(folder, truth, shift=0.0, size=None):
    path = folder / "points.csv"
    table = frame(truth)
    if size:
        table.insert(1, "orig_width", size[0])
        table.insert(2, "orig_height", size[1])
    table.to_csv(path)
    return path


EXPORTS = {
    "coco": as_coco,
    "labelme": as_labelme,
    "cvat": as_cvat,
    "labelstudio": as_labelstudio,
    "slicer": as_slicer,
    "csv": as_csv,
}
