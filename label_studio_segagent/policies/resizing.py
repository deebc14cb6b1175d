"""The size in which a model sees an image, and putting the image into it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from ..hlmat.arrays import Image

__all__ = ["Resize", "resized"]

_LONGEST = 200
"""Qwen's processors refuse images whose sides have a greater ratio than this."""


@dataclass(frozen=True, slots=True)
class Resize:
    """(height, width) of an image -> (height, width) that the model sees, all in pixels.

    Like Qwen-VL's processor: sides are multiples of `factor`, the area is kept between `least` and `most` pixels, and
    the shape as far as that allows. The result is a fixed point, so a processor with the same numbers leaves it alone.

    Attributes:
        most: Greatest area in pixels.
        factor: What sides are multiples of.
        least: Smallest area in pixels.
    """

    most: int
    factor: int = 28
    least: int = 56 * 56

    def __call__(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size for the model."""
        longest = max(size)
        height, width = (max(side, math.ceil(longest / _LONGEST)) for side in size)
        factor, area = self.factor, height * width
        shown = [max(factor, round(side / factor) * factor) for side in (height, width)]
        if shown[0] * shown[1] > self.most:
            scale = math.sqrt(self.most / area)
            shown = [max(factor, math.floor(side * scale / factor) * factor) for side in (height, width)]
        elif shown[0] * shown[1] < self.least:
            scale = math.sqrt(self.least / area)
            shown = [math.ceil(side * scale / factor) * factor for side in (height, width)]
        # Rounding may have made a long image longer than allowed, and `max` may have made it larger than allowed.
        while max(shown) > _LONGEST * min(shown) or (shown[0] * shown[1] > self.most and max(shown) > factor):
            shown[shown.index(max(shown))] -= factor
        return shown[0], shown[1]


def resized(image: Image, size: tuple[int, int]) -> Image:
    """An RGB uint8 (H, W, 3) image at another (height, width); itself when it has that size already."""
    if image.shape[:2] == size:
        return image
    smaller = size[0] * size[1] < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(image), (size[1], size[0]), interpolation=method), np.uint8)
