"""The benchmark's segmentation tool: a magic wand with a limited reach, as image editors have it.

Each click takes the connected pixels of about its colour within reach; a positive click adds them to the mask, a
negative one removes them. It is quick and honest: two-tone and large shapes need several clicks, it leaks into
neighbours of like colour, and a click beside the shape takes up the ground.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from typing_extensions import override

from label_studio_segagent.hlmat.actions import Click
from label_studio_segagent.hlmat.arrays import Box, Image, Mask, check_image
from label_studio_segagent.segmenters import ImageState, Segmentation, Segmenter

__all__ = ["WandSegmenter"]

_REACH = 11
"""Pixels around a click."""
_TOLERANCE = 26
"""Of each colour channel, 0-255."""


class WandSegmenter(Segmenter):
    """Adds or removes what is connected to a click and has its colour. A box is not used."""

    version = f"wand-1-{_REACH}-{_TOLERANCE}"

    @override
    def set_image(self, image: Image) -> ImageState:
        check_image(image)
        return ImageState(image, cv2.medianBlur(np.ascontiguousarray(image), 3))

    @override
    def predict(
        self,
        state: ImageState,
        clicks: Sequence[Click],
        *,
        box: Box | None = None,
        prior: npt.NDArray[Any] | None = None,
    ) -> Segmentation:
        mask, left = np.zeros(state.size, bool), clicks
        if prior is not None:
            mask = cv2.resize((prior > 0).astype(np.uint8), state.size[::-1], interpolation=cv2.INTER_NEAREST) > 0
            left = clicks if prior.dtype == bool else clicks[-1:]  # logits hold the earlier clicks already
        for click in left:
            region = _region(state.features, click)
            mask = mask | region if click.positive else mask & ~region
        return Segmentation(mask, 1.0 if mask.any() else 0.0, np.where(mask, 4, -4).astype(np.float32))


def _region(image: Image, click: Click) -> Mask:
    height, width = image.shape[:2]
    row, column = click.pixel(height, width)
    barrier = np.ones((height + 2, width + 2), np.uint8)
    cv2.circle(barrier, (column + 1, row + 1), _REACH, 0, -1)
    fixed = 4 | cv2.FLOODFILL_FIXED_RANGE | cv2.FLOODFILL_MASK_ONLY | (2 << 8)
    cv2.floodFill(image, barrier, (column, row), 0, (_TOLERANCE,) * 3, (_TOLERANCE,) * 3, fixed)
    return np.asarray(barrier[1:-1, 1:-1] == 2)
