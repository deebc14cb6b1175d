"""Which images to annotate next: those that the agent is unsure about and that look like nothing seen so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..agent.agent import SegAgent
from ..agent.rollout import Rollout
from ..hlmat.arrays import Image, Mask
from .evaluation import match_masks

__all__ = ["labelling_order", "look_twice", "uncertainty"]

_NOTHING_FOUND = 0.5
"""Uncertainty of an image in which nothing was found: it is empty, or the agent is blind to what is there."""


def uncertainty(found: Sequence[Rollout], again: Sequence[Mask]) -> float:
    """How unsure the agent is about one label in one image, in [0, 1].

    Args:
        found: Its rollouts.
        again: Masks that it drew when it looked at the mirrored image, mirrored back; where they differ it guessed.
    """
    if not found and not again:
        return _NOTHING_FOUND
    ious, extra = match_masks(list(again), [r.mask for r in found])
    agreement = sum(ious) / (len(ious) + extra)
    ratings = [min(max(r.predicted_iou, 0.0), 1.0) for r in found]
    return 1.0 - agreement * (float(np.mean(ratings)) if ratings else 0.0)


def look_twice(agent: SegAgent, items: Sequence[tuple[Image, str]]) -> tuple[list[list[Rollout]], float]:
    """Segment a task's pictures as they are and mirrored, and compare.

    Args:
        agent: Whose doubts they are.
        items: Pictures, RGB uint8 (H, W, 3), with the labels to look for.

    Returns:
        The rollouts on the pictures as they are; how unsure the agent is about the task, in [0, 1].
    """
    found = agent.segment_all_batch(items)
    again = agent.segment_all_batch([(np.ascontiguousarray(image[:, ::-1]), prompt) for image, prompt in items])
    doubts = [
        uncertainty(here, [np.ascontiguousarray(r.mask[:, ::-1]) for r in there])
        for here, there in zip(found, again, strict=True)
        if here or there
    ]
    # Labels that are nowhere to be seen say nothing; where there is none at all, that is all there is to say.
    return found, float(np.mean(doubts)) if doubts else uncertainty([], [])


def labelling_order(
    unsure: npt.NDArray[Any], features: npt.NDArray[Any], known: npt.NDArray[Any] | None = None
) -> list[int]:
    """All images, the most instructive first: the product of uncertainty and distance to what is known decides.

    Each image counts as known once it is in the order, so that of many alike only one comes early
    (k-center greedy, arXiv 1708.00489, weighed by uncertainty).

    Args:
        unsure: (n,) in [0, 1].
        features: (n, d), one row an image.
        known: (m, d), those of annotated images.
    """
    count = len(unsure)
    if not count:
        return []
    both = np.concatenate([features, known]) if known is not None and len(known) else np.asarray(features)
    both = np.asarray(both, np.float64)
    both = (both - both.mean(0)) / (both.std(0) + 1e-6)
    rows, rest = both[:count], both[count:]
    # Nothing is known yet: everything is equally far from it.
    distance = np.full(count, np.inf)
    for row in rest:
        distance = np.minimum(distance, np.linalg.norm(rows - row, axis=1))
    far = float(np.linalg.norm(rows.max(0) - rows.min(0))) + 1e-9
    order: list[int] = []
    left = np.ones(count, bool)
    for _ in range(count):
        worth = np.where(left, (0.05 + unsure) * (0.05 + np.minimum(distance, far) / far), -1.0)
        chosen = int(worth.argmax())
        order.append(chosen)
        left[chosen] = False
        distance = np.minimum(distance, np.linalg.norm(rows - rows[chosen], axis=1))
    return order
