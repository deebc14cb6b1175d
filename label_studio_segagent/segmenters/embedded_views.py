"""Views: the windows of an image that the embedded segmenter looks at, and the way between the two frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..hlmat.actions import Click
from ..hlmat.arrays import Box, Image, Mask

__all__ = ["View", "Window", "object_box", "resize_map", "without_strays", "zoom_window"]

Float = npt.NDArray[np.float32]
Window = tuple[int, int, int, int]
_NEAR = 0.1
"""Share of a box by which an object may stick out of it, and share of a part that must be in it."""
_SURE = 4.0


@dataclass(frozen=True, slots=True)
class View:
    """A window of an image, resized.

    Attributes:
        window: (x0, y0, x1, y1) in whole pixels of the image, x1 and y1 exclusive.
        height: Of the crop that the network sees; divisible by 32.
        width: Likewise.
    """

    window: Window
    height: int
    width: int

    @classmethod
    def of(cls, window: Window, side: int) -> View:
        """The view of `window` whose crop has a long side of about `side`."""
        w, h = window[2] - window[0], window[3] - window[1]
        scale = side / max(w, h)
        return cls(window, max(64, round(h * scale / 32) * 32), max(64, round(w * scale / 32) * 32))

    def crop(self, image: Image) -> Image:
        """The pixels that the network sees, uint8 (height, width, 3)."""
        x0, y0, x1, y1 = self.window
        return np.asarray(resize_map(image[y0:y1, x0:x1], self.height, self.width), np.uint8)

    def points(self, clicks: Sequence[Click]) -> Float:
        """The clicks inside the window as float32 (K, 3): x and y in pixels of the crop, and the sign."""
        x0, y0, x1, y1 = self.window
        rows = [
            ((c.x + 0.5 - x0) * self.width / (x1 - x0) - 0.5, (c.y + 0.5 - y0) * self.height / (y1 - y0) - 0.5,
             1.0 if c.positive else -1.0)
            for c in clicks if x0 - 0.5 <= c.x < x1 - 0.5 and y0 - 0.5 <= c.y < y1 - 0.5
        ]  # fmt: skip
        return np.asarray(rows, np.float32).reshape(-1, 3)

    def box(self, box: Box | None) -> Float:
        """A box in pixels of the crop; all zero when there is none."""
        if box is None:
            return np.zeros(4, np.float32)
        x0, y0, x1, y1 = self.window
        sx, sy = self.width / (x1 - x0), self.height / (y1 - y0)
        return np.array([(box[0] - x0) * sx, (box[1] - y0) * sy, (box[2] - x0) * sx, (box[3] - y0) * sy], np.float32)

    def cut(self, whole: Float, size: tuple[int, int]) -> Float:
        """The part of a map of the whole image (any resolution) that this view shows, at stride 4 of the crop.

        Args:
            whole: float32 (h, w) over the whole image.
            size: (height, width) of the image.
        """
        x0, y0, x1, y1 = self.window
        height, width = self.height // 4, self.width // 4
        if (x0, y0, x1, y1) == (0, 0, size[1], size[0]):
            return resize_map(whole, height, width)
        fx, fy = whole.shape[1] / size[1], whole.shape[0] / size[0]
        step = max((x1 - x0) * fx / width, (y1 - y0) * fy / height)
        if step > 1.5:
            # Average before sampling more coarsely than the map.
            blurred = cv2.blur(whole, (round(step), round(step)), borderType=cv2.BORDER_REPLICATE)
            whole = np.asarray(blurred, np.float32)
        xs = ((np.arange(width, dtype=np.float32) + 0.5) / width * (x1 - x0) + x0) * fx - 0.5
        ys = ((np.arange(height, dtype=np.float32) + 0.5) / height * (y1 - y0) + y0) * fy - 0.5
        columns, rows = np.meshgrid(xs, ys)
        cut = cv2.remap(whole, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(cut, np.float32)

    def contains(self, box: Box) -> bool:
        """Whether `box` lies inside the window."""
        x0, y0, x1, y1 = self.window
        return x0 <= box[0] and y0 <= box[1] and box[2] <= x1 and box[3] <= y1


def resize_map(array: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    """Resize, averaging when shrinking and interpolating when enlarging; same dtype."""
    if array.shape[:2] == (height, width):
        return array
    shrinking = array.shape[0] > height or array.shape[1] > width
    mode = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(array, (width, height), interpolation=mode))


def object_box(mask: Mask, positives: Sequence[tuple[float, float]], least: float = 0.03) -> Box | None:
    """The box around a mask without its specks.

    Args:
        mask: bool (h, w).
        positives: (x, y) in pixels of the mask; the parts under them count however small.
        least: Parts smaller than this share of the largest one are specks.

    Returns:
        (x0, y0, x1, y1) in pixels of the mask, or None when it is empty.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return None
    keep = stats[:, cv2.CC_STAT_AREA] >= least * stats[1:, cv2.CC_STAT_AREA].max()
    for x, y in positives:
        keep[labels[min(max(int(y), 0), mask.shape[0] - 1), min(max(int(x), 0), mask.shape[1] - 1)]] = True
    keep[0] = False
    kept = stats[keep]
    left, top = kept[:, cv2.CC_STAT_LEFT], kept[:, cv2.CC_STAT_TOP]
    right, bottom = left + kept[:, cv2.CC_STAT_WIDTH], top + kept[:, cv2.CC_STAT_HEIGHT]
    return float(left.min()), float(top.min()), float(right.max()), float(bottom.max())


def zoom_window(box: Box, size: tuple[int, int], expand: float, least: float) -> Window:
    """The window around `box` to zoom into: enlarged, not below `least` pixels a side, inside the image.

    Args:
        box: (x0, y0, x1, y1) in pixels of the image.
        size: (height, width) of the image.
        expand: Side of the window over side of the box.
        least: Smallest side in pixels.
    """
    height, width = size
    # Narrow objects get surroundings in proportion to their long side.
    long_side = max(box[2] - box[0], box[3] - box[1])
    edges: list[int] = []
    for low, high, limit in ((box[0], box[2], width), (box[1], box[3], height)):
        side = max((high - low) + (expand - 1) * (0.5 * (high - low) + 0.5 * long_side), least)
        start, end = (low + high - side) / 2, (low + high + side) / 2
        first = min(max(0, int(np.floor(start))), limit - 1)
        edges += [first, max(min(limit, int(np.ceil(end))), first + 1)]
    return edges[0], edges[2], edges[1], edges[3]


def without_strays(logits: Float, box: Float, clicks: Float) -> Float:
    """Logits without the parts that lie outside of the box and that nobody clicked.

    Args:
        logits: (h, w), at half the resolution of a view's crop.
        box: (x0, y0, x1, y1) in pixels of the crop.
        clicks: (K, 3), x and y in pixels of the crop, and the sign.
    """
    count, parts, stats, _ = cv2.connectedComponentsWithStats((logits > 0).astype(np.uint8), connectivity=8)
    if count <= 2:
        return logits
    margin = _NEAR * (box[2:] - box[:2])
    x0, y0 = np.maximum(np.floor((box[:2] - margin) / 2), 0).astype(int)
    x1, y1 = np.maximum(np.ceil((box[2:] + margin) / 2), 0).astype(int)
    inside = np.bincount(parts[y0:y1, x0:x1].ravel(), minlength=count)
    stray = inside < _NEAR * stats[:, cv2.CC_STAT_AREA]
    places = np.clip(np.rint(clicks[:, :2] / 2).astype(int), 0, np.array(logits.shape[::-1]) - 1)
    stray[parts[places[:, 1], places[:, 0]][clicks[:, 2] > 0]] = False
    stray[0] = False
    return np.asarray(np.where(stray[parts], np.minimum(logits, -_SURE), logits), np.float32)
