"""From what the locator saw to targets, and from what the reviewer drew to the next click."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ..hlmat.actions import Action, Click, Finish
from ..hlmat.arrays import Mask
from ..hlmat.metrics import box_iou
from ..segmenters.embedded_views import View, Window
from .base import Target
from .embedded_net import Located

__all__ = ["alone", "choose_clicks", "find_targets", "merge_targets", "part_windows"]

Float = npt.NDArray[np.float32]
_PEAKS = 60
_OVERLAP = 0.55
"""Boxes that overlap more than this (IoU) are one instance."""
_INSIDE = 0.45
"""Probability from which a cell is part of an instance."""
_RIVAL = 0.5
"""A target disputes another's part of the region when its score is at least this share of the other's."""
_APART = 0.1
"""Boxes that overlap less (IoU) are of different objects."""
_PARTS, _PART = 2, 0.75
"""Parts of an image that are looked at by themselves, and their share of its long side."""
_CELLS = 56
"""Of the locator along a long side: what comes as near as one to where a part was cut is taken for cut off."""
_SMALLEST = 128
"""Images with a shorter long side than this have no parts."""
_LARGE = 0.15
"""Share of the image from which a box is large."""
_DOUBT, _CLOSER = 1.15, 1.2
"""A target that is seen in a part only needs a score this much higher; where whole and part see the same object, the
part is believed unless the whole image is this much surer."""
_SAME, _WITHIN = 0.5, 0.85
"""Boxes that overlap more than this (IoU), or are this much inside of a better one, are the same object."""
_SURE = 0.15
"""An error counts where the probability is at least this far from one half, times two."""


def find_targets(
    located: Located, row: int, view: View, size: tuple[int, int], least: float, certainty: float = 1.0
) -> list[Target]:
    """The instances that the locator found, best first.

    Args:
        located: Its answer.
        row: Which of the batch.
        view: Of the whole image.
        size: (height, width) of the image in pixels.
        least: Smallest score.
        certainty: That there is anything; a target's score is this times how sure the locator is of the place.
    """
    height, width = view.height // 8, view.width // 8
    fx, fy = size[1] / width, size[0] / height
    heat = torch.sigmoid(located.heat[row : row + 1, :, :height, :width])
    peaks = (heat * (heat == F.max_pool2d(heat, 3, 1, 1))).flatten()
    scores, places = peaks.topk(min(_PEAKS, peaks.numel()))
    found: list[tuple[Target, int]] = []
    for score, place in zip(scores.tolist(), places.tolist(), strict=True):
        score *= certainty
        if score < max(least, 1e-6):
            break
        y, x = divmod(place, width)
        left, up, right, down = located.boxes[row, :, y, x].tolist()
        box = (
            max((x + 0.5 - left) * fx, 0.0), max((y + 0.5 - up) * fy, 0.0),
            min((x + 0.5 + right) * fx, float(size[1])), min((y + 0.5 + down) * fy, float(size[0])),
        )  # fmt: skip
        whole = box[2] - box[0] >= 1 and box[3] - box[1] >= 1
        if whole and all(box_iou(box, t.box) < _OVERLAP for t, _ in found if t.box is not None):
            found.append((Target(box, None, float(score)), place))
    return _fit_to_region(found, torch.sigmoid(located.region[row, 0, :height, :width]).numpy(), fx, fy)


def _fit_to_region(found: Sequence[tuple[Target, int]], region: Float, fx: float, fy: float) -> list[Target]:
    """Give targets that have a part of the region to themselves the box around it: it is drawn better than boxes are.

    Args:
        found: Targets and their places in the region, counted row by row.
        region: Probability of each cell to be part of an instance, float32 (h, w).
        fx: Width of a cell in pixels.
        fy: Height of a cell.
    """
    _, parts, stats, _ = cv2.connectedComponentsWithStats((region > _INSIDE).astype(np.uint8), connectivity=4)
    owners = [int(parts.flat[place]) for _, place in found]
    out: list[Target] = []
    for (target, _), part in zip(found, owners, strict=True):
        beside = [t for (t, _), other in zip(found, owners, strict=True) if other == part and t is not target]
        if part and not any(_disputes(t, target) for t in beside):
            x, y, w, h = (int(v) for v in stats[part, :4])
            target = Target((x * fx, y * fy, (x + w) * fx, (y + h) * fy), None, target.score)
        out.append(target)
    return out


def _disputes(other: Target, target: Target) -> bool:
    """Whether another target is a neighbour of this one, not a second opinion about it."""
    assert other.box is not None and target.box is not None
    return other.score >= _RIVAL * target.score and box_iou(other.box, target.box) < _APART


def part_windows(size: tuple[int, int]) -> list[Window]:
    """The parts of an image (height, width) that are looked at by themselves: (x0, y0, x1, y1) along its long side."""
    height, width = size
    long = max(size)
    if long < _SMALLEST:
        return []
    extent = round(_PART * long)
    starts = [round(i * (long - extent) / (_PARTS - 1)) for i in range(_PARTS)]
    return [(at, 0, at + extent, height) if width >= height else (0, at, width, at + extent) for at in starts]


def alone(targets: Sequence[Target], size: tuple[int, int]) -> bool:
    """Whether there is one target, and it is large in its image (height, width)."""
    if len(targets) != 1 or targets[0].box is None:
        return False
    x0, y0, x1, y1 = targets[0].box
    return (x1 - x0) * (y1 - y0) >= _LARGE * size[0] * size[1]


def merge_targets(
    whole: Sequence[Target], parts: Sequence[tuple[Window, Sequence[Target]]], size: tuple[int, int], least: float
) -> list[Target]:
    """What was found on an image and on parts of it, every object once, best first.

    Args:
        whole: Targets of the whole image.
        parts: Windows, and the targets found in them, in pixels of the window; those that are cut off are left out.
        size: (height, width) of the image in pixels.
        least: Smallest score of a target of the whole image.
    """
    found = [(target.score, target) for target in whole]
    for (x0, y0, x1, y1), targets in parts:
        cell = max(x1 - x0, y1 - y0) / _CELLS
        for target in targets:
            assert target.box is not None  # the locator says where
            left, top, right, bottom = target.box
            cut = (left < cell and x0 > 0) or (top < cell and y0 > 0)
            cut = cut or (right > x1 - x0 - cell and x1 < size[1]) or (bottom > y1 - y0 - cell and y1 < size[0])
            moved = Target((left + x0, top + y0, right + x0, bottom + y0), None, target.score)
            # Of an object that sticks out of the part, the whole image knows more.
            cut = cut or any(_same(moved, t) and not _within(t, (x0, y0, x1, y1), cell) for t in whole)
            if target.score >= _DOUBT * least and not cut:
                found.append((_CLOSER * target.score, moved))
    out: list[Target] = []
    for _, target in sorted(found, key=lambda item: -item[0]):
        if not any(_same(target, other) for other in out):
            out.append(target)
    return sorted(out, key=lambda target: -target.score)


def _within(target: Target, window: Window, slack: float) -> bool:
    """Whether a target does not stick out of a window by more than `slack` pixels."""
    assert target.box is not None
    (a, b, c, d), (x0, y0, x1, y1) = target.box, window
    return a >= x0 - slack and b >= y0 - slack and c <= x1 + slack and d <= y1 + slack


def _same(target: Target, better: Target) -> bool:
    """Whether a better target is the same object."""
    assert target.box is not None and better.box is not None
    (a, b, c, d), (e, f, g, h) = target.box, better.box
    inside = max(min(c, g) - max(a, e), 0.0) * max(min(d, h) - max(b, f), 0.0)
    return box_iou(target.box, better.box) >= _SAME or inside >= _WITHIN * (c - a) * (d - b)


def choose_clicks(
    mask: Mask, wanted: Float, view: View, rejected: Sequence[Click], *, least: float, away: float = 0.25,
    count: int = 1,
) -> list[Action]:  # fmt: skip
    """The next click: in the middle of the thickest disagreement, where the reviewer is sure; or Finish.

    Args:
        mask: The current mask, bool (H, W).
        wanted: Probability of the right mask over the view, float32 of any size.
        view: What `wanted` shows.
        rejected: Clicks not to be repeated, nor made next to.
        least: Disagreements thinner than this share of the object's extent are left alone.
        away: How far from rejected clicks, and from each other, relative to the depth of the error there.
        count: Clicks wanted, at most.

    Returns:
        Different clicks, best first, or one Finish.
    """
    x0, y0, x1, y1 = view.window
    # At about the resolution of the view's crop: large windows gain nothing from all of their pixels.
    scale = min(1.0, max(view.width, view.height) / max(x1 - x0, y1 - y0))
    width, height = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
    sx, sy = (x1 - x0) / width, (y1 - y0) / height
    right = np.asarray(cv2.resize(wanted, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    now = cv2.resize(mask[y0:y1, x0:x1].astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
    sure: Float = np.abs(2 * right - 1)
    extent = math.sqrt(max(int(np.count_nonzero(right > 0.5)), int(np.count_nonzero(now)), 1))
    found: list[tuple[float, Click]] = []
    for positive, error in ((True, (right > 0.5) & ~now), (False, now & (right <= 0.5))):
        error &= sure > _SURE
        padded = np.pad(error.astype(np.uint8), 1)
        depth = np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 3), np.float32)[1:-1, 1:-1]
        worth = depth * sure
        for click in rejected:
            x, y = round((click.x + 0.5 - x0) / sx - 0.5), round((click.y + 0.5 - y0) / sy - 0.5)
            if -1 < x < width and -1 < y < height:
                _forbid(worth, depth, x, y, away)
        for _ in range(count):
            row, column = divmod(int(worth.argmax()), width)
            if worth[row, column] <= least * extent:
                break
            click = Click(x0 + (column + 0.5) * sx - 0.5, y0 + (row + 0.5) * sy - 0.5, positive)
            found.append((float(worth[row, column]), click))
            # Other candidates are to be elsewhere: not only next to it.
            _forbid(worth, depth, column, row, max(away, 0.8))
    found.sort(key=lambda item: -item[0])
    clicks: list[Action] = [click for _, click in found[:count]]
    return clicks or [Finish()]


def _forbid(worth: Float, depth: Float, x: int, y: int, away: float) -> None:
    """Make the surroundings of a click worth nothing."""
    deep = float(depth[min(max(y, 0), depth.shape[0] - 1), min(max(x, 0), depth.shape[1] - 1)])
    cv2.circle(worth, (x, y), max(2, round(away * deep)), 0.0, -1)
