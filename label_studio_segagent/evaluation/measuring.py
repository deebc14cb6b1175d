"""What an agent makes of the objects on one picture, in numbers."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..agent.agent import SegAgent
from ..agent.rollout import Rollout
from ..datasets.record import Record
from ..errors import InputError, SegAgentError
from ..hlmat.arrays import Mask
from ..hlmat.metrics import boundary_iou, iou
from ..hlmat.trajectory import Sample, Trajectory, decode_mask, encode_mask
from ..training.evaluation import pair_masks
from ..training.generation import some_masks
from ..training.mask_corruption import corrupt_mask
from .clicking import JITTER, Blind, click_curve, simulated_curve
from .rows import Row

__all__ = ["Evaluator", "Outcome", "Protocol"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Protocol:
    """What is measured.

    Attributes:
        blind: Also let the agent click without looking at its ratings: nothing is undone, the last mask counts.
        noc: Also let the simulated annotator click on the segmenter, 20 times at most.
        start: Where the agent starts: "" from nothing, "corrupted" from a corrupted mask, "masks" from given ones.
        seed: Of the corruptions.
    """

    blind: bool = False
    noc: bool = False
    start: str = ""
    seed: int = 0


@dataclass(slots=True)
class Outcome:
    """What came of one picture.

    Attributes:
        rows: With the trajectory of each, whose meta has what a picture of it needs.
        empty: Keys of objects without a pixel.
        failures: (object id, reason).
    """

    rows: list[tuple[Row, Trajectory]] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Object:
    record: Record
    sample: Sample
    start: Mask | None = None

    @property
    def asked(self) -> tuple[Any, str]:
        return self.sample.image, self.sample.prompt


_Found = Mapping[str, Rollout | None]
"""What came of each object, by its record's key; None where it was not found."""


class Evaluator:
    """Lets an agent segment the objects of a data set, picture by picture.

    A prompt that names one object of the picture, or is a referring expression, is asked by itself. For a label of
    several objects all instances are asked for and matched with the true ones, best pairs first, as in
    `training.evaluation`; one that is left over counts with an empty mask.

    Args:
        agent: As it would pre-annotate.
        protocol: What is measured.
        starts: With the protocol's start "masks" the mask of each object id, COCO's compressed RLE.
    """

    def __init__(self, agent: SegAgent, protocol: Protocol, starts: Mapping[str, Any] | None = None) -> None:
        self.agent, self.protocol, self.starts = agent, protocol, starts or {}
        self.blind = SegAgent(Blind(agent.policy.tireless()), agent.segmenter, agent.max_clicks, cache=agent.cache)

    def picture(self, group: Sequence[Record]) -> Outcome:
        """The objects on one picture; one that fails is named in the outcome and the others go on."""
        out = Outcome()
        questions = _questions(self._load(group, out))
        try:
            self._measure(questions, out)
        except Exception as error:
            if len(questions) == 1:
                self._failed(questions[0], error, out)
                return out
            for question in questions:  # one by one: only what fails is lost
                try:
                    self._measure([question], out)
                except Exception as reason:
                    self._failed(question, reason, out)
        return out

    def _failed(self, question: Sequence[_Object], error: Exception, out: Outcome) -> None:
        known = isinstance(error, SegAgentError)
        for item in question:
            log.info("object %s of %s failed", item.record.id, item.record.image, exc_info=None if known else error)
            out.failures.append((item.record.id, str(error) if known else f"{type(error).__name__}: {error}"))

    def _load(self, group: Sequence[Record], out: Outcome) -> list[_Object]:
        pixels, objects = None, []
        others = some_masks(group) if self.protocol.start == "corrupted" else {}
        for record in group:
            try:
                sample = record.load(pixels)
                pixels = sample.image
                if sample.void is not None:
                    sample = replace(sample, mask=sample.mask & ~sample.void)
                if not sample.mask.any():
                    out.empty.append(record.key)
                    continue
                beside = [mask for outline, mask in others.items() if outline != record.outline]
                objects.append(_Object(record, sample, self._start(record, sample, beside)))
            except InputError as error:
                out.failures.append((record.id, str(error)))
        return objects

    def _start(self, record: Record, sample: Sample, beside: Sequence[Mask]) -> Mask | None:
        if self.protocol.start == "corrupted":
            return corrupt_mask(
                sample.mask, beside, np.random.default_rng((self.protocol.seed, int(record.outline, 16)))
            )
        if self.protocol.start == "masks":
            if record.id not in self.starts:
                raise InputError(f"no mask is given for object {record.id}")
            start = decode_mask(dict(self.starts[record.id]))
            if start.shape != sample.mask.shape:
                raise InputError(
                    f"the mask given for object {record.id} is {start.shape}, its image {sample.mask.shape}"
                )
            return start
        return None

    def _measure(self, questions: Sequence[Sequence[_Object]], out: Outcome) -> None:
        started = time.perf_counter()
        found = _ask(self.agent, questions)
        seconds = (time.perf_counter() - started) / max(sum(map(len, questions)), 1)
        blind = _ask(self.blind, questions) if self.protocol.blind else None
        rows = []
        for item in (item for question in questions for item in question):
            key = item.record.key
            row = _row(item, found[key], seconds)
            if blind is not None:
                row = replace(row, blind=_curves(item, blind[key])[0])
            if self.protocol.noc:
                given = self.agent.segmenter, self.agent.encode(item.sample.image), item.sample
                row = replace(row, noc=simulated_curve(*given), noc_jittered=simulated_curve(*given, JITTER))
            rows.append((row, _trajectory(item, found[key])))
        out.rows += rows


def _curves(item: _Object, rollout: Rollout | None) -> tuple[list[float], list[float | None], list[float]]:
    if rollout is None:
        return [0.0], [None], [0.0]
    return click_curve(rollout, item.sample.mask, item.sample.void)


def _questions(objects: Sequence[_Object]) -> list[list[_Object]]:
    """The objects that are asked for together."""
    groups: dict[Any, list[_Object]] = {}
    for item in objects:
        alone = item.start is not None or item.record.meta.get("expression")
        groups.setdefault((item.record.prompt, item.record.key if alone else ""), []).append(item)
    return list(groups.values())


def _ask(agent: SegAgent, questions: Sequence[Sequence[_Object]]) -> _Found:
    alone = [question[0] for question in questions if len(question) == 1]
    fresh = [item for item in alone if item.start is None]
    several = [question for question in questions if len(question) > 1]
    found: dict[str, Rollout | None] = {
        item.record.key: agent.refine(*item.asked, item.start) for item in alone if item.start is not None
    }
    found |= {
        item.record.key: rollout
        for item, rollout in zip(fresh, agent.segment_batch([i.asked for i in fresh]), strict=True)
    }
    instances = agent.segment_all_batch([question[0].asked for question in several])
    for question, rollouts in zip(several, instances, strict=True):
        pairs = pair_masks([r.mask for r in rollouts], [item.sample.mask for item in question])
        for item, (index, _) in zip(question, pairs, strict=True):
            found[item.record.key] = rollouts[index] if index >= 0 else None
    return found


def _row(item: _Object, rollout: Rollout | None, seconds: float) -> Row:
    record, sample = item.record, item.sample
    ious, ratings, rated = _curves(item, rollout)
    mask = np.zeros_like(sample.mask) if rollout is None else rollout.mask
    if sample.void is not None:
        mask = mask & ~sample.void
    steps = [] if rollout is None else rollout.trajectory.steps
    undone = sum(step.undone for step in steps)
    rating = rollout.predicted_iou if rollout and any(step.predicted_iou is not None for step in steps) else None
    return Row(
        key=record.key, id=record.id, image=sample.path, prompt=record.prompt,
        label=str(record.meta.get("label", record.prompt)), share=float(sample.mask.mean()),
        ious=ious, ratings=ratings, rated=rated, blind=None, noc=None,
        iou=iou(mask, sample.mask), boundary_iou=boundary_iou(mask, sample.mask),
        intersection=int(np.count_nonzero(mask & sample.mask)), union=int(np.count_nonzero(mask | sample.mask)),
        predicted_iou=rating, clicks=len(ious) - 1, undone=undone, seconds=seconds,
        stopped="not found" if rollout is None else rollout.stopped,
    )  # fmt: skip


def _trajectory(item: _Object, rollout: Rollout | None) -> Trajectory:
    """The rollout as it is kept: with the result and the true mask in its meta."""
    if rollout is None:
        nothing = np.zeros_like(item.sample.mask)
        rollout = Rollout(nothing, 0.0, Trajectory(item.record.prompt), "not found")
    meta = {
        **rollout.trajectory.meta, "key": item.record.key, "object": item.record.id, "stopped": rollout.stopped,
        "result": encode_mask(rollout.mask), "predicted_iou": rollout.predicted_iou,
        "target": encode_mask(item.sample.mask),
    }  # fmt: skip
    if item.record.exif is not None:
        meta["exif"] = item.record.exif
    return replace(rollout.trajectory, image=item.sample.path, meta=meta)
