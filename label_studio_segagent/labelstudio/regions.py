"""Label Studio regions <-> masks.

Reads brush RLE, bitmaps, polygons, rectangles, ellipses and closed vectors (`shapes`); writes brush, bitmask, polygon
and rectangle results.
"""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image as PilImage

from ..errors import RegionError
from ..hlmat.actions import Click
from ..hlmat.arrays import Box, Mask, mask_box
from .brush import encode_brush
from .config import Control, Label
from .polygons import mask_polygons
from .shapes import BOX_SHAPES, MASK_SHAPES, TYPES, finite, shape_mask, shape_of

__all__ = ["Region", "read_regions", "region_id", "write_region"]

_EDGE = 1.0
"""Percent: a click that is less than this outside of the image, by a screen's pixel, is one on its border."""


@dataclass(frozen=True, slots=True)
class Region:
    """One drawn region; the results with its id are one.

    Attributes:
        id: The region's id.
        type: `type` of the result with its shape, for example "brushlabels" or "brush".
        from_name: The control of that result.
        to_name: The Image it is on.
        item_index: Which picture of a `valueList`, or None.
        labels: Its labels, as they stand in the results; those of the result with its shape first.
        value: The `value` of that result.
        positive: False for a negative smart key point.
    """

    id: str
    type: str
    from_name: str
    to_name: str
    item_index: int | None
    labels: tuple[str, ...]
    value: Mapping[str, Any]
    positive: bool = True

    @property
    def shape(self) -> str:
        """What was drawn: "brush", "polygon", "rectangle", "keypoint", …; "" for a lone `Labels` without a shape."""
        return shape_of(self.type, self.value)

    @property
    def is_mask(self) -> bool:
        """Whether it follows an object's outline; boxes, points and open lines do not."""
        shape = self.shape
        return shape in MASK_SHAPES and (shape != "vector" or bool(self.value.get("closed")))

    @property
    def title(self) -> str:
        """Names it in messages."""
        return f"{self.type} region {self.id[:60]!r}"

    def click(self, height: int, width: int) -> Click:
        """The click of a key point, in pixels.

        Raises:
            RegionError: It is not a key point, its coordinates are not numbers, or it lies outside the image.
        """
        if self.shape != "keypoint":
            raise RegionError(f"{self.title} is not a key point")
        x, y = (finite(self.value.get(name), f"{name} of {self.title}") for name in ("x", "y"))
        if not (-_EDGE < x < 100 + _EDGE and -_EDGE < y < 100 + _EDGE):
            raise RegionError(f"key point at ({x:g} %, {y:g} %) is outside the image; x and y are percent, 0 to 100")
        column, row = x / 100 * width - 0.5, y / 100 * height - 0.5
        return Click(min(max(column, 0), width - 1), min(max(row, 0), height - 1), self.positive)

    def box(self, height: int, width: int) -> Box:
        """The (x0, y0, x1, y1) pixels around the region, inside the image.

        Raises:
            RegionError: The region cannot be read or is empty.
        """
        box = mask_box(self.mask(height, width))
        if box is None:
            raise RegionError(f"{self.title} covers no pixel of the {width}x{height} image")
        return box

    def mask(self, height: int, width: int) -> Mask:
        """The region as a bool (H, W) mask, for the image's size after EXIF orientation.

        Raises:
            RegionError: The value is malformed, not finite, made for another size, or the type has no area.
        """
        return shape_mask(self.shape, self.value, self.title, height, width)


def _encode_bitmap(mask: Mask) -> str:
    pixels = np.zeros((*mask.shape, 4), np.uint8)
    pixels[..., 3] = mask.astype(np.uint8) * 255
    file = io.BytesIO()
    PilImage.fromarray(pixels).save(file, "PNG", optimize=False)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def read_regions(results: Any, ignored: Collection[str] = ()) -> list[Region]:
    """The regions of an annotation, a prediction or an interactive context, in order.

    All results with one id are one region, as in Label Studio: a shape and its `Labels`, or a suggestion that was
    accepted while the label of a prompt was selected. Its shape is the truest that any of them has, and of several the
    first; it has the labels of all.

    Results that are not regions (choices, text) and results that are not objects are left out.

    Args:
        results: What stands in `result`.
        ignored: Names of controls whose results are left out.
    """
    regions: dict[str, list[Region]] = {}
    for position, result in enumerate(results if isinstance(results, list) else []):
        region = _read_result(result, position)
        if region is not None:
            regions.setdefault(region.id, []).append(region)
    left = (_without(group, ignored) for group in regions.values())
    return [_joined(group) for group in left if group]


def _without(group: Sequence[Region], ignored: Collection[str]) -> list[Region]:
    """The results of a region that are not of ignored controls; the `Labels` of one that is go with it."""
    left = [region for region in group if region.from_name not in ignored]
    alone = len(left) < len(group) and all(region.type == "labels" for region in left)
    return [] if alone else left


def region_id(result: Mapping[str, Any], position: int) -> str:
    """The id of the region that a result is about; one without an id is alone, and named by its place in the list."""
    return str(result.get("id") or f"#{position}")


def _read_result(result: Any, position: int) -> Region | None:
    if not isinstance(result, dict) or not isinstance(result.get("value"), dict):
        return None
    kind, value = str(result.get("type", "")).lower(), result["value"]
    if kind not in TYPES:
        return None
    labels, index = value.get(kind) or value.get("labels"), result.get("item_index")
    return Region(
        id=region_id(result, position),
        type=kind,
        from_name=str(result.get("from_name", "")),
        to_name=str(result.get("to_name", "")),
        item_index=index if isinstance(index, int) and not isinstance(index, bool) else None,
        labels=tuple(dict.fromkeys(map(str, labels))) if isinstance(labels, list) else (),
        value=value,
        positive=result.get("is_positive", True) is not False,
    )


def _joined(group: Sequence[Region]) -> Region:
    """The region that several results with one id are."""
    main = min(group, key=_rank)
    return replace(
        main,
        labels=tuple(dict.fromkeys(label for region in (main, *group) for label in region.labels)),
        positive=all(region.positive for region in group),
    )


def _rank(region: Region) -> tuple[bool, bool, bool]:
    """Smallest for the result that says best what was drawn: a mask, else an area, of the type that it is."""
    shape = region.shape
    return not region.is_mask, shape not in MASK_SHAPES | BOX_SHAPES, region.type.removesuffix("labels") != shape


def write_region(
    mask: Mask, control: Control, label: Label, score: float, item_index: int | None = None
) -> list[dict[str, Any]]:
    """The results for one object, in the shape that its control holds; none for an empty mask.

    A polygon has one ring: an object in several parts gives several regions, and holes are filled, which the
    region's `meta.text` says. Ids are fresh each time: Label Studio drops regions whose id it has seen.

    Args:
        mask: bool (H, W).
        control: Where it goes.
        label: The label it gets.
        score: Predicted IoU in [0, 1]; shown in Label Studio's region list.
        item_index: Which picture of a `valueList`, or None.
    """
    if not mask.any():
        return []
    results = []
    for value, notes in _values(mask, control.shape):
        base: dict[str, Any] = {
            "id": uuid.uuid4().hex[:12],
            "to_name": control.to_name,
            "original_width": mask.shape[1],
            "original_height": mask.shape[0],
            "image_rotation": 0,
            "score": round(float(score), 4),
            "origin": "prediction",
        }
        if notes:
            base["meta"] = {"text": notes}
        if item_index is not None:
            base["item_index"] = item_index
        if control.labels_from is None:
            results.append(_result(base, control.name, control.type, {**value, control.type: [label.name]}))
        else:
            results.append(_result(base, control.name, control.type, value))
            results.append(_result(base, control.labels_from, "labels", {**value, "labels": [label.name]}))
    return results


def _result(base: Mapping[str, Any], from_name: str, kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
    return {**base, "from_name": from_name, "type": kind, "value": dict(value)}


def _values(mask: Mask, shape: str) -> Sequence[tuple[dict[str, Any], list[str]]]:
    """The `value` fields, without labels, and notes about what the shape cannot hold."""
    height, width = mask.shape
    if shape == "brush":
        return [({"format": "rle", "rle": encode_brush(mask)}, [])]
    if shape == "bitmask":
        return [({"imageDataURL": _encode_bitmap(mask)}, [])]
    if shape == "polygon":
        rings, filled = mask_polygons(mask)
        notes = [f"{filled} hole(s) filled: a polygon cannot have holes"] if filled else []
        return [
            ({"points": [[x / width * 100, y / height * 100] for x, y in ring], "closed": True}, notes)
            for ring in rings
        ]
    box = mask_box(mask)
    assert shape == "rectangle" and box is not None
    x0, y0, x1, y1 = box
    value = {
        "x": x0 / width * 100,
        "y": y0 / height * 100,
        "width": (x1 - x0) / width * 100,
        "height": (y1 - y0) / height * 100,
        "rotation": 0,
    }
    return [(value, [])]
