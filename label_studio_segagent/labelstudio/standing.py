"""The region, of the same label, that a smart tool is about: a click is on or beside it, a box is around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np

from ..errors import RegionError
from ..hlmat.arrays import Mask, mask_box
from ..hlmat.metrics import box_iou
from .newest import newest_first
from .regions import Region, read_regions

__all__ = ["boxed_region", "standing_region"]

_BESIDE = 0.025
"""A click is beside a region when it is nearer than this share of the picture's diagonal."""
_AROUND = 0.6
"""A box is around a region when its IoU with the region's own box is at least this…"""
_INSIDE = 0.98
"""…or when this share of the region's pixels is inside, and no other region is."""


def standing_region(task: Mapping[str, Any], click: Region, height: int, width: int) -> tuple[Region, Mask] | None:
    """The region on a picture that a click is meant for, and its mask, bool (H, W); None when it starts a new one.

    What stands there is said by the annotator's draft, or else by the newest annotation, or else by the newest
    prediction, which is what the annotator was shown.

    Args:
        task: As Label Studio sends it with a smart tool.
        click: A key point.
        height: Of the picture, in pixels.
        width: Likewise.
    """
    point = click.click(height, width)
    row, column = point.pixel(height, width)
    best: tuple[float, Region, Mask] | None = None
    for region, mask in _alike(task, click, height, width):
        distance = 0.0
        if not mask[row, column]:
            distance = float(cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)[row, column])
        if distance <= _BESIDE * float(np.hypot(height, width)) and (best is None or distance < best[0]):
            best = (distance, region, mask)
    return None if best is None else (best[1], best[2])


def boxed_region(task: Mapping[str, Any], drawn: Region, height: int, width: int) -> tuple[Region, Mask] | None:
    """The region that a box is drawn around, to have it done again, and its mask; None when the box starts a new one.

    Where the box fits none and has several inside, it is around a group, and none of them is meant.

    Args:
        task: As Label Studio sends it with a smart tool.
        drawn: A rectangle or an ellipse.
        height: Of the picture, in pixels.
        width: Likewise.

    Raises:
        RegionError: The box covers no pixel of the picture, or cannot be read.
    """
    box = drawn.box(height, width)
    x0, y0, x1, y1 = (round(v) for v in box)
    fitting: list[tuple[float, Region, Mask]] = []
    inside: list[tuple[Region, Mask]] = []
    for region, mask in _alike(task, drawn, height, width):
        own = mask_box(mask)
        assert own is not None
        overlap = box_iou(box, own)
        if overlap >= _AROUND:
            fitting.append((overlap, region, mask))
        if np.count_nonzero(mask[y0:y1, x0:x1]) >= _INSIDE * np.count_nonzero(mask):
            inside.append((region, mask))
    if fitting:
        _, region, mask = max(fitting, key=lambda found: found[0])
        return region, mask
    return inside[0] if len(inside) == 1 else None


def _alike(task: Mapping[str, Any], new: Region, height: int, width: int) -> Iterator[tuple[Region, Mask]]:
    """The masks that share a label and the picture with a new region, none of them empty."""
    for region in read_regions(_shown(task)):
        same = (region.to_name, region.item_index) == (new.to_name, new.item_index)
        if not same or not region.is_mask or (region.labels != new.labels and not set(region.labels) & set(new.labels)):
            continue
        try:
            mask = region.mask(height, width)
        except RegionError:
            continue  # what cannot be read cannot be corrected
        if mask.any():
            yield region, mask


def _shown(task: Mapping[str, Any]) -> Any:
    """The results of what the annotator sees, as far as Label Studio tells."""
    for name in ("drafts", "annotations", "predictions"):
        for item in newest_first(task, name):
            return item.get("result")
    return None
