"""Rollouts in lockstep: one policy call and one batched tool call per step for all that are in flight."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

from ..policies.base import Decision, Observation, Policy
from ..segmenters.base import Query, Segmentation, Segmenter

__all__ = ["Rolling", "run_lockstep"]


class Rolling(Protocol):
    """A rollout in progress: `queries` -> `see`, `observations` -> `decide`, until `stopped` is set."""

    stopped: str
    """Why it ended; empty while it goes on."""

    def queries(self) -> list[Query]:
        """What the tool is asked next; may be nothing."""

    def see(self, answers: Sequence[Segmentation]) -> None:
        """Take the tool's answers to `queries`."""

    def observations(self) -> list[Observation]:
        """What the policy is shown next; at least one."""

    def decide(self, decisions: Sequence[Sequence[Decision]], stop_iou: float, out_of_time: bool) -> None:
        """Take the candidate decisions about each of `observations`."""


def run_lockstep(
    attempts: Iterator[Sequence[Rolling]],
    policy: Policy,
    segmenter: Segmenter,
    *,
    candidates: int,
    stop_iou: float,
    deadline: float | None,
    in_flight: int,
) -> None:
    """Advance every attempt until it has stopped; those that end make room for the next ones.

    Args:
        attempts: Groups of rollouts; the next group is asked for when there is room. Changed in place.
        policy: Looks and answers.
        segmenter: Turns clicks into masks; must be the one that encoded the attempts' images.
        candidates: Decisions asked for per observation.
        stop_iou: A predicted IoU that is good enough.
        deadline: `time.monotonic()` after which no further click is made; what is there is still rated.
        in_flight: Rollouts at a time; the last group may exceed it.
    """
    active: list[Rolling] = []
    while True:
        while len(active) < in_flight and (group := next(attempts, None)) is not None:
            active += [attempt for attempt in group if not attempt.stopped]
        if not active:
            return
        asked = [attempt.queries() for attempt in active]
        answers = iter(segmenter.predict_batch([query for queries in asked for query in queries]))
        for attempt, queries in zip(active, asked, strict=True):
            if queries:
                attempt.see(list(islice(answers, len(queries))))
        shown = [attempt.observations() for attempt in active]
        flat = [observation for observations in shown for observation in observations]
        proposed = iter(policy.propose(flat, candidates) if candidates > 1 else [[d] for d in policy.act(flat)])
        out_of_time = deadline is not None and time.monotonic() >= deadline
        for attempt, observations in zip(active, shown, strict=True):
            attempt.decide(list(islice(proposed, len(observations))), stop_iou, out_of_time)
        active = [attempt for attempt in active if not attempt.stopped]
