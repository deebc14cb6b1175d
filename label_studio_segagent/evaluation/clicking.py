"""IoU against clicks: of a rollout with and without its ratings, and of the simulated annotator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..agent.rollout import Rollout
from ..hlmat.actions import Click
from ..hlmat.annotator import SimulatedAnnotator
from ..hlmat.arrays import Mask
from ..hlmat.metrics import iou
from ..hlmat.trajectory import Sample
from ..policies.base import Decision, Observation, Policy
from ..segmenters.base import ImageState, Segmenter

__all__ = ["JITTER", "NOC_CLICKS", "Blind", "click_curve", "simulated_curve"]

NOC_CLICKS = 20
"""Clicks of the simulated annotator, as in the published protocol."""
JITTER = 0.05
"""How far jittered clicks are off (standard deviation), as a share of the object's extent: the root of its area."""
_NOC_ENOUGH = 0.9
_NOC_LEAST = 5
"""Clicks that are made even when the mask is good enough, for the mean IoU per click."""


class Blind(Policy):
    """Another policy without its ratings.

    Args:
        policy: The other one.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.grammar, self.version = policy, policy.grammar, f"blind-{policy.version}"

    def locate_batch(self, items: Sequence[tuple[Any, str]]) -> list[list[Any]]:  # noqa: D102
        return self.policy.locate_batch(items)

    def act(self, observations: Sequence[Observation]) -> list[Decision]:  # noqa: D102
        return [replace(decision, predicted_iou=None) for decision in self.policy.act(observations)]


def simulated_curve(segmenter: Segmenter, state: ImageState, sample: Sample, jitter: float = 0.0) -> list[float]:
    """IoU after each click of the simulated annotator on a segmenter; empty where nothing can be clicked.

    It clicks until IoU 0.9, at least 5 times and at most 20: enough for NoC@90 and below.

    Args:
        segmenter: Answers.
        state: Of the image.
        sample: The object.
        jitter: How far clicks are off, like `JITTER`; real annotators do not hit centres.
    """
    mask, prior = np.zeros_like(sample.mask), None
    annotator = SimulatedAnnotator(stop_iou=1.0, jitter=jitter * float(np.sqrt(np.count_nonzero(sample.mask))))
    clicks: list[Click] = []
    ious: list[float] = []
    while len(clicks) < NOC_CLICKS and (len(clicks) < _NOC_LEAST or max(ious) < _NOC_ENOUGH):
        click = annotator.next_action(mask, sample.mask, clicks, sample.void)
        if not isinstance(click, Click):
            break
        clicks.append(click)
        answer = segmenter.predict(state, clicks, prior=prior)
        mask, prior = answer.mask, answer.logits
        ious.append(iou(mask, sample.mask, sample.void))
    return ious


def click_curve(
    rollout: Rollout, target: Mask, void: Mask | None = None
) -> tuple[list[float], list[float | None], list[float]]:
    """IoU, rating, and IoU of the best-rated mask so far: of the start mask, then after each click that was kept.

    The rating of the mask that a click made is in the step after it, as answers rate the mask that they are shown.

    Args:
        rollout: Of the agent.
        target: The true mask, bool (H, W).
        void: Pixels that do not count, bool (H, W).
    """
    steps = rollout.trajectory.steps
    kept = [i for i, step in enumerate(steps[:-1]) if isinstance(step.action, Click) and not step.undone]
    shown = [steps[0], *(steps[i + 1] for i in kept)]
    ious = [iou(step.mask, target, void) for step in shown]
    rated: list[float] = []
    best, worth = ious[0], 0.0
    for step, value in zip(shown, ious, strict=True):
        # As in `agent.rollout`: without a rating there is no reason to prefer an earlier mask.
        if step.predicted_iou is None or step.predicted_iou >= worth:
            best, worth = value, worth if step.predicted_iou is None else step.predicted_iou
        rated.append(best)
    rated[-1] = iou(rollout.mask, target, void)
    return ious, [step.predicted_iou for step in shown], rated
