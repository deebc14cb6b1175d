"""The simulated annotator F_sim: where a careful person would click next, given the target mask.

Source: SegAgent (arXiv 2503.08625), section 3; the same rule as the NoC protocol of RITM and others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ..defaults import ANNOTATOR_STOP_IOU
from .actions import Action, Click, Finish
from .arrays import Mask
from .metrics import iou

__all__ = ["SimulatedAnnotator"]


@dataclass(frozen=True)
class SimulatedAnnotator:
    """Clicks in the middle of the largest error until the mask is good enough.

    Attributes:
        stop_iou: Finish at this IoU with the target; the released code uses 0.98.
        jitter: Standard deviation in pixels of a Gaussian shift of each click (real annotators do not hit centres).
            A shifted click stays inside the connected error it is meant for.
        seed: Of the jitter.
    """

    stop_iou: float = ANNOTATOR_STOP_IOU
    jitter: float = 0.0
    seed: int = 0

    def next_action(self, mask: Mask, target: Mask, clicked: Sequence[Click] = (), void: Mask | None = None) -> Action:
        """The next click for `mask`, or Finish.

        Args:
            mask: The current mask, bool (H, W).
            target: The mask wanted, bool (H, W).
            clicked: Clicks made so far; their pixels are not clicked again.
            void: Pixels that count as neither right nor wrong, bool (H, W).

        Returns:
            Positive in the middle of the largest missing part or negative in the middle of the largest superfluous
            part, whichever is thicker; Finish when `stop_iou` is reached or no clickable error is left.
        """
        if iou(mask, target, void) >= self.stop_iou:
            return Finish()
        valid = np.ones_like(target) if void is None else ~void
        missing, extra = target & ~mask & valid, mask & ~target & valid
        depth_missing, depth_extra = _depth(missing, clicked), _depth(extra, clicked)
        positive = bool(depth_missing.max() >= depth_extra.max())
        depth = depth_missing if positive else depth_extra
        if depth.max() <= 0:
            return Finish()
        row, column = divmod(int(depth.argmax()), depth.shape[1])
        if self.jitter:
            _, parts = cv2.connectedComponents((depth > 0).astype(np.uint8))
            row, column = self._shift(row, column, parts == parts[row, column], len(clicked))
        return Click(float(column), float(row), positive)

    def _shift(self, row: int, column: int, inside: Mask, step: int) -> tuple[int, int]:
        rng = np.random.default_rng((self.seed, step, row, column))
        for _ in range(20):
            y, x = np.rint(np.array([row, column]) + rng.normal(0, self.jitter, 2)).astype(int)
            if 0 <= y < inside.shape[0] and 0 <= x < inside.shape[1] and inside[y, x]:
                return int(y), int(x)
        return row, column


def _depth(error: Mask, clicked: Sequence[Click]) -> npt.NDArray[np.float32]:
    """Distance of each error pixel to the nearest correct one; the image border counts as correct."""
    padded = np.pad(error, 1).astype(np.uint8)
    depth = np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)[1:-1, 1:-1]
    for click in clicked:
        depth[click.pixel(*error.shape)] = 0
    return depth
