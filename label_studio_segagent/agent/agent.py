"""SegAgent: a policy and a segmenter that together annotate like a person."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy.typing as npt

from ..defaults import BEAM, CANDIDATES, MAX_CLICKS, STOP_IOU
from ..errors import ConfigError, InputError
from ..hlmat.actions import Click
from ..hlmat.arrays import Box, Image, Mask
from ..hlmat.metrics import iou
from ..hlmat.trajectory import Step, Trajectory
from ..policies.base import Observation, Policy, Target
from ..segmenters.base import ImageState, Segmenter
from ..segmenters.cache import EmbeddingCache
from .lockstep import run_lockstep
from .rollout import Attempt, Rollout
from .search import TreeSearch

__all__ = ["SegAgent"]

_ALGORITHM = "agent-2"
"""Changes whenever the same models would give another mask; part of the model version."""
_IN_FLIGHT = 16
"""Rollouts advanced together."""
_SAME_OBJECT = 0.7
"""Two results that overlap more than this (IoU) are one object."""

log = logging.getLogger(__name__)


class SegAgent:
    """Looks, clicks, looks again, until the mask is right. Safe to call from several threads.

    Args:
        policy: Looks at image, mask and prompt; rates the mask and chooses the next click.
        segmenter: Turns clicks into masks.
        max_clicks: Clicks a rollout may use.
        candidates: Clicks tried at every step; the policy's own rating of the masks chooses. 1 is greedy.
        beam: Masks that a search goes on from at every step; only with several candidates.
        tool_calls: Calls of the segmenter that a search may spend on one object, or None.
        stop_iou: A predicted IoU at which a rollout stops.
        time_budget: Seconds after which a call makes no further click, or None.
        cache: Keeps encoded images; may be shared with other agents. One of its own by default.

    Attributes:
        version: Content address of everything that changes the output; Label Studio's model version.

    Raises:
        ConfigError: A number is out of range.
    """

    def __init__(
        self,
        policy: Policy,
        segmenter: Segmenter,
        max_clicks: int = MAX_CLICKS,
        candidates: int = CANDIDATES,
        *,
        beam: int = BEAM,
        tool_calls: int | None = None,
        stop_iou: float = STOP_IOU,
        time_budget: float | None = None,
        cache: EmbeddingCache | None = None,
    ) -> None:
        if max_clicks < 0:
            raise ConfigError(f"max_clicks is {max_clicks}; it must be 0 or more")
        if candidates < 1:
            raise ConfigError(f"candidates is {candidates}; it must be 1 (greedy) or more")
        if beam < 1 or (beam > 1 and candidates == 1):
            raise ConfigError(f"beam is {beam} with {candidates} candidates; it must be 1, or more in a search")
        if tool_calls is not None and tool_calls < 1:
            raise ConfigError(f"tool_calls is {tool_calls}; it must be 1 or more, or None")
        if tool_calls is not None and candidates == 1:
            raise ConfigError(
                f"tool_calls is {tool_calls} without a search; give more than one candidate, or max_clicks"
            )
        if time_budget is not None and not time_budget > 0:  # NaN compares false
            raise ConfigError(f"time_budget is {time_budget}; it must be some seconds, or None")
        if not 0 < stop_iou <= 1:
            raise ConfigError(f"stop_iou is {stop_iou}; it must be above 0 and at most 1")
        self.policy, self.segmenter = policy, segmenter
        self.max_clicks, self.stop_iou, self.time_budget = max_clicks, stop_iou, time_budget
        self.candidates, self.beam, self.tool_calls = candidates, beam, tool_calls
        search = () if candidates == 1 else (candidates, beam, tool_calls)
        parts = (_ALGORITHM, policy.version, segmenter.version, max_clicks, stop_iou, time_budget, *search)
        self.version = f"segagent-{hashlib.sha256(repr(parts).encode()).hexdigest()[:10]}"
        self.cache = EmbeddingCache() if cache is None else cache

    def segment(self, image: Image, prompt: str) -> Rollout:
        """Segment one object: the best instance of `prompt` in an RGB uint8 (H, W, 3) image.

        Where the policy locates none it may still click, on the whole image; `segment_all` takes its word for it.

        Raises:
            InputError: The image is not such an array.
        """
        return self.segment_batch([(image, prompt)])[0]

    def segment_all(self, image: Image, prompt: str) -> list[Rollout]:
        """Segment every instance of `prompt` in an RGB uint8 (H, W, 3) image; an empty list where there is none.

        Raises:
            InputError: The image is not such an array.
        """
        return self.segment_all_batch([(image, prompt)])[0]

    def segment_batch(self, items: Sequence[tuple[Image, str]]) -> list[Rollout]:
        """`segment` for many (image, prompt) pairs in lockstep, in order.

        Raises:
            InputError: An image is not an RGB uint8 array (H, W, 3).
        """
        return [rollout for (rollout,) in self._segment([(image, prompt, 1) for image, prompt in items], insist=True)]

    def segment_all_batch(
        self, items: Sequence[tuple[Image, str]], *, max_instances: int | None = None, seconds: float | None = None
    ) -> list[list[Rollout]]:
        """`segment_all` for many (image, prompt) pairs in lockstep, in order; instances best first.

        Args:
            items: Images, RGB uint8 (H, W, 3), with what to look for.
            max_instances: Instances tried for each pair, most confident first; all by default.
            seconds: Time after which no further click is made, when that is less than the agent's own budget.

        Raises:
            InputError: An image is not an RGB uint8 array (H, W, 3).
        """
        found = self._segment([(*item, max_instances) for item in items], seconds)
        return [_distinct(rollouts) for rollouts in found]

    def refine(self, image: Image, prompt: str, mask: Mask) -> Rollout:
        """Improve a mask, bool (H, W). The result is never rated worse than `mask` itself.

        Raises:
            InputError: Image and mask do not fit.
        """
        deadline = self._deadline()
        attempt = self._attempt(self.encode(image), prompt, None, _check_mask(image, mask))
        return self._run(iter([[attempt]]), deadline)[0][0]

    def score(self, image: Image, prompt: str, mask: Mask) -> float:
        """The predicted IoU, in [0, 1], of a mask, bool (H, W), with the object that `prompt` names.

        Raises:
            InputError: Image and mask do not fit, or the policy's answer holds no rating.
        """
        state = self.encode(image)
        decision = self.policy.act([Observation(image, _check_mask(image, mask), prompt, state=state)])[0]
        if decision.predicted_iou is None:
            raise InputError(f"the policy gave no rating for {prompt!r}; it answered {decision.text[:200]!r}")
        return decision.predicted_iou

    def follow(
        self,
        image: Image,
        prompt: str,
        clicks: Sequence[Click],
        *,
        box: Box | None = None,
        prior: Mask | None = None,
    ) -> Rollout:
        """Segment what a person points at; the policy only rates the result.

        Args:
            image: RGB uint8 (H, W, 3).
            prompt: The label.
            clicks: The person's clicks, oldest first, in pixels.
            box: (x0, y0, x1, y1) in pixels.
            prior: A mask to start from, bool (H, W).

        Raises:
            InputError: Image and prior do not fit.
        """
        state = self.encode(image)
        start: npt.NDArray[Any] | None = None if prior is None else _check_mask(image, prior)
        answer = self.segmenter.predict(state, clicks, box=box, prior=start)
        rating = self.policy.act([Observation(image, answer.mask, prompt, box, state=state)])[0].predicted_iou
        rating = answer.score if rating is None else rating
        steps = [Step(answer.mask, None, rating)]
        meta = {**self._meta("given"), "clicks": [(c.x, c.y, c.positive) for c in clicks]}
        trajectory = Trajectory(prompt, box=box, steps=steps, meta=meta)
        return Rollout(answer.mask, rating, trajectory, "given")

    def encode(self, image: Image) -> ImageState:
        """The segmenter's state of an RGB uint8 (H, W, 3) image, kept for the next call on the same pixels.

        Raises:
            InputError: The image is not such an array.
        """
        return self.cache.encode(self.segmenter, image)

    def prewarm(self, images: Iterable[Image]) -> None:
        """Encode images, RGB uint8 (H, W, 3), ahead of the first click; one after another, as they are drawn.

        Raises:
            InputError: One is not such an array.
        """
        for image in images:
            self.encode(image)

    def _segment(
        self, items: Sequence[tuple[Image, str, int | None]], seconds: float | None = None, insist: bool = False
    ) -> list[list[Rollout]]:
        """For each (image, prompt, at most so many instances) the rollouts, one per located target.

        With `insist` there is one without a target where nothing was located.
        """
        waiting = list(items)

        def groups() -> Iterator[list[Attempt | TreeSearch]]:
            # Images are encoded and looked at when there is room for them, several at a time.
            while waiting:
                now, waiting[:] = waiting[:_IN_FLIGHT], waiting[_IN_FLIGHT:]
                states = [self.encode(image) for image, _, _ in now]
                located = self.policy.locate_batch([(image, prompt) for image, prompt, _ in now])
                for state, (_, prompt, limit), targets in zip(states, now, located, strict=True):
                    chosen: Sequence[Target | None] = targets[:limit] or ([None] if insist else [])
                    yield [self._attempt(state, prompt, target) for target in chosen]

        return self._run(groups(), self._deadline(seconds))

    def _attempt(
        self, state: ImageState, prompt: str, target: Target | None, start: Mask | None = None
    ) -> Attempt | TreeSearch:
        if self.candidates == 1:
            return Attempt(state, prompt, target, start, self.max_clicks)
        return TreeSearch(state, prompt, target, start, self.max_clicks, self.beam, self.tool_calls)

    def _deadline(self, seconds: float | None = None) -> float | None:
        budgets = [budget for budget in (self.time_budget, seconds) if budget is not None]
        return time.monotonic() + min(budgets) if budgets else None

    def _run(self, groups: Iterator[list[Attempt | TreeSearch]], deadline: float | None) -> list[list[Rollout]]:
        """The rollouts of every group, in order."""
        seen: list[list[Attempt | TreeSearch]] = []

        def remembered() -> Iterator[list[Attempt | TreeSearch]]:
            for group in groups:
                seen.append(group)
                yield group

        run_lockstep(
            remembered(), self.policy, self.segmenter, candidates=self.candidates, stop_iou=self.stop_iou,
            deadline=deadline, in_flight=_IN_FLIGHT,
        )  # fmt: skip
        rollouts = [[attempt.result() for attempt in group] for group in seen]
        for rollout in (rollout for group in rollouts for rollout in group):
            rollout.trajectory.meta.update(self._meta(rollout.stopped))
            if rollout.stopped == "unparsable":
                log.warning(
                    "unparsable answer for %r: %r", rollout.trajectory.prompt, rollout.trajectory.steps[-1].text
                )
        return rollouts

    def _meta(self, stopped: str) -> dict[str, Any]:
        return {"stopped": stopped, "model_version": self.version}


def _check_mask(image: Image, mask: Mask) -> Mask:
    if mask.shape != image.shape[:2] or mask.dtype != bool:
        raise InputError(
            f"the mask must be bool and as large as the image {image.shape[:2]}; got {mask.dtype} {mask.shape}"
        )
    return mask


def _distinct(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The non-empty results, best first, each object once."""
    kept: list[Rollout] = []
    for rollout in sorted(rollouts, key=lambda r: -r.predicted_iou):
        if rollout.mask.any() and all(iou(rollout.mask, other.mask) < _SAME_OBJECT for other in kept):
            kept.append(rollout)
    return kept
