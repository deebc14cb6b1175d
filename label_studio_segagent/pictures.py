"""Pictures for people: a trajectory as a strip, many results as a sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

from .agent.rollout import Rollout
from .hlmat.actions import Click
from .hlmat.arrays import Box, Image, Mask, mask_box
from .hlmat.overlay import draw_clicks, overlay
from .hlmat.trajectory import Step, Trajectory

__all__ = ["annotator_strip", "result_panel", "sheet", "trajectory_strip"]

_HEIGHT = 260
_WIDEST = 1040
_CAPTION = 46
_GAP = 8
_COLUMNS = 5
_MARGIN = 0.4
"""Of what is shown around a small object, over its sides."""
_LEAST_MARGIN = 24


def trajectory_strip(
    image: Image, rollout: Rollout, true_iou: float | None = None, target: Mask | None = None
) -> Image:
    """One rollout as a row of pictures: the image, then each mask with the click that follows, then the result.

    Args:
        image: RGB uint8 (H, W, 3).
        rollout: What happened on it.
        true_iou: IoU of the result with the ground truth, where that is known.
        target: The ground truth, bool (H, W), to be shown at the end.

    Returns:
        RGB uint8.
    """
    prompt = rollout.trajectory.prompt
    box = rollout.trajectory.box
    panels = [_panel(_boxed(image, box), f'"{prompt}"', "start" if box is None else "start: a box around the object")]
    for step in rollout.trajectory.steps:
        rating = "not rated" if step.predicted_iou is None else f"predicted IoU {step.predicted_iou:.2f}"
        panels.append(_step_panel(image, step, len(panels), rating, rollout.stopped))
    truth = "" if true_iou is None else f", true {true_iou:.2f}"
    panels.append(result_panel(image, [rollout.mask], "result", f"predicted IoU {rollout.predicted_iou:.2f}{truth}"))
    if target is not None:
        panels.append(result_panel(image, [target], "the true mask", ""))
    return sheet(panels)


def annotator_strip(image: Image, trajectory: Trajectory) -> Image:
    """A trajectory of the simulated annotator as a row of pictures: the target, then each mask with its click.

    Only the part of the image is shown where something happens, so that small objects can be seen.

    Args:
        image: RGB uint8 (H, W, 3).
        trajectory: With the true mask as `target`, and `kind` and `stopped` in its meta.

    Returns:
        RGB uint8.
    """
    target, meta = trajectory.target, trajectory.meta
    view = _View.of(trajectory, image.shape[0], image.shape[1])
    shown = view.part(image)
    start = _boxed(shown, None if trajectory.box is None else view.box(trajectory.box))
    masks = [] if target is None else [view.part(target)]
    panels = [result_panel(start, masks, f'"{trajectory.prompt}"', f"the true mask; kind: {meta.get('kind', '-')}")]
    for step in trajectory.steps:
        rating = "IoU not known" if step.true_iou is None else f"IoU {step.true_iou:.2f}"
        panels.append(_step_panel(shown, step, len(panels), rating, str(meta.get("stopped", "")), view))
    return sheet(panels)


@dataclass(frozen=True, slots=True)
class _View:
    """A part of an image, perhaps enlarged: the first and past the last row and column, and how many times."""

    top: int
    left: int
    bottom: int
    right: int
    zoom: int = 1

    @classmethod
    def of(cls, trajectory: Trajectory, height: int, width: int) -> _View:
        """What is around target, masks, box and clicks, with a margin."""
        target = trajectory.target
        boxes = [mask_box(step.mask) for step in trajectory.steps] + [trajectory.box]
        boxes += [mask_box(target)] if target is not None else []
        boxes += [(click.x, click.y, click.x, click.y) for click in trajectory.clicks]
        found = [box for box in boxes if box is not None] or [(0.0, 0.0, float(width), float(height))]
        spans = []
        for axis, limit in ((1, height), (0, width)):
            low, high = min(b[axis] for b in found), max(b[axis + 2] for b in found)
            margin = max((high - low) * _MARGIN, _LEAST_MARGIN)
            spans.append((max(0, round(low - margin)), min(limit, round(high + margin))))
        (top, bottom), (left, right) = spans
        return cls(top, left, bottom, right, max(1, _HEIGHT // min(bottom - top, right - left)))

    def part(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """This part of an image or a mask."""
        cut = array[self.top : self.bottom, self.left : self.right]
        return cut.repeat(self.zoom, axis=0).repeat(self.zoom, axis=1)

    def box(self, box: Box) -> Box:
        x0, y0, x1, y1 = box
        z = self.zoom
        return (x0 - self.left) * z, (y0 - self.top) * z, (x1 - self.left) * z, (y1 - self.top) * z

    def click(self, click: Click) -> Click:
        x, y = ((v - first + 0.5) * self.zoom - 0.5 for v, first in ((click.x, self.left), (click.y, self.top)))
        return replace(click, x=x, y=y)


def _step_panel(image: Image, step: Step, number: int, rating: str, stopped: str, view: _View | None = None) -> Image:
    """One state; `view` is what `image` shows of the whole image, which it is by default."""
    picture = overlay(image, step.mask if view is None else view.part(step.mask))
    click = step.action
    if not isinstance(click, Click):
        return _panel(picture, rating, f"stop: {stopped}")
    sign = "+" if click.positive else "-"
    undone = ", undone" if step.undone else ""
    picture = draw_clicks(picture, [click if view is None else view.click(click)], first=number)
    return _panel(picture, rating, f"click {number}: {sign} ({click.x:g}, {click.y:g}){undone}")


def result_panel(image: Image, masks: Sequence[Mask], title: str, subtitle: str) -> Image:
    """An image, RGB uint8 (H, W, 3), with outlined masks, bool (H, W), and two lines of text under it; RGB uint8."""
    for mask in masks:
        image = _outlined(image, mask)
    return _panel(image, title, subtitle)


def sheet(pictures: Sequence[Image], columns: int = _COLUMNS) -> Image:
    """Pictures, RGB uint8 of any size, in rows of `columns`, on white."""
    rows = [list(pictures[i : i + columns]) for i in range(0, len(pictures), columns)]
    widths = [sum(p.shape[1] + _GAP for p in row) + _GAP for row in rows]
    heights = [max(p.shape[0] for p in row) + _GAP for row in rows]
    out = np.full((sum(heights) + _GAP, max(widths), 3), 255, np.uint8)
    y = _GAP
    for row, height in zip(rows, heights, strict=True):
        x = _GAP
        for picture in row:
            out[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
            x += picture.shape[1] + _GAP
        y += height
    return out


def _boxed(image: Image, box: Box | None) -> Image:
    if box is None:
        return image
    corners = [round(value) for value in box]
    width = max(2, round(min(image.shape[:2]) * 0.007))
    return np.asarray(cv2.rectangle(image.copy(), corners[:2], corners[2:], (255, 220, 0), width), np.uint8)


def _outlined(image: Image, mask: Mask) -> Image:
    out = overlay(image, mask, alpha=0.35)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    width = max(2, round(min(image.shape[:2]) * 0.007))
    return np.asarray(cv2.drawContours(out, contours, -1, (255, 220, 0), width, cv2.LINE_AA), np.uint8)


def _panel(picture: Image, title: str, subtitle: str) -> Image:
    """A picture at a common height with two lines of text under it."""
    scale = min(_HEIGHT / picture.shape[0], _WIDEST / picture.shape[1])
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    resized = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    width = max(190, size[0])
    canvas = np.full((_HEIGHT + _CAPTION, width, 3), 255, np.uint8)
    left, top = (width - size[0]) // 2, (_HEIGHT - size[1]) // 2
    canvas[top : top + size[1], left : left + size[0]] = resized
    page = PilImage.fromarray(canvas)
    draw = ImageDraw.Draw(page)
    draw.text((2, _HEIGHT + 3), title, fill=(20, 20, 20), font=ImageFont.load_default(16))
    draw.text((2, _HEIGHT + 24), subtitle, fill=(90, 90, 90), font=ImageFont.load_default(14))
    return np.array(page)
