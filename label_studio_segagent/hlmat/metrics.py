"""Metrics of masks and of click sequences.

Masks are bool (H, W). `void` marks pixels that are ignored (the third value of tri-maps). Two empty masks agree:
their IoU is 1. Sources: SegAgent (arXiv 2503.08625) for mIoU/cIoU; Boundary IoU (arXiv 2103.16562), section 4, with
the boundary width of its reference code; RITM (arXiv 2102.06583) for NoC and NoF.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from .arrays import Box, Mask

__all__ = ["box_iou", "boundary_iou", "ciou", "iou", "miou", "noc", "nof"]


def _areas(mask: Mask, target: Mask, void: Mask | None = None) -> tuple[int, int]:
    """Pixels in the intersection and in the union."""
    if mask.shape != target.shape:
        raise ValueError(f"masks of different sizes: {mask.shape} and {target.shape}")
    both, either = mask & target, mask | target
    if void is not None:
        both, either = both & ~void, either & ~void
    return int(np.count_nonzero(both)), int(np.count_nonzero(either))


def iou(mask: Mask, target: Mask, void: Mask | None = None) -> float:
    """Intersection over union in [0, 1]; 1 for two empty masks.

    Raises:
        ValueError: The masks have different sizes.
    """
    both, either = _areas(mask, target, void)
    return both / either if either else 1.0


def miou(pairs: Iterable[tuple[Mask, Mask]]) -> float:
    """Mean IoU over (mask, target) pairs, also called gIoU; NaN for no pairs."""
    values = [iou(mask, target) for mask, target in pairs]
    return float(np.mean(values)) if values else float("nan")


def ciou(pairs: Iterable[tuple[Mask, Mask]]) -> float:
    """Cumulative IoU: sum of intersections over sum of unions; NaN for no pairs."""
    areas = [_areas(mask, target) for mask, target in pairs]
    if not areas:
        return float("nan")
    both, either = (sum(column) for column in zip(*areas, strict=True))
    return both / either if either else 1.0


def _boundary(mask: Mask, width: int) -> Mask:
    """The pixels of a mask within `width` of its contour; the image border counts as outside."""
    padded = np.pad(mask, 1).astype(np.uint8)
    eroded: Mask = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1].astype(bool)
    return mask & ~eroded


def boundary_iou(mask: Mask, target: Mask, dilation_ratio: float = 0.02) -> float:
    """IoU of the two masks' boundary bands, `dilation_ratio` of the image diagonal wide (at least one pixel).

    Raises:
        ValueError: The masks have different sizes.
    """
    width = max(1, round(dilation_ratio * float(np.hypot(*mask.shape))))
    return iou(_boundary(mask, width), _boundary(target, width))


def _clicks_needed(ious: Sequence[float], threshold: float, max_clicks: int) -> int | None:
    """How many clicks reach the threshold, or None; `ious[i]` is the IoU after click i + 1."""
    return next((i for i, value in enumerate(ious[:max_clicks], 1) if value >= threshold), None)


def noc(curves: Iterable[Sequence[float]], threshold: float, max_clicks: int = 20) -> float:
    """Mean number of clicks until the IoU reaches `threshold`; `max_clicks` where it never does; NaN for no curves.

    Args:
        curves: For each object the IoU after each click.
        threshold: In [0, 1], for example 0.9 for NoC@90.
        max_clicks: Clicks allowed.
    """
    counts = [_clicks_needed(curve, threshold, max_clicks) or max_clicks for curve in curves]
    return float(np.mean(counts)) if counts else float("nan")


def nof(curves: Iterable[Sequence[float]], threshold: float, max_clicks: int = 20) -> int:
    """Number of objects that never reach `threshold` within `max_clicks` clicks."""
    return sum(_clicks_needed(curve, threshold, max_clicks) is None for curve in curves)


def box_iou(a: Box, b: Box) -> float:
    """IoU of two boxes (x0, y0, x1, y1)."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)
