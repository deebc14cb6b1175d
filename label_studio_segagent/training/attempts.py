"""Attempts of a policy, step by step: clicks that raised the IoU are kept, other actions are the annotator's.

Source: SegAgent (arXiv 2503.08625), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from ..defaults import MAX_CLICKS, STAR_ROUNDS
from ..hlmat.actions import Action, Click, Finish
from ..hlmat.annotator import SimulatedAnnotator
from ..hlmat.arrays import Mask
from ..hlmat.metrics import iou
from ..hlmat.trajectory import Sample, Step, Trajectory
from ..policies.base import Observation, Policy
from ..segmenters.base import ImageState, Query, Segmentation, Segmenter
from ..segmenters.cache import EmbeddingCache
from .trainer import FitSettings, Progress

__all__ = ["StarSettings", "Tally", "annotate", "attempt", "image_name", "true_iou"]

_AT_ONCE = 16
"""Rollouts in lockstep."""


@dataclass(frozen=True, slots=True)
class StarSettings:
    """How StaR+ goes about it.

    Attributes:
        rounds: Rollout and training, so many times.
        max_clicks: Clicks of a rollout.
        min_gain: A click is kept when it raises the IoU by more than this (tau_diff).
        fit: How long and how hard each training is.
    """

    rounds: int = STAR_ROUNDS
    max_clicks: int = MAX_CLICKS
    min_gain: float = 0.0
    fit: FitSettings = field(default_factory=FitSettings)


@dataclass(slots=True)
class Tally:
    """What became of a policy's actions.

    Attributes:
        kept: Clicks that raised the IoU, and *finish* where the annotator finishes too.
        replaced: Actions in whose place the annotator's was taken.
        unreadable: Of those replaced, answers that could not be read.
        trajectories: Rollouts made.
    """

    kept: int = 0
    replaced: int = 0
    unreadable: int = 0
    trajectories: int = 0


@dataclass(slots=True)
class _Walk:
    """A rollout in which each step is either the policy's or the annotator's."""

    sample: Sample
    state: ImageState
    mask: Mask
    iou: float
    logits: npt.NDArray[Any] | None = None
    clicks: list[Click] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    done: bool = False

    def query(self, click: Click) -> Query:
        return Query(self.state, (*self.clicks, click), prior=self.logits)

    def after(self, answer: Segmentation) -> float:
        return true_iou(answer.mask, self.sample)

    def take(self, click: Click, answer: Segmentation, text: str = "") -> None:
        self.steps.append(Step(self.mask, click, true_iou=self.iou, text=text))
        self.clicks.append(click)
        self.mask, self.logits, self.iou = answer.mask, answer.logits, self.after(answer)

    def finish(self, text: str = "") -> None:
        self.steps.append(Step(self.mask, Finish(), true_iou=self.iou, text=text))
        self.done = True

    def trajectory(self, source: str) -> Trajectory:
        """The steps so far, with the last mask."""
        steps = self.steps if self.done else [*self.steps, Step(self.mask, None, true_iou=self.iou)]
        meta = {**self.sample.meta, "source": source, "object": self.sample.id}
        return Trajectory(self.sample.prompt, image_name(self.sample), steps=steps, meta=meta)


def annotate(
    samples: Sequence[Sample],
    segmenter: Segmenter,
    annotator: SimulatedAnnotator,
    settings: StarSettings | None = None,
) -> list[Trajectory]:
    """The simulated annotator's own trajectories: the original data."""
    return attempt(None, samples, segmenter, annotator, settings)[0]


def attempt(
    policy: Policy | None,
    samples: Sequence[Sample],
    segmenter: Segmenter,
    annotator: SimulatedAnnotator,
    settings: StarSettings | None = None,
    progress: Progress | None = None,
) -> tuple[list[Trajectory], Tally]:
    """Roll a policy out, step by step keeping what raised the IoU and replacing the rest.

    Args:
        policy: Whose actions are tried; None for the annotator alone.
        samples: Images with what to segment and the truth.
        segmenter: Turns clicks into masks.
        annotator: Its action replaces one that raised nothing. Where its click raises nothing either, a person would
            stop, and so *finish* is what is learned.
        settings: The defaults by default.
        progress: Told what happens.

    Returns:
        One trajectory a sample, in order, and what became of the policy's actions.
    """
    settings, tally, cache = settings or StarSettings(), Tally(), EmbeddingCache()
    source = "F_sim" if policy is None else "StaR+"
    waiting = enumerate(samples)
    made: dict[int, Trajectory] = {}
    walks: dict[int, _Walk] = {}
    while True:
        for number, sample in islice(waiting, _AT_ONCE - len(walks)):
            empty = np.zeros(sample.mask.shape, bool)
            walks[number] = _Walk(sample, cache.encode(segmenter, sample.image), empty, true_iou(empty, sample))
        if not walks:
            break
        _advance(policy, list(walks.values()), segmenter, annotator, settings.min_gain, tally)
        over = [n for n, walk in walks.items() if walk.done or len(walk.clicks) >= settings.max_clicks]
        made |= {number: walks.pop(number).trajectory(source) for number in over}
        if progress:
            progress(len(made) / max(len(samples), 1), "rollouts")
    tally.trajectories = len(made)
    return [made[number] for number in sorted(made)], tally


def _advance(
    policy: Policy | None,
    walks: Sequence[_Walk],
    segmenter: Segmenter,
    annotator: SimulatedAnnotator,
    min_gain: float,
    tally: Tally,
) -> None:
    """One step of every walk."""
    left, finishing = list(walks), dict[int, str]()
    corrections = {
        id(walk): annotator.next_action(walk.mask, walk.sample.mask, walk.clicks, walk.sample.void) for walk in walks
    }
    if policy is not None:
        seen = [Observation(w.state.image, w.mask, w.sample.prompt, state=w.state) for w in walks]
        decisions = policy.act(seen)
        tried = [(w, d) for w, d in zip(walks, decisions, strict=True) if isinstance(d.action, Click)]
        answers = segmenter.predict_batch([w.query(_click(d.action)) for w, d in tried])
        kept = set()
        for (walk, decision), answer in zip(tried, answers, strict=True):
            if walk.after(answer) > walk.iou + min_gain and not isinstance(corrections[id(walk)], Finish):
                walk.take(_click(decision.action), answer, decision.text)
                kept.add(id(walk))
        left = [walk for walk in walks if id(walk) not in kept]
        finishing = {id(w): d.text for w, d in zip(walks, decisions, strict=True) if isinstance(d.action, Finish)}
        tally.kept += len(kept)
        tally.unreadable += sum(decision.action is None for decision in decisions)
    clicking = [walk for walk in left if isinstance(corrections[id(walk)], Click)]
    answers = segmenter.predict_batch([walk.query(_click(corrections[id(walk)])) for walk in clicking])
    useful = {id(w): a for w, a in zip(clicking, answers, strict=True) if w.after(a) > w.iou + min_gain}
    for walk in left:
        if id(walk) in useful:
            walk.take(_click(corrections[id(walk)]), useful[id(walk)])
        else:
            walk.finish(finishing.get(id(walk), ""))
        if policy is not None:
            agreed = walk.done and id(walk) in finishing
            tally.kept += agreed
            tally.replaced += not agreed


def image_name(sample: Sample) -> str:
    """What `Trajectory.image` says: the file where there is one, so that others can use the trajectories."""
    return sample.path or sample.id


def true_iou(mask: Mask, sample: Sample) -> float:
    """The IoU of a mask with a sample's, where that says anything."""
    return iou(mask, sample.mask, sample.void)


def _click(action: Action | None) -> Click:
    assert isinstance(action, Click)
    return action
