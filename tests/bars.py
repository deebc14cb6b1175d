"""Bars on noise, and a brush that needs three clicks for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from label_studio_segagent.hlmat.actions import Click
from label_studio_segagent.hlmat.arrays import Image
from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.segmenters import ImageState, Segmentation, Segmenter

RADIUS = 8


class Brush(Segmenter):
    """Paints or wipes out a square around each click."""

    version = "brush"

    @override
    def set_image(self, image: Image) -> ImageState:
        return ImageState(image)

    @override
    def predict(self, state: ImageState, clicks: Sequence[Click], *, box: Any = None, prior: Any = None) -> Any:
        mask = np.zeros(state.size, bool)
        for click in clicks:
            row, column = click.pixel(*state.size)
            mask[max(0, row - RADIUS) : row + RADIUS, max(0, column - RADIUS) : column + RADIUS] = click.positive
        return Segmentation(mask, 1.0, np.where(mask, 4, -4).astype(np.float32))


def sample(seed: int = 0, top: int = 16) -> Sample:
    """A target of 16 rows by 48 columns: three squares of the brush beside each other."""
    mask = np.zeros((64, 64), bool)
    mask[top : top + 16, 8:56] = True
    image = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image[mask] //= 4
    return Sample(image, "bar", mask, id=f"bar-{seed}")
