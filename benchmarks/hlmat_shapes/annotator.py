"""F_sim for the shapes: the same clicks, moved to a grid where that changes nothing, so that there is less to learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from typing_extensions import override

from label_studio_segagent.hlmat.actions import Action, Click
from label_studio_segagent.hlmat.annotator import SimulatedAnnotator
from label_studio_segagent.hlmat.arrays import Mask

__all__ = ["GridAnnotator", "snapped"]

GRID = 4
"""Pixels between the places that are clicked."""


@dataclass(frozen=True)
class GridAnnotator(SimulatedAnnotator):
    """Clicks on a grid wherever the error that is meant reaches a point of it."""

    stop_iou: float = 0.95

    @override
    def next_action(self, mask: Mask, target: Mask, clicked: Sequence[Click] = (), void: Mask | None = None) -> Action:
        action = super().next_action(mask, target, clicked, void)
        if not isinstance(action, Click):
            return action
        wrong = target & ~mask if action.positive else mask & ~target
        for click in clicked:
            wrong[click.pixel(*wrong.shape)] = False
        return snapped(action, wrong)


def snapped(click: Click, region: Mask) -> Click:
    """The point of the grid nearest to a click among those deep in the connected part of `region` that it is in."""
    row, column = click.pixel(*region.shape)
    _, parts = cv2.connectedComponents(region.astype(np.uint8), connectivity=4)
    part = parts == parts[row, column]
    depth = cv2.distanceTransform(np.pad(part, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    points = depth[GRID // 2 :: GRID, GRID // 2 :: GRID]
    if points.max(initial=0.0) < 1.5:  # the edge of a part is no place to click
        return click
    rows, columns = np.nonzero(points >= 0.6 * points.max())
    rows, columns = rows * GRID + GRID // 2, columns * GRID + GRID // 2
    best = int(np.argmin((rows - row) ** 2 + (columns - column) ** 2))
    return Click(float(columns[best]), float(rows[best]), click.positive)
