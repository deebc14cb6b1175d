"""The region that a smart click corrects: the one of the same label that it is on, or beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from ..errors import RegionError
from ..hlmat.arrays import Mask
from .regions import Region, read_regions

__all__ = ["standing_region"]

_BESIDE = 0.025
"""A click is beside a region when it is nearer than this share of the picture's diagonal."""
_AREAS = ("brush", "bitmask", "polygon", "vector", "")


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
    for region in read_regions(_shown(task)):
        same = (region.to_name, region.item_index) == (click.to_name, click.item_index)
        if not same or region.labels != click.labels or region.shape not in _AREAS:
            continue
        try:
            mask = region.mask(height, width)
        except RegionError:
            continue  # what cannot be read cannot be corrected
        if not mask.any():
            continue
        distance = 0.0
        if not mask[row, column]:
            distance = float(cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)[row, column])
        if distance <= _BESIDE * float(np.hypot(height, width)) and (best is None or distance < best[0]):
            best = (distance, region, mask)
    return None if best is None else (best[1], best[2])


def _shown(task: Mapping[str, Any]) -> Any:
    """The results of what the annotator sees, as far as Label Studio tells."""
    for name in ("drafts", "annotations", "predictions"):
        items = [item for item in task.get(name) or [] if isinstance(item, dict) and not item.get("was_cancelled")]
        if items:
            return max(items, key=lambda item: str(item.get("updated_at") or item.get("id"))).get("result")
    return None
