"""The masks that a task carries, refined region by region: behind `segagent refine` and SEGAGENT_REFINE_MASKS."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..agent.agent import SegAgent
from ..agent.rollout import Rollout
from ..defaults import LEAST_GAIN
from ..errors import ConfigError, SegAgentError
from ..hlmat.arrays import Image, Mask
from ..labelstudio.config import Control, Label, LabelConfig
from ..labelstudio.images import ImageLoader
from ..labelstudio.newest import newest_first
from ..labelstudio.regions import Region, read_regions, write_region

__all__ = ["VERSION", "Change", "RefinedTask", "TaskRefiner", "carried", "take_over"]

VERSION = "refine-"
"""What the model versions of refined predictions begin with."""
_OURS = ("segagent-", VERSION, "qc-")


@dataclass(frozen=True, slots=True)
class Change:
    """A region that became better, as the agent thinks.

    Attributes:
        image: RGB uint8 (H, W, 3).
        label: Its label.
        before: bool (H, W).
        after: bool (H, W).
        rated: The policy's predicted IoU before and after.
    """

    image: Image
    label: Label
    before: Mask
    after: Mask
    rated: tuple[float, float]


@dataclass(slots=True)
class RefinedTask:
    """What became of the masks of a task.

    Attributes:
        results: Of the new prediction: the better regions, and everything else as it was.
        ratings: The policy's predicted IoU of each region that was looked at, as it is in `results`.
        changes: The regions that are not as they were.
        failures: Why regions could not be looked at; they are as they were.
        rollouts: All rollouts, for metrics.
    """

    results: list[dict[str, Any]]
    ratings: list[float] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    rollouts: list[Rollout] = field(default_factory=list)

    @property
    def score(self) -> float:
        """The mean rating."""
        return round(float(np.mean(self.ratings)), 4) if self.ratings else 0.0


def carried(task: Any) -> list[dict[str, Any]]:
    """The results with the masks that a task already has; none where it has no mask.

    They are those of its newest annotation, or else of the newest prediction of another model.

    Args:
        task: As Label Studio sends it.
    """
    for name in ("annotations", "predictions"):
        for item in newest_first(task, name):
            if not isinstance(item.get("id"), int) or str(item.get("model_version") or "").startswith(_OURS):
                continue
            found = item.get("result")
            results = [r for r in found if isinstance(r, dict)] if isinstance(found, list) else []
            masks = any(region.is_mask for region in read_regions(results))
            return [{**r, "id": r.get("id") or uuid.uuid4().hex[:12]} for r in results] if masks else []
    return []


def take_over(results: list[dict[str, Any]], region: str) -> None:
    """Give the first region of some results the id of one that is there, whose place it takes."""
    first = results[0]["id"]
    for result in results:
        if result["id"] == first:
            result["id"] = region


class TaskRefiner:
    """Refines the masks of the tasks of a project.

    Args:
        agent: Refines.
        images: Fetches.
        config: The project's labelling config.
        least: Smallest rise of the policy's rating for which a region is replaced.
    """

    def __init__(self, agent: SegAgent, images: ImageLoader, config: LabelConfig, least: float = LEAST_GAIN) -> None:
        self._agent, self._images, self._config, self._least = agent, images, config, least

    def refine(self, task: Mapping[str, Any], deadline: float = math.inf) -> RefinedTask:
        """Refine what a task carries; one damaged region leaves the others.

        Labels, regions without a mask, and what belongs to a region (choices, texts, relations) stay as they are.

        Args:
            task: As Label Studio sends it.
            deadline: `time.monotonic()` after which no further region is looked at; those stay as they are.
        """
        results = carried(task)
        done = RefinedTask(results)
        data = task.get("data")
        data = data if isinstance(data, dict) else {}
        config = self._config.for_task(data)
        for region in read_regions(results, config.ignored):
            if not region.is_mask or time.monotonic() >= deadline:
                continue
            try:
                new = self._region(task, config, data, region, done)
            except SegAgentError as error:
                done.failures.append(f"region {region.id[:60]}: {error}")
                continue
            if new:
                place = next(i for i, r in enumerate(done.results) if _is(r, region.id))
                done.results = [r for r in done.results if not _is(r, region.id)]
                done.results[place:place] = new
        return done

    def _region(
        self, task: Mapping[str, Any], config: LabelConfig, data: Mapping[str, Any], region: Region, done: RefinedTask
    ) -> list[dict[str, Any]]:
        """The results that replace a region; none when it stays."""
        _, url = config.image(region.to_name).picture(data, region.item_index)
        control, label = _output(config, region, data)
        image = self._images.load(url, task.get("id"))
        mask = region.mask(image.shape[0], image.shape[1])
        rollout = self._agent.refine(image, label.prompt(data), mask)
        done.rollouts.append(rollout)
        before, after = (_unit(r) for r in (rollout.trajectory.steps[0].predicted_iou, rollout.predicted_iou))
        if after - before < self._least or not rollout.mask.any():
            done.ratings.append(before)
            return []
        done.ratings.append(after)
        done.changes.append(Change(image, label, mask, rollout.mask, (before, after)))
        new = write_region(rollout.mask, control, label, after, region.item_index)
        for result in new:
            for kind in ("labels", control.type):
                if len(region.labels) > 1 and kind in result["value"]:
                    result["value"][kind] = list(region.labels)
        take_over(new, region.id)
        return new


def _output(config: LabelConfig, region: Region, data: Mapping[str, Any]) -> tuple[Control, Label]:
    """Where a region goes: the output of the first of its labels that has one."""
    for name in region.labels:
        try:
            return config.output_of(region.to_name, name, data)
        except ConfigError:
            continue
    return config.output_of(region.to_name, region.labels[0] if region.labels else None, data)


def _is(result: Mapping[str, Any], region: str) -> bool:
    """Whether a result draws a region, and is not only about it."""
    return str(result.get("id")) == region and bool(read_regions([result]))


def _unit(rating: float | None) -> float:
    return min(max(rating, 0.0), 1.0) if rating is not None and math.isfinite(rating) else 0.0
