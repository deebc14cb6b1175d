"""One annotation of one image, inspected: a score for each region, issues, and a score of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..agent.agent import SegAgent
from ..hlmat.arrays import Image, Mask
from ..policies.base import Target
from .calibration import Calibration, shipped
from .evidence import gather
from .issues import Issue, Subject, Thresholds, find_issues

__all__ = ["Inspection", "inspect"]

_DOUBTED = 0.6
"""Expected IoU below which it is worth asking whether a region is of another label."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found.

    Attributes:
        subjects: The regions, as they were given.
        issues: The surest first.
        score: Expected IoU of the worst region, or what is left of it where an object is missing; 1 where nothing is
            drawn and nothing missing.
    """

    subjects: list[Subject]
    issues: list[Issue]
    score: float


def inspect(
    agent: SegAgent,
    image: Image,
    regions: Sequence[tuple[str, str, Mask]],
    labels: Sequence[str],
    *,
    thresholds: Thresholds | None = None,
    calibration: Calibration | None = None,
) -> Inspection:
    """Judge the regions that somebody drew in an image.

    Args:
        agent: Judges.
        image: RGB uint8 (H, W, 3).
        regions: (id, label, mask) with masks bool (H, W); empty masks are passed over.
        labels: All that may be drawn: regions may be mistaken for them, and objects of them may be missing.
        thresholds: Which issues are reported.
        calibration: Of the project.

    Raises:
        InputError: A mask is not of the image's size.
    """
    thresholds, calibration = thresholds or Thresholds(), calibration or Calibration()
    filled = [(name, label, mask) for name, label, mask in regions if mask.any()]
    targets: dict[str, list[Target]] = {}
    judged = gather(agent, image, [(label, mask) for _, label, mask in filled], targets)
    scores = calibration(shipped()([j.evidence for j in judged]))
    subjects = [Subject(name, j, float(score)) for (name, _, _), j, score in zip(filled, judged, scores, strict=True)]
    if any(s.score < _DOUBTED for s in subjects):
        others = [label for label in labels if label not in targets]
        located = agent.policy.locate_batch([(image, label) for label in others])
        targets |= dict(zip(others, located, strict=True))
    wanted = list(dict.fromkeys(labels)) if thresholds.values["missing_object"] <= 1 else []
    found = dict(zip(wanted, agent.segment_all_batch([(image, label) for label in wanted]), strict=True))
    issues = find_issues(subjects, targets, found, thresholds)
    worst = min((s.score for s in subjects), default=1.0)
    missing = max((i.confidence for i in issues if i.name == "missing_object"), default=0.0)
    return Inspection(subjects, issues, min(worst, 1.0 - missing))
