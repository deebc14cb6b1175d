"""Named issues of an annotation, each with a place to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from ..agent.rollout import Rollout
from ..errors import ConfigError
from ..hlmat.arrays import Box, Mask, mask_box
from ..hlmat.metrics import box_iou, iou
from ..policies.base import Target
from .evidence import Judged

__all__ = ["NAMES", "Issue", "Thresholds", "Subject", "find_issues"]

NAMES: Mapping[str, tuple[float, str]] = {
    "missing_object": (0.6, "an object of the label that nobody drew"),
    "extra_region": (0.6, "nothing of the label is there"),
    "wrong_label": (0.6, "it looks like another label"),
    "bad_boundary": (0.5, "the outline is off; the box shows where most"),
    "merged_objects": (0.5, "several objects in one region"),
    "incomplete": (0.5, "a part of the object is missing"),
    "duplicate": (0.8, "the same object drawn twice"),
    "tiny_fragment": (0.5, "a speck, far smaller than the rest"),
}
"""The issues: from which confidence each is reported by default, and what it means."""
_SPECK = 0.02
"""A part of a region is a speck when it has less than this share of its pixels."""
_ELSEWHERE = 0.25
"""A region with less of it in any target's box is not where an object of its label is."""
_APART = 0.2
"""Targets whose boxes overlap less (IoU) are different objects."""


@dataclass(frozen=True, slots=True)
class Issue:
    """Something to look at.

    Attributes:
        name: One of `NAMES`.
        confidence: In [0, 1].
        box: Where, (x0, y0, x1, y1) in pixels.
        label: Which label it is about.
        regions: Ids of the regions it is about; none for a missing object.
        note: For people.
    """

    name: str
    confidence: float
    box: Box
    label: str
    regions: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """A region under inspection.

    Attributes:
        id: The region's.
        judged: What was found out about its mask.
        score: Expected IoU.
    """

    id: str
    judged: Judged
    score: float


@dataclass(frozen=True)
class Thresholds:
    """From which confidence issues are reported.

    Args:
        text: Changes to the defaults: "wrong_label=0.8, tiny_fragment=off".

    Raises:
        ConfigError: A name is unknown, or a value is neither a number in [0, 1] nor "off".
    """

    text: str = ""
    values: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:  # noqa: D105
        values = {name: least for name, (least, _) in NAMES.items()}
        for part in filter(None, (part.strip() for part in self.text.split(","))):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in values:
                raise ConfigError(f"unknown issue {name!r}; known: {', '.join(NAMES)}")
            try:
                values[name] = float("inf") if value == "off" else float(value)
            except ValueError:
                values[name] = -1.0
            if not (0 <= values[name] <= 1 or value == "off"):
                raise ConfigError(f"{part!r}: give a confidence from 0 to 1, or off")
        object.__setattr__(self, "values", values)

    def passed(self, issue: Issue) -> bool:
        """Whether an issue is to be reported."""
        return issue.confidence >= self.values[issue.name]


def find_issues(
    subjects: Sequence[Subject],
    targets: Mapping[str, Sequence[Target]],
    found: Mapping[str, Sequence[Rollout]],
    thresholds: Thresholds,
) -> list[Issue]:
    """All issues of one annotation of one image, the surest first.

    Args:
        subjects: Its regions.
        targets: What the policy locates for each label that may be drawn.
        found: For labels that are complete if drawn well, what the agent segments by itself.
        thresholds: What is reported.
    """
    issues = [*_missing(subjects, found), *_duplicates(subjects)]
    for subject in subjects:
        issues += _about(subject, targets)
    return sorted((i for i in issues if thresholds.passed(i)), key=lambda issue: -issue.confidence)


def _missing(subjects: Sequence[Subject], found: Mapping[str, Sequence[Rollout]]) -> Iterator[Issue]:
    for label, rollouts in found.items():
        drawn = [s.judged.mask for s in subjects if s.judged.prompt == label]
        for rollout in rollouts:
            size = int(np.count_nonzero(rollout.mask))
            covered = max((np.count_nonzero(rollout.mask & mask) / size for mask in drawn), default=0.0) if size else 1
            box = mask_box(rollout.mask)
            if box is None or covered > 0.4 or any(iou(rollout.mask, mask) > 0.3 for mask in drawn):
                continue
            score = rollout.target.score if rollout.target is not None else 0.5
            confidence = rollout.predicted_iou * min(1.0, 0.5 + score)
            yield Issue("missing_object", confidence, box, label, (), f"the agent found another {label!r} here")


def _duplicates(subjects: Sequence[Subject]) -> Iterator[Issue]:
    for number, subject in enumerate(subjects):
        for other in subjects[:number]:
            if subject.judged.prompt != other.judged.prompt:
                continue
            overlap = iou(subject.judged.mask, other.judged.mask)
            if overlap > 0.5:
                yield Issue(
                    "duplicate", overlap, _box(subject), subject.judged.prompt, (other.id, subject.id),
                    f"overlaps another region of the label with IoU {overlap:.2f}",
                )  # fmt: skip


def _about(subject: Subject, targets: Mapping[str, Sequence[Target]]) -> Iterator[Issue]:
    """The issues of one region by itself."""
    judged, label, box = subject.judged, subject.judged.prompt, _box(subject)
    evidence, alone = judged.evidence, (subject.id,)
    doubt = 1.0 - max(evidence.rating, subject.score)
    other, fit = _better_label(box, label, evidence.located * evidence.certainty, targets)
    if other and fit > 0:
        yield Issue("wrong_label", min(1.0, doubt * (0.5 + fit)), box, label, alone, f"looks like {other!r}")
    elif _share_located(judged.mask, targets.get(label, ())) < _ELSEWHERE:
        yield Issue("extra_region", doubt, box, label, alone, f"no {label!r} was found here")
        return  # its outline is of no interest
    inside = _inside(box, judged.mask, targets.get(label, ()))
    if len(inside) > 1:
        weakest = min(t.score for t in inside) / max(t.score for t in inside)
        confidence = min(1.0, doubt + 0.3) * min(1.0, weakest + 0.2)
        note = f"{len(inside)} objects seem to be in it"
        yield Issue("merged_objects", confidence, box, label, alone, note)
    yield from _outline(subject)
    yield from _specks(subject, int(np.count_nonzero(judged.mask)))


def _outline(subject: Subject) -> Iterator[Issue]:
    """How the region differs from what the agent made of it."""
    judged, label, alone = subject.judged, subject.judged.prompt, (subject.id,)
    mask, refined, evidence = judged.mask, judged.refined, judged.evidence
    gain = max(0.0, judged.refined_rating - evidence.rating)
    drawn, lacking = int(np.count_nonzero(refined)), int(np.count_nonzero(refined & ~mask))
    if drawn and lacking / drawn > 0.15 and gain > 0:
        missing = _largest(refined & ~mask) or _box(subject)
        confidence = min(1.0, lacking / drawn + gain)
        yield Issue("incomplete", confidence, missing, label, alone, "the agent would add this part")
        return
    error = _largest(mask ^ refined) or _box(subject)
    confidence = min(1.0, (1 - evidence.boundary) * min(1.0, 0.3 + gain + (1 - subject.score)))
    # A region that is expected to be bad gets a reason, even where the agent has nothing better to offer.
    confidence = max(confidence, 1 - subject.score - 0.1)
    yield Issue("bad_boundary", confidence, error, label, alone, "the outline differs most from the agent's here")


def _share_located(mask: Mask, targets: Sequence[Target]) -> float:
    """The largest share of a region that is in one target's box; 1 for one that a target's point is in."""
    most, area = 0.0, int(np.count_nonzero(mask))
    for target in targets:
        if target.box is None:
            assert target.point is not None
            row, column = (min(max(round(v), 0), n - 1) for v, n in zip(target.point[::-1], mask.shape, strict=True))
            most = max(most, float(mask[row, column]))
            continue
        x0, y0, x1, y1 = (max(round(v), 0) for v in target.box)
        most = max(most, int(np.count_nonzero(mask[y0:y1, x0:x1])) / area)
    return most


def _better_label(box: Box, label: str, own: float, targets: Mapping[str, Sequence[Target]]) -> tuple[str, float]:
    """The other label whose target fits a box best, and by how much its score exceeds that of the region's own."""
    best, most = "", 0.0
    for other, located in targets.items():
        if other == label:
            continue
        for target in located:
            if target.box is not None and (fit := box_iou(target.box, box)) > 0.5:
                ahead = fit * target.score - own
                if ahead > most:
                    best, most = other, ahead
    return best, most


def _inside(box: Box, mask: Mask, targets: Sequence[Target]) -> list[Target]:
    """Different targets that a region swallows: most of each one's box is in the region's, and it has much of it."""
    inside: list[Target] = []
    area = int(np.count_nonzero(mask))
    for target in targets:
        if target.box is None or box_iou(target.box, box) > 0.75:
            continue
        x0, y0, x1, y1 = (round(v) for v in target.box)
        part = mask[max(y0, 0) : y1, max(x0, 0) : x1]
        filled = float(part.mean()) if part.size else 0.0
        if filled > 0.35 and np.count_nonzero(part) > 0.15 * area and all(
            other.box is None or box_iou(target.box, other.box) < _APART for other in inside
        ):  # fmt: skip
            inside.append(target)
    return inside


def _specks(subject: Subject, area: int) -> Iterator[Issue]:
    mask, label = subject.judged.mask, subject.judged.prompt
    if area < 12:
        yield Issue("tiny_fragment", 0.9, _box(subject), label, (subject.id,), f"the whole region has {area} pixels")
        return
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    specks = [stats[i] for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] < _SPECK * area]
    if specks:
        x, y, w, h, _ = max(specks, key=lambda s: int(s[cv2.CC_STAT_AREA]))
        box = (float(x), float(y), float(x + w), float(y + h))
        note = f"{len(specks)} specks of at most {max(int(s[4]) for s in specks)} pixels beside the region"
        yield Issue("tiny_fragment", 0.6, box, label, (subject.id,), note)


def _largest(error: Mask) -> Box | None:
    """The box around the largest connected part of an error."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(error.astype(np.uint8), connectivity=8)
    if count < 2:
        return None
    return mask_box(parts == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()))


def _box(subject: Subject) -> Box:
    box = mask_box(subject.judged.mask)
    assert box is not None
    return box
