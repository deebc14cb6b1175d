"""One rollout: the state between clicks, and what becomes of it when the policy answers.

The off-by-one of the method lives here: an answer rates the mask it was *shown*, so the mask made by click i is rated
by answer i + 1, and after the last click one more answer is asked for (SegAgent, arXiv 2503.08625, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..defaults import MAX_CLICKS
from ..hlmat.actions import Action, Click, Finish
from ..hlmat.arrays import Box, Mask
from ..hlmat.trajectory import Step, Trajectory
from ..policies.base import Decision, Observation, Target
from ..segmenters.base import ImageState, Query, Segmentation

__all__ = ["Attempt", "Rollout"]

HARMFUL_DROP = 0.03
"""A click after which the rating falls by more than this is undone."""
MAX_REJECTED = 2
"""So many clicks on the same mask may be undone before the rollout ends."""


@dataclass(slots=True)
class Rollout:
    """The result of a rollout.

    Attributes:
        mask: The best-rated mask, bool (H, W).
        predicted_iou: Its rating in [0, 1].
        trajectory: Everything that happened.
        stopped: Why it ended: "finish", "good enough", "clicks", "time", "unparsable", "repeated", "no gain",
            or "given" when a person's prompts were followed.
        target: Where the policy had located the object, or None.
    """

    mask: Mask
    predicted_iou: float
    trajectory: Trajectory
    stopped: str
    target: Target | None = None


@dataclass(slots=True)
class _Rated:
    """A mask with all that is needed to go on from it."""

    mask: Mask
    clicks: tuple[Click, ...] = ()
    logits: npt.NDArray[Any] | None = None
    rating: float | None = None
    worth: float = 0.0
    """The rating, or for a mask without one that of the best mask before it."""
    rejected: tuple[Click, ...] = ()
    """Clicks that were tried on this mask and undone."""


@dataclass(slots=True)
class Attempt:
    """A greedy rollout in progress; see `lockstep.Rolling`.

    Args:
        state: The image as the segmenter encoded it.
        prompt: Label or referring expression.
        target: Where the object is, or None to leave that to the clicks.
        start: The mask to start from, bool (H, W), or None for an empty one.
        max_clicks: Clicks it may use, undone ones included.
    """

    state: ImageState
    prompt: str
    target: Target | None
    start: Mask | None = None
    max_clicks: int = MAX_CLICKS
    stopped: str = ""
    pending: Query | None = field(default=None, init=False)
    _now: _Rated = field(init=False)
    _previous: _Rated | None = field(default=None, init=False)
    _best: _Rated | None = field(default=None, init=False)
    _used: int = field(default=0, init=False)
    trajectory: Trajectory = field(init=False)

    def __post_init__(self) -> None:  # noqa: D105
        mask = np.zeros(self.state.size, bool) if self.start is None else self.start
        self._now = _Rated(mask, logits=self.start)
        self.trajectory = Trajectory(self.prompt, box=self.box)
        if self.target is not None and self.start is None:
            if self.target.box is not None:
                self.pending = Query(self.state, (), self.target.box)
            elif self.target.point is not None and self.max_clicks > 0:
                self._click(Click(*self.target.point, True), None)

    @property
    def box(self) -> Box | None:
        """The box around the object, when it is known; it stays a prompt for every click."""
        return None if self.target is None else self.target.box

    def queries(self) -> list[Query]:
        """The click to be tried, if there is one."""
        return [] if self.pending is None else [self.pending]

    def see(self, answers: Sequence[Segmentation]) -> None:
        """Take the tool's answer to `pending`."""
        assert self.pending is not None
        (answer,) = answers
        self._now = _Rated(answer.mask, tuple(self.pending.clicks), answer.logits)
        self.pending = None

    def observations(self) -> list[Observation]:
        """What the policy is shown next: the current mask."""
        now = self._now
        return [Observation(self.state.image, now.mask, self.prompt, self.box, now.rejected, self.state)]

    def decide(self, decisions: Sequence[Sequence[Decision]], stop_iou: float, out_of_time: bool) -> None:
        """Take the policy's answer: rate the mask, then click, undo the last click, or stop."""
        ((decision, *_),) = decisions
        now, previous = self._now, self._previous
        self._rate(decision)
        if decision.action is None:
            self._stop("unparsable", decision.text)
        elif previous is not None and now.worth < previous.worth - HARMFUL_DROP:
            self._undo(previous, out_of_time)
        else:
            self._previous = None
            self._go_on(decision.action, decision, stop_iou, out_of_time)

    def _rate(self, decision: Decision) -> None:
        now, best = self._now, self._best
        now.rating = decision.predicted_iou
        if now.rating is not None:
            now.worth = now.rating
        elif best is not None:
            if decision.action is None and best.worth > 0:
                return  # the answer says nothing about this mask, but an earlier one was good
            now.worth = best.worth  # a policy that does not rate gives no reason to prefer an earlier mask
        if best is None or now.worth >= best.worth:
            self._best = now

    def _undo(self, previous: _Rated, out_of_time: bool) -> None:
        """Go back to the mask before the last click, which is not to be tried again."""
        previous.rejected += (self._now.clicks[-1],)
        last = self.trajectory.steps[-1]
        self.trajectory.steps[-1] = Step(last.mask, last.action, last.predicted_iou, text=last.text, undone=True)
        self._now, self._previous = previous, None
        if len(previous.rejected) >= MAX_REJECTED:
            self._stop("no gain", "")
        elif self._used >= self.max_clicks or out_of_time:
            self._stop("time" if out_of_time else "clicks", "")

    def _go_on(self, action: Action, decision: Decision, stop_iou: float, out_of_time: bool) -> None:
        if isinstance(action, Finish):
            self._stop("finish", decision.text, action)
        elif decision.predicted_iou is not None and decision.predicted_iou >= stop_iou:
            self._stop("good enough", decision.text)
        elif out_of_time:
            self._stop("time", decision.text)
        elif self._used >= self.max_clicks:
            self._stop("clicks", decision.text)
        elif action in self._now.clicks or action in self._now.rejected:
            self._stop("repeated", decision.text)
        else:
            self._click(action, decision)

    def _click(self, click: Click, decision: Decision | None) -> None:
        now = self._now
        rating, text = (None, "") if decision is None else (now.rating, decision.text)
        self.trajectory.steps.append(Step(now.mask, click, rating, text=text))
        self._previous = None if decision is None else now
        self._used += 1
        self.pending = Query(self.state, (*now.clicks, click), self.box, now.logits)

    def _stop(self, reason: str, text: str, action: Finish | None = None) -> None:
        self.stopped = reason
        self.trajectory.steps.append(Step(self._now.mask, action, self._now.rating, text=text))

    def result(self) -> Rollout:
        """The finished rollout, with the best-rated mask, which need not be the last."""
        best = self._best or self._now
        return Rollout(best.mask, best.worth, self.trajectory, self.stopped, self.target)
