"""`segagent refine`: better predictions from masks that tasks already carry; annotations are never edited."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PilImage

from ..agent.agent import SegAgent
from ..errors import InputError, SegAgentError
from ..hlmat.arrays import Image
from ..labelstudio.config import LabelConfig
from ..labelstudio.images import ImageLoader
from ..labelstudio.regions import Region, read_regions, write_region
from ..labelstudio.tasks import iterate_tasks, put_prediction
from ..pictures import result_panel, sheet
from .jobs import Job
from .models import Models, build_predictor, need_client, project_folder, version_store
from .settings import Settings

__all__ = ["PICTURES", "Refined", "refine_job", "refine_project"]

log = logging.getLogger(__name__)
_OURS = ("refine-", "qc-")
PICTURES = "refined.jpg"
"""The file with pictures before and after."""
_MOST_PICTURES = 24
_OUTLINES = ("brush", "bitmask", "magicwand", "polygon", "vector", "")


@dataclass(slots=True)
class Refined:
    """What a run did.

    Attributes:
        version: Of the predictions that it wrote.
        tasks: Tasks with a new prediction.
        regions: Regions looked at.
        changed: Regions that the agent could improve, as it thinks.
        gain: Sum over these of predicted IoU after less before.
        failures: (task id, reason).
    """

    version: str
    tasks: int = 0
    regions: int = 0
    changed: int = 0
    gain: float = 0.0
    failures: list[tuple[int, str]] = field(default_factory=list)


def refine_project(
    settings: Settings, project: int, out: Path, progress: Callable[[float, str], None], *, view: int | None = None,
    least_gain: float = 0.2,
) -> Refined:  # fmt: skip
    """Let the agent refine the masks of a project's tasks: of the newest annotation, or else the newest prediction.

    Where it expects a gain for at least one region, the task gets a prediction of its own version, `refine-…`, with the
    better masks in place of those regions and everything else as it was.

    Args:
        settings: Of the server.
        project: Project id.
        out: Folder for `PICTURES`, those before and after.
        progress: Told the share done, and what is being done.
        view: Id of a Data Manager tab: its tasks only.
        least_gain: Smallest rise of the policy's rating for which a region is replaced.

    Raises:
        ApiError: Label Studio does not answer.
        ConfigError: There is no Label Studio to ask, or the labelling config cannot be used.
    """
    client = need_client(settings)
    with closing(client), closing(build_predictor(settings)) as base:
        predictor = Models(settings, base, version_store(settings)).predictor(project)
        config = LabelConfig.parse(str(client.call("GET", f"/api/projects/{project}/").get("label_config")))
        done = Refined("refine-" + predictor.model_version.removeprefix("segagent-"))
        tasks = list(iterate_tasks(client, project, **({} if view is None else {"view": view})))
        pictures: list[Image] = []
        for number, task in enumerate(tasks):
            try:
                worker = _TaskRefiner(predictor.agent, base.images, config, task, least_gain, done)
                result = worker.run()
                pictures += worker.pictures[: max(0, _MOST_PICTURES - len(pictures))]
                if result is not None:
                    put_prediction(client, task, result, worker.score, done.version)
                    done.tasks += 1
            except SegAgentError as error:
                done.failures.append((task["id"], str(error)))
            progress((number + 1) / len(tasks), f"refining the masks of {len(tasks)} tasks")
        if pictures:
            out.mkdir(parents=True, exist_ok=True)
            PilImage.fromarray(sheet(pictures, 4)).save(out / PICTURES, quality=88)
    return done


def refine_job(settings: Settings, job: Job, report: Callable[[float, str], None]) -> Mapping[str, Any]:
    """The job behind the status page: `refine_project`, and its result in short."""
    out = project_folder(settings, job.project)
    (out / PICTURES).unlink(missing_ok=True)  # of an earlier one
    done = refine_project(settings, job.project, out, report)
    summary = {"version": done.version, "tasks": done.tasks, "regions": done.regions, "changed": done.changed,
               "failures": len(done.failures)}  # fmt: skip
    return {**summary, "report": PICTURES} if done.changed else summary


class _TaskRefiner:
    """The regions of one task."""

    def __init__(
        self, agent: SegAgent, images: ImageLoader, config: LabelConfig, task: Mapping[str, Any], least: float,
        done: Refined,
    ) -> None:  # fmt: skip
        self._agent, self._images, self._config, self._task = agent, images, config, task
        self._least, self._done = least, done
        self.pictures: list[Image] = []
        self.score = 0.0

    def run(self) -> list[dict[str, Any]] | None:
        """The results of the new prediction, or None when nothing would change."""
        results = self._source()
        replaced: dict[str, list[dict[str, Any]]] = {}
        ratings = []
        for region in read_regions(results):
            if region.shape not in _OUTLINES:
                continue
            self._done.regions += 1
            try:
                new, rating = self._refine(region)
            except SegAgentError as error:  # one damaged region leaves the others
                self._done.failures.append((self._task["id"], f"region {region.id[:60]}: {error}"))
                continue
            ratings.append(rating)
            if new is not None:
                replaced[region.id] = new
        if not replaced:
            return None
        self.score = round(float(np.mean(ratings)), 4)
        kept = [r for r in results if str(r.get("id")) not in replaced]
        return kept + [r for new in replaced.values() for r in new]

    def _source(self) -> list[dict[str, Any]]:
        """The results to start from."""
        annotations = [a for a in self._task.get("annotations") or [] if not a.get("was_cancelled")]
        predictions = [
            p for p in self._task.get("predictions") or [] if not str(p.get("model_version")).startswith(_OURS)
        ]
        for group in (annotations, predictions):
            if group:
                newest = max(group, key=lambda item: int(item["id"]))
                found = newest.get("result")
                return [r for r in found if isinstance(r, dict)] if isinstance(found, list) else []
        return []

    def _refine(self, region: Region) -> tuple[list[dict[str, Any]] | None, float]:
        """The results that replace a region (None when it stays), and the rating of what is there then."""
        tag = next((t for t in self._config.images if t.name == region.to_name), None)
        if tag is None:
            raise InputError(f"it is on {region.to_name!r}, which the labelling config does not have")
        data = self._task["data"]
        urls = dict(tag.urls(data))
        if region.item_index not in urls:
            raise InputError(f"the task has no image in {tag.field!r} at {region.item_index}")
        image = self._images.load(urls[region.item_index], self._task["id"])
        control, label = self._config.output_for(tag.name, region.labels[0] if region.labels else None, data)
        mask = region.mask(image.shape[0], image.shape[1])
        rollout = self._agent.refine(image, label.prompt(data), mask)
        before = rollout.trajectory.steps[0].predicted_iou or 0.0
        gain = rollout.predicted_iou - before
        if gain < self._least or not rollout.mask.any():
            return None, before
        self._done.changed += 1
        self._done.gain += gain
        name = f"task {self._task['id']}: {label.name}"
        self.pictures.append(result_panel(image, [mask], f"{name}, before", f"predicted IoU {before:.2f}"))
        self.pictures.append(result_panel(image, [rollout.mask], "after", f"predicted IoU {rollout.predicted_iou:.2f}"))
        return write_region(
            rollout.mask, control, label, rollout.predicted_iou, region.item_index
        ), rollout.predicted_iou
