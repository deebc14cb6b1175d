"""What the agent has to say about a mask: how it rates it, and what it would have drawn itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from ..agent.agent import SegAgent
from ..hlmat.arrays import Box, Image, Mask, mask_box
from ..hlmat.metrics import boundary_iou, box_iou, iou
from ..policies.base import Target

__all__ = ["Evidence", "Judged", "gather"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Numbers in [0, 1] about a mask, larger for better ones; together they make its quality score.

    Attributes:
        rating: The policy's predicted IoU of the mask.
        agreement: IoU of the mask with the agent's refinement of it.
        boundary: Boundary IoU with that.
        boxed: IoU with what the segmenter draws in the mask's box.
        boxed_boundary: Boundary IoU with that.
        boxed_score: The segmenter's own score of that.
        located: Box IoU with the target of the label that fits best.
        certainty: The policy's score of that target.
        size: Share of the image that the mask covers, on a logarithmic scale: 1 for all, 0 for a millionth.
    """

    rating: float
    agreement: float
    boundary: float
    boxed: float
    boxed_boundary: float
    boxed_score: float
    located: float
    certainty: float
    size: float

    def row(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """The numbers, float64 (9,), in the order of the attributes."""
        return np.asarray(astuple(self), np.float64)


@dataclass(frozen=True, slots=True)
class Judged:
    """A mask and what was found out about it.

    Attributes:
        mask: bool (H, W).
        prompt: Its label.
        evidence: See there.
        refined: What the agent made of it, bool (H, W).
        refined_rating: The policy's rating of that.
        target: The target of the label that fits best, or None.
    """

    mask: Mask
    prompt: str
    evidence: Evidence
    refined: Mask
    refined_rating: float
    target: Target | None


def gather(
    agent: SegAgent, image: Image, items: Sequence[tuple[str, Mask]], targets: dict[str, list[Target]] | None = None
) -> list[Judged]:
    """Look at masks of one image.

    Args:
        agent: Judges.
        image: RGB uint8 (H, W, 3).
        items: (label, mask), masks bool (H, W), not empty.
        targets: Filled with what the policy locates for each label, when given.

    Raises:
        InputError: A mask is not of the image's size.
    """
    found: dict[str, list[Target]] = {} if targets is None else targets
    for prompt in dict.fromkeys(prompt for prompt, _ in items):
        if prompt not in found:
            [found[prompt]] = agent.policy.locate_batch([(image, prompt)])
    state = agent.encode(image)
    judged = []
    for prompt, mask in items:
        rollout = agent.refine(image, prompt, mask)
        first = rollout.trajectory.steps[0].predicted_iou
        box = mask_box(mask)
        assert box is not None
        drawn = agent.segmenter.predict(state, (), box=box)
        target, overlap = _best_target(found[prompt], box)
        judged.append(Judged(
            mask, prompt,
            Evidence(
                rating=_unit(rollout.predicted_iou if first is None else first),
                agreement=iou(mask, rollout.mask), boundary=boundary_iou(mask, rollout.mask),
                boxed=iou(mask, drawn.mask), boxed_boundary=boundary_iou(mask, drawn.mask),
                boxed_score=_unit(drawn.score), located=overlap,
                certainty=0.0 if target is None else _unit(target.score),
                size=_unit(1 + math.log10(max(float(mask.mean()), 1e-6)) / 6),
            ),
            rollout.mask, _unit(rollout.predicted_iou), target,
        ))  # fmt: skip
    return judged


def _best_target(targets: Sequence[Target], box: Box) -> tuple[Target | None, float]:
    """The target that fits a box best, and how well: box IoU; a point inside of the box fits it by half."""

    def fit(target: Target) -> float:
        if target.box is not None:
            return box_iou(target.box, box)
        assert target.point is not None
        x, y = target.point
        return 0.5 if box[0] <= x <= box[2] and box[1] <= y <= box[3] else 0.0

    best = max(targets, key=fit, default=None)
    return (None, 0.0) if best is None or fit(best) == 0 else (best, fit(best))


def _unit(value: float) -> float:
    return min(max(float(value), 0.0), 1.0) if math.isfinite(value) else 0.0
