"""Label Studio tasks in, Label Studio predictions out: what /predict and the `label-studio-ml` adapter both do."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..agent.agent import SegAgent
from ..agent.rollout import Rollout
from ..defaults import BATCH_SIZE, MAX_INSTANCES, PREDICT_SECONDS
from ..errors import InputError, RegionError, SegAgentError
from ..hlmat.arrays import Image, Mask
from ..labelstudio.config import Control, Label, LabelConfig
from ..labelstudio.images import ImageLoader
from ..labelstudio.newest import newest_first
from ..labelstudio.regions import Region, read_regions, write_region
from ..labelstudio.shapes import BOX_SHAPES
from ..labelstudio.standing import boxed_region, standing_region
from ..segmenters.cache import EmbeddingCache
from .refiner import TaskRefiner, carried, take_over

__all__ = ["BatchResult", "Item", "Predictor", "served_as"]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class BatchResult:
    """The answers to a batch of tasks.

    Attributes:
        results: One for each task, in order: a prediction, or {} where there is none (Label Studio then skips it).
        failures: (task id, reason) of tasks that failed.
        unfinished: Ids of tasks for which the time was not enough.
        rollouts: All rollouts, for metrics.
    """

    results: list[dict[str, Any]]
    failures: list[tuple[Any, str]] = field(default_factory=list)
    unfinished: list[Any] = field(default_factory=list)
    rollouts: list[Rollout] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Item:
    """One (picture, label) of a task, to be segmented.

    Attributes:
        task: Position of the task in its batch.
        image: RGB uint8 (H, W, 3).
        prompt: What to look for.
        control: Where the masks go.
        label: The label they get.
        item_index: Which picture of a list, or None.
    """

    task: int
    image: Image
    prompt: str
    control: Control
    label: Label
    item_index: int | None


def served_as(version: str, refine_masks: bool) -> str:
    """The model version of an agent's predictions: another one where they are made in another way."""
    return f"{version}-refining" if refine_masks else version


class Predictor:
    """Turns tasks into predictions with an agent.

    Args:
        agent: Segments.
        images: Fetches.
        batch_size: Tasks whose rollouts run in lockstep.
        seconds: Time a batch may take; checked between lockstep groups.
        max_instances: Objects of one label in one image.
        refine_masks: Refine the masks that tasks of a batch already carry, instead of starting from nothing.
    """

    def __init__(
        self,
        agent: SegAgent,
        images: ImageLoader,
        *,
        batch_size: int = BATCH_SIZE,
        seconds: float = PREDICT_SECONDS,
        max_instances: int = MAX_INSTANCES,
        refine_masks: bool = False,
    ) -> None:
        self.agent, self.images = agent, images
        self._batch_size, self._seconds, self._max_instances = batch_size, seconds, max_instances
        self._refine_masks = refine_masks

    @property
    def model_version(self) -> str:
        """The version in /setup and in every prediction; they must be equal, or Label Studio duplicates predictions."""
        return served_as(self.agent.version, self._refine_masks)

    def with_agent(self, agent: SegAgent) -> Predictor:
        """The same with another agent; images are shared."""
        other = copy.copy(self)
        other.agent = agent
        return other

    @property
    def cache(self) -> EmbeddingCache:
        """Where the agent keeps encoded images."""
        return self.agent.cache

    def close(self) -> None:
        """Close the connections."""
        self.images.close()

    def prewarm(self, task: Any, label_config: str) -> None:
        """Load and encode the images of a task ahead of its first prediction.

        Raises:
            ConfigError: The labelling config cannot be used.
            InputError: The task or an image cannot be used.
        """
        data = _task_data(task)
        config = LabelConfig.parse(label_config).for_task(data)
        urls = [url for tag in config.images for _, url in tag.urls(data)]
        self.agent.prewarm(self.images.load(url, task.get("id")) for url in urls)

    def predict(self, tasks: Sequence[Any], label_config: str, started: float | None = None) -> BatchResult:
        """Pre-annotate tasks: every instance of every label. A task that fails gets {} and the others go on.

        With `refine_masks`, a task that carries masks gets these, refined where the agent expects a gain.

        Args:
            tasks: As Label Studio sends them.
            label_config: The labelling config.
            started: `time.monotonic()` when the request came; what it has waited counts. Now, by default.

        Raises:
            ConfigError: The labelling config cannot be used; that concerns all tasks.
        """
        config = LabelConfig.parse(label_config)
        out = BatchResult([{} for _ in tasks])
        deadline = (time.monotonic() if started is None else started) + self._seconds
        given = {i for i, task in enumerate(tasks) if self._refine_masks and carried(task)}
        rest = [i for i in range(len(tasks)) if i not in given]
        for start in range(0, len(rest), self._batch_size):
            self._predict_group(config, tasks, rest[start : start + self._batch_size], out, deadline)
        refiner = TaskRefiner(self.agent, self.images, config)
        for i in sorted(given):
            self._refine(refiner, tasks, i, out, deadline)
        if out.unfinished:
            log.warning(
                "%d of %d tasks had no time left (SEGAGENT_PREDICT_SECONDS=%g); retrieve predictions again for them",
                len(out.unfinished), len(tasks), self._seconds,
            )  # fmt: skip
        return out

    def _refine(
        self, refiner: TaskRefiner, tasks: Sequence[Any], index: int, out: BatchResult, deadline: float
    ) -> None:
        task = tasks[index]
        if time.monotonic() >= deadline:
            out.unfinished.append(_task_id(task))
            return
        try:
            done = refiner.refine(task, deadline)
        except Exception as error:
            self._failed(out, task, error)
            return
        out.rollouts += done.rollouts
        for reason in done.failures:
            log.warning("task %s: %s", _task_id(task), reason)
        out.results[index] = self._prediction(done.results, done.ratings)

    def _predict_group(
        self, config: LabelConfig, tasks: Sequence[Any], group: Sequence[int], out: BatchResult, deadline: float
    ) -> None:
        if time.monotonic() >= deadline:
            out.unfinished += [_task_id(tasks[i]) for i in group]
            return
        items: list[Item] = []
        ready: list[int] = []
        pool = ThreadPoolExecutor(max_workers=8)
        loading = {i: pool.submit(self.items, config, tasks[i], i) for i in group}
        for i, future in loading.items():
            try:
                items += future.result(timeout=max(deadline - time.monotonic(), 0))
                ready.append(i)
            except FutureTimeoutError:
                out.unfinished.append(_task_id(tasks[i]))
            except Exception as error:
                self._failed(out, tasks[i], error)
        pool.shutdown(wait=False, cancel_futures=True)  # a slow download ends by itself; the answer does not wait
        try:
            found = self.agent.segment_all_batch(
                [(item.image, item.prompt) for item in items],
                max_instances=self._max_instances,
                seconds=deadline - time.monotonic(),
            )
            self._answer(ready, items, found, out)
        except Exception as error:
            if len(ready) == 1:
                self._failed(out, tasks[ready[0]], error)
                return
            log.warning("a group of %d tasks failed (%r); trying them one by one", len(ready), error)
            for i in ready:
                self._predict_group(config, tasks, [i], out, deadline)

    def items(self, config: LabelConfig, task: Any, index: int) -> list[Item]:
        """All (picture, label) pairs of a task, with the pictures loaded.

        Args:
            config: The labelling config.
            task: As Label Studio sends it.
            index: Its position in the batch.

        Raises:
            InputError: The task or an image cannot be used.
        """
        data = _task_data(task)
        project, config = config, config.for_task(data)
        prompt = _given_prompt(config, task)
        items = []
        for tag in config.images:
            outputs = config.outputs(tag.name, data)
            for item_index, url in tag.urls(data):
                if not outputs:
                    continue
                image = self.images.load(url, task.get("id"))
                for control, label in outputs:
                    text = prompt if prompt and len(outputs) == 1 else label.prompt(data)
                    items.append(Item(index, image, text, control, label, item_index))
        if not any(tag.urls(data) for tag in config.images):
            fields = ", ".join(repr(tag.field) for tag in project.images)
            raise InputError(f"the task has no image URL in {fields}; its data has {sorted(map(str, data))[:20]}")
        return items

    def _answer(
        self, ready: Iterable[int], items: Sequence[Item], found: Sequence[list[Rollout]], out: BatchResult
    ) -> None:
        for i in ready:
            mine = [(item, rollouts) for item, rollouts in zip(items, found, strict=True) if item.task == i]
            out.rollouts += [rollout for _, rollouts in mine for rollout in rollouts]
            out.results[i] = self.prediction(mine)

    def prediction(self, found: Iterable[tuple[Item, Sequence[Rollout]]]) -> dict[str, Any]:
        """The prediction of one task, as Label Studio wants it, from what was found for each of its items."""
        regions: list[dict[str, Any]] = []
        ratings: list[float] = []
        for item, rollouts in found:
            for rollout in rollouts:
                rating = _rating(rollout)
                regions += write_region(rollout.mask, item.control, item.label, rating, item.item_index)
                ratings.append(rating)
        return self._prediction(regions, ratings)

    def _prediction(self, regions: list[dict[str, Any]], ratings: Sequence[float]) -> dict[str, Any]:
        score = round(float(np.mean(ratings)), 4) if ratings else 0.0
        return {"result": regions, "score": score, "model_version": self.model_version}

    @staticmethod
    def _failed(out: BatchResult, task: Any, error: Exception) -> None:
        if isinstance(error, SegAgentError):
            log.warning("task %s has no prediction: %s", _task_id(task), error)
            reason = str(error)
        else:  # a bug or a full disk: the operator needs the traceback, the client does not
            log.error("task %s has no prediction", _task_id(task), exc_info=error)
            reason = f"internal error ({type(error).__name__}); see the server's log"
        out.failures.append((_task_id(task), reason))

    def interact(
        self, task: Any, label_config: str, context: Mapping[str, Any]
    ) -> tuple[dict[str, Any], list[Rollout]]:
        """Answer a smart tool: the last region of the context is the one just drawn.

        Key points are clicks of the person, a rectangle or an ellipse is a box, a brush, bitmask or polygon is a
        coarse mask that the agent refines, and a prompt text segments every instance of what it names. A key point on
        or beside a region of its label corrects that region, and a box around one has it done again.

        Returns:
            A prediction whose `result` is empty when there is nothing to suggest, and the rollouts behind it.

        Raises:
            ConfigError: The config cannot be used or does not have the label.
            InputError: The task, its image or a region cannot be used.
        """
        data = _task_data(task)
        config = LabelConfig.parse(label_config).for_task(data)
        results = context.get("result")
        regions, text = read_regions(results), config.prompt_text(results)
        if not regions and not text:
            return self._prediction([], []), []
        new = regions[-1] if regions else None
        tag = config.images[0] if new is None else config.image(new.to_name)
        item_index, url = tag.picture(data, None if new is None else new.item_index)
        name = new.labels[0] if new is not None and new.labels else None
        outputs = config.outputs(tag.name, data)
        control, label = outputs[0] if new is None and outputs else config.output_for(tag.name, name, data)
        image = self.images.load(url, task.get("id"))
        prompt = text or label.prompt(data)
        if new is None:
            [rollouts] = self.agent.segment_all_batch([(image, prompt)], max_instances=self._max_instances)
        else:
            same = [r for r in regions if (r.to_name, r.item_index) == (new.to_name, new.item_index)]
            about = {"keypoint": standing_region, "rectangle": boxed_region, "ellipse": boxed_region}.get(new.shape)
            # A prompt may have a label of its own; what it is about has the one of the output.
            meant = replace(new, labels=tuple(dict.fromkeys((*new.labels, label.name))))
            standing = about(task, meant, image.shape[0], image.shape[1]) if about else None
            rollouts = [self._follow(image, prompt, same, None if standing is None else standing[1])]
        written = [result for r in rollouts for result in write_region(r.mask, control, label, _rating(r), item_index)]
        if new is not None and standing is not None and written:
            take_over(written, standing[0].id)
        return self._prediction(written, [_rating(r) for r in rollouts]), rollouts

    def _follow(self, image: Image, prompt: str, regions: Sequence[Region], standing: Mask | None) -> Rollout:
        """Segment what a person's regions on one picture point at; `standing` is the mask they are about, if any."""
        height, width = image.shape[:2]
        new = regions[-1]
        clicks = [region.click(height, width) for region in regions if region.shape == "keypoint"]
        areas = [r for r in regions if r.labels == new.labels or set(r.labels) & set(new.labels)]
        if new.shape == "keypoint":
            given = [r.mask(height, width) for r in areas if r.is_mask]
            prior = _union(given) if standing is None else standing
            boxes = [r.box(height, width) for r in areas if r.shape in BOX_SHAPES]
            return self.agent.follow(image, prompt, clicks, box=boxes[-1] if boxes else None, prior=prior)
        if new.shape in BOX_SHAPES:
            return self.agent.follow(image, prompt, clicks, box=new.box(height, width))
        drawn = new.mask(height, width)
        if not drawn.any():
            raise RegionError(f"the drawn {new.shape} covers no pixel of the {width}x{height} image")
        return self.agent.refine(image, prompt, drawn)


def _union(masks: Sequence[Mask]) -> Mask | None:
    return np.logical_or.reduce(masks) if masks else None


def _rating(rollout: Rollout) -> float:
    """The predicted IoU in [0, 1]; 0 for one that is no number, which JSON could not hold."""
    return min(max(float(rollout.predicted_iou), 0.0), 1.0) if math.isfinite(rollout.predicted_iou) else 0.0


def _task_id(task: Any) -> int | str | None:
    number = task.get("id") if isinstance(task, dict) else None
    return number if isinstance(number, (int, str)) else None


def _task_data(task: Any) -> Mapping[str, Any]:
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(data, dict):
        raise InputError(f"a task must be an object with 'data', got {str(task)[:80]}")
    return data


def _given_prompt(config: LabelConfig, task: Mapping[str, Any]) -> str:
    """A prompt text that an annotator left in a draft or an annotation of the task, or ""."""
    for source in ("drafts", "annotations"):
        for item in newest_first(task, source):
            if text := config.prompt_text(item.get("result")):
                return text
    return ""
