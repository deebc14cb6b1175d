"""Clicks for training the segmenter, drawn from a network's own errors (cf. RITM, arXiv 2102.06583)."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["ClickList", "clicked_error", "earlier_clicks", "next_click"]

ClickList = list[tuple[float, float, float]]
"""(x, y, sign) with x and y in pixels of the mask, oldest first."""


def next_click(
    truth: npt.NDArray[np.bool_],
    mask: npt.NDArray[np.bool_],
    clicks: ClickList,
    rng: np.random.Generator,
    centred: float = 0.5,
) -> tuple[float, float, float] | None:
    """A click on the largest error of `mask`, or None when there is none.

    Args:
        truth: bool (h, w).
        mask: bool (h, w).
        clicks: The clicks so far; the same pixel is not clicked twice.
        rng: Source of chance.
        centred: Probability of the exact centre, as F_sim clicks; else somewhere well inside the error.

    Returns:
        (x, y, sign).
    """
    missed = _depth(truth & ~mask, clicks)
    extra = _depth(mask & ~truth, clicks)
    positive = missed.max() >= extra.max()
    depth = missed if positive else extra
    deepest = float(depth.max())
    if deepest <= 0:
        return None
    if rng.random() < centred:
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    else:
        candidates = np.flatnonzero(depth >= deepest * rng.uniform(0.25, 0.9))
        row, column = np.unravel_index(int(candidates[rng.integers(len(candidates))]), depth.shape)
    return float(column), float(row), 1.0 if positive else -1.0


def clicked_error(
    truth: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_], click: tuple[float, float, float], reach: float = 2.5
) -> npt.NDArray[np.bool_]:
    """The part of the error of `mask` that a click asks to mend: connected to it, and near it where the error is long.

    Args:
        truth: bool (h, w).
        mask: bool (h, w).
        click: (x, y, sign), on the error.
        reach: How far from the click, in depths of the error there.
    """
    x, y = round(click[0]), round(click[1])
    error = truth & ~mask if click[2] > 0 else mask & ~truth
    deep = float(_depth(error, [])[y, x])
    near = np.zeros(error.shape, np.uint8)
    cv2.circle(near, (x, y), math.ceil(reach * deep) + 1, 1, -1)
    _, parts = cv2.connectedComponents((error & (near > 0)).astype(np.uint8), connectivity=4)
    return np.asarray((parts == parts[y, x]) & error)


def _depth(error: npt.NDArray[np.bool_], clicks: ClickList) -> npt.NDArray[np.float32]:
    padded = np.pad(error.astype(np.uint8), 1)
    depth = np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 3), np.float32)[1:-1, 1:-1]
    for x, y, _ in clicks:
        depth[min(max(round(y), 0), depth.shape[0] - 1), min(max(round(x), 0), depth.shape[1] - 1)] = 0
    return depth


def earlier_clicks(truth: npt.NDArray[np.bool_], count: int, rng: np.random.Generator) -> ClickList:
    """Clicks that an annotator may have made before: positive inside, negative mostly near the object."""
    clicks: ClickList = []
    for _ in range(count):
        if not clicks or rng.random() < 0.6:
            depth = _depth(truth, [])
            candidates = np.flatnonzero(depth >= depth.max() * rng.uniform(0.1, 0.7))
            sign = 1.0
        else:
            near = cv2.dilate(truth.astype(np.uint8), np.ones((25, 25), np.uint8)).astype(bool)
            region = ~truth & (near if rng.random() < 0.7 else True)
            candidates, sign = np.flatnonzero(region), -1.0
        if len(candidates):
            row, column = np.unravel_index(int(candidates[rng.integers(len(candidates))]), truth.shape)
            clicks.append((float(column), float(row), sign))
    return clicks
