"""PRM-guided tree search: several clicks are tried at every step, and the policy's own rating chooses.

The policy rates every mask that it is shown (the process reward model), so one question to it both rates a new mask and
proposes where to go on from it. The answer is the best-rated mask of the whole tree, its root included.

Source: SegAgent (arXiv 2503.08625), section on PRM-guided tree search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..defaults import BEAM, MAX_CLICKS
from ..hlmat.actions import Click, Finish
from ..hlmat.arrays import Box, Mask
from ..hlmat.trajectory import Step, Trajectory
from ..policies.base import Decision, Observation, Target
from ..segmenters.base import ImageState, Query, Segmentation
from .rollout import HARMFUL_DROP, Rollout

__all__ = ["TreeSearch"]

_SAME_CLICK = 0.004
"""Clicks of the same sign nearer than this share of the image's diagonal are one."""


@dataclass(slots=True)
class _Node:
    """A mask, and how it came about."""

    mask: Mask
    logits: npt.NDArray[Any] | None = None
    clicks: tuple[Click, ...] = ()
    parent: _Node | None = None
    rating: float | None = None
    candidates: Sequence[Decision] = ()


@dataclass(slots=True)
class TreeSearch:
    """A rollout by search; see `lockstep.Rolling`.

    Args:
        state: The image as the segmenter encoded it.
        prompt: Label or referring expression.
        target: Where the object is, or None to leave that to the clicks.
        start: The mask to start from, bool (H, W), or None for an empty one.
        max_clicks: Depth of the tree.
        beam: Masks from which the search goes on at every step.
        tool_calls: Calls of the tool it may use, or None.
    """

    state: ImageState
    prompt: str
    target: Target | None
    start: Mask | None = None
    max_clicks: int = MAX_CLICKS
    beam: int = BEAM
    tool_calls: int | None = None
    stopped: str = ""
    _fresh: list[_Node] = field(init=False)
    """Masks that the policy has not seen."""
    _pending: list[tuple[_Node | None, Query]] = field(init=False, default_factory=list)
    """What the tool is asked, each for a child of a node; None for the root."""
    _best: _Node | None = field(init=False, default=None)
    _used: int = field(init=False, default=0)
    _explored: int = field(init=False, default=0)

    def __post_init__(self) -> None:  # noqa: D105
        mask = np.zeros(self.state.size, bool) if self.start is None else self.start
        self._fresh = [_Node(mask, self.start)]
        if self.target is not None and self.start is None:
            if self.target.box is not None:
                self._pending = [(None, Query(self.state, (), self.target.box))]
            elif self.target.point is not None and self.max_clicks > 0:
                self._pending = [(self._fresh[0], Query(self.state, (Click(*self.target.point, True),)))]

    @property
    def box(self) -> Box | None:
        """The box around the object, when it is known; it stays a prompt for every click."""
        return None if self.target is None else self.target.box

    def queries(self) -> list[Query]:
        """One query for every candidate."""
        return [query for _, query in self._pending]

    def see(self, answers: Sequence[Segmentation]) -> None:
        """Make a node of every answer."""
        self._fresh = [
            _Node(answer.mask, answer.logits, tuple(query.clicks), parent)
            for (parent, query), answer in zip(self._pending, answers, strict=True)
        ]
        self._used += len(self._fresh)
        self._pending = []

    def observations(self) -> list[Observation]:
        """Every mask that is new."""
        return [Observation(self.state.image, n.mask, self.prompt, self.box, state=self.state) for n in self._fresh]

    def decide(self, decisions: Sequence[Sequence[Decision]], stop_iou: float, out_of_time: bool) -> None:
        """Rate the new masks, keep the best ones, and plan the next candidates."""
        for node, candidates in zip(self._fresh, decisions, strict=True):
            node.candidates = candidates
            ratings = [d.predicted_iou for d in candidates if d.predicted_iou is not None]
            # Several answers about the same mask are several opinions.
            node.rating = float(np.mean(ratings)) if ratings else None
            self._explored += 1
            if self._best is None or _worth(node) > _worth(self._best):
                self._best = node
        going_on = [n for n in self._fresh if n.parent is None or _worth(n) >= _worth(n.parent) - HARMFUL_DROP]
        going_on = sorted(going_on, key=_worth, reverse=True)[: self.beam]
        assert self._best is not None
        if not going_on:
            self.stopped = "no gain"
        elif _worth(self._best) >= stop_iou:
            self.stopped = "good enough"
        elif out_of_time:
            self.stopped = "time"
        else:
            self._expand(going_on)

    def _expand(self, nodes: Sequence[_Node]) -> None:
        left = None if self.tool_calls is None else self.tool_calls - self._used
        answered = [d for n in nodes for d in n.candidates if d.action is not None]
        nodes = [n for n in nodes if len(n.clicks) < self.max_clicks]
        for node in nodes:
            for click in _distinct(node, self.state.size):
                self._pending.append((node, Query(self.state, (*node.clicks, click), self.box, node.logits)))
        if left is not None:
            self._pending = self._pending[: max(left, 0)]
        if self._pending:
            return
        if not answered:
            self.stopped = "unparsable"
        elif all(isinstance(d.action, Finish) for d in answered):
            self.stopped = "finish"
        elif not nodes or left == 0:
            self.stopped = "clicks"
        else:
            self.stopped = "repeated"

    def result(self) -> Rollout:
        """The best-rated mask, with the clicks that led to it as its trajectory."""
        best = self._best or self._fresh[0]
        path = [best]
        while path[0].parent is not None:
            path.insert(0, path[0].parent)
        steps = [
            Step(node.mask, following.clicks[-1], node.rating, text=_text(node, following.clicks[-1]))
            for node, following in zip(path, path[1:], strict=False)
        ]
        last = best.candidates[0] if best.candidates else None
        done = last.action if last is not None and isinstance(last.action, Finish) else None
        steps.append(Step(best.mask, done, best.rating, text="" if last is None else last.text))
        meta = {"masks_tried": self._explored, "tool_calls": self._used}
        trajectory = Trajectory(self.prompt, box=self.box, steps=steps, meta=meta)
        return Rollout(best.mask, _worth(best), trajectory, self.stopped, self.target)


def _worth(node: _Node) -> float:
    """The rating; that of the mask before, where the policy gave none."""
    if node.rating is not None:
        return node.rating
    return 0.0 if node.parent is None else _worth(node.parent)


def _text(node: _Node, click: Click) -> str:
    return next((d.text for d in node.candidates if d.action == click), "")


def _distinct(node: _Node, size: tuple[int, int]) -> list[Click]:
    """The node's candidate clicks without duplicates and without those already made."""
    near = _SAME_CLICK * float(np.hypot(*size))
    kept: list[Click] = []
    for decision in node.candidates:
        click = decision.action
        if isinstance(click, Click) and not any(_same(click, other, near) for other in (*node.clicks, *kept)):
            kept.append(click)
    return kept


def _same(a: Click, b: Click, near: float) -> bool:
    return a.positive == b.positive and float(np.hypot(a.x - b.x, a.y - b.y)) <= near
