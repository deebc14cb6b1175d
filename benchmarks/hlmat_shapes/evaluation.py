"""The paper's tables in miniature: clicks with and without the policy's own rating, search, errors of the rating."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from label_studio_segagent import SegAgent
from label_studio_segagent.hlmat.actions import GRAMMARS, Click
from label_studio_segagent.hlmat.annotator import SimulatedAnnotator
from label_studio_segagent.hlmat.arrays import Image
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.policies import Decision, Observation, Policy, Target
from label_studio_segagent.segmenters import Query, Segmenter

__all__ = ["CLICKS", "Blind", "RandomPolicy", "TruePolicy", "blind", "evaluate"]

CLICKS = (1, 3, 5, 7)
_AT_ONCE = 32


class RandomPolicy(Policy):
    """Clicks anywhere, positive; rates nothing."""

    version, grammar = "random-1", GRAMMARS["segagent"]()

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)

    @override
    def locate_batch(self, items: Sequence[tuple[Image, str]]) -> list[list[Target]]:
        return [[] for _ in items]

    @override
    def act(self, observations: Sequence[Observation]) -> list[Decision]:
        places = [self._random.integers(o.mask.shape[::-1]).tolist() for o in observations]
        return [Decision(Click(float(x), float(y)), None, "") for x, y in places]


class TruePolicy(Policy):
    """F_sim: what can be reached with this tool. Knows the truth."""

    version, grammar = "true-1", GRAMMARS["segagent"]()

    def __init__(self, samples: Sequence[Sample], annotator: SimulatedAnnotator) -> None:
        self.annotator = annotator
        self._masks = {(s.image.tobytes(), s.prompt): s.mask for s in samples}

    @override
    def locate_batch(self, items: Sequence[tuple[Image, str]]) -> list[list[Target]]:
        return [[] for _ in items]

    @override
    def act(self, observations: Sequence[Observation]) -> list[Decision]:
        targets = [self._masks[o.image.tobytes(), o.prompt] for o in observations]
        return [
            Decision(self.annotator.next_action(o.mask, t, o.rejected), iou(o.mask, t), "")
            for o, t in zip(observations, targets, strict=True)
        ]


Blind = list[tuple[list[float], list[tuple[float, float]]]]
"""For each sample the IoU after 0, 1, … clicks, and (rating, true IoU) of each mask that was rated."""


def blind(policy: Policy, segmenter: Segmenter, samples: Sequence[Sample], clicks: int) -> Blind:
    """Follow the policy's clicks without looking at its ratings, until it finishes."""
    found: Blind = []
    for start in range(0, len(samples), _AT_ONCE):
        part = samples[start : start + _AT_ONCE]
        states = [segmenter.set_image(s.image) for s in part]
        masks: list[Any] = [np.zeros(s.mask.shape, bool) for s in part]
        made: list[list[Click]] = [[] for _ in part]
        ious = [[0.0] for _ in part]
        ratings: list[list[tuple[float, float]]] = [[] for _ in part]
        going = list(range(len(part)))
        for step in range(clicks + 1):
            decisions = policy.act([Observation(part[i].image, masks[i], part[i].prompt) for i in going])
            for i, decision in zip(going, decisions, strict=True):
                if decision.predicted_iou is not None:
                    ratings[i].append((decision.predicted_iou, ious[i][-1]))
            moves = [(i, d.action) for i, d in zip(going, decisions, strict=True) if isinstance(d.action, Click)]
            if step == clicks or not moves:
                break
            for i, click in moves:
                made[i].append(click)
            answers = segmenter.predict_batch([Query(states[i], tuple(made[i])) for i, _ in moves])
            for (i, _), answer in zip(moves, answers, strict=True):
                masks[i] = answer.mask
                ious[i].append(iou(answer.mask, part[i].mask))
            going = [i for i, _ in moves]
        found += [(row + [row[-1]] * (clicks + 1 - len(row)), rated) for row, rated in zip(ious, ratings, strict=True)]
    return found


def evaluate(policy: Policy, segmenter: Segmenter, samples: Sequence[Sample], *, search: int = 0) -> dict[str, Any]:
    """Mean IoU without PRM and with it after so many clicks, with search, and the error of the ratings.

    Args:
        policy: Clicks and rates.
        segmenter: Turns clicks into masks.
        samples: Unseen ones.
        search: Candidates of the search, or 0 for none.
    """
    followed = blind(policy, segmenter, samples, max(CLICKS))
    ious = np.array([row for row, _ in followed])
    rated = np.array([pair for _, pairs in followed for pair in pairs]).reshape(-1, 2)
    report: dict[str, Any] = {"blind": {str(n): float(ious[:, n].mean()) for n in CLICKS}}
    report["first_click_hits"] = float((ious[:, 1] > 0.1).mean())
    if not len(rated):
        return report
    report["rating_mae"] = float(np.abs(rated[:, 0] - rated[:, 1]).mean())
    report["rating_pearson"] = float(np.corrcoef(rated.T)[0, 1])
    items = [(s.image, s.prompt) for s in samples]

    def miou(agent: SegAgent) -> float:
        return float(np.mean([iou(r.mask, s.mask) for r, s in zip(agent.segment_batch(items), samples, strict=True)]))

    report["prm"] = {str(n): miou(SegAgent(policy, segmenter, n)) for n in CLICKS}
    if search:
        report["search"] = miou(SegAgent(policy, segmenter, max(CLICKS), search))
    return report
