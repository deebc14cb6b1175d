"""What annotators drew in a project of Label Studio, as records to learn from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PilImage

from ..datasets.image_file import read_image
from ..datasets.record import Record
from ..errors import ApiError, InputError, SegAgentError
from ..hlmat.arrays import Image
from ..hlmat.metrics import iou
from ..hlmat.trajectory import decode_mask, encode_mask
from .client import LabelStudioClient
from .config import ImageTag, LabelConfig
from .images import ImageLoader
from .regions import Region, read_regions

__all__ = ["ACCEPTED_WEIGHT", "read_project"]

ACCEPTED_WEIGHT = 0.3
"""Of the objects of a prediction that an annotator accepted as it was: less sure than masks drawn by hand."""
_PAGE = 20
"""Tasks asked for at once; masks make them large."""
_SAME = 0.99
"""IoU from which on two masks are the same one, written twice."""
_OUTLINES = ("brush", "bitmask", "polygon")

log = logging.getLogger(__name__)

_Failed = Callable[[Any, str], None]


def _log_failure(task: Any, reason: str) -> None:
    log.warning("task %s: %s", task, reason)


def read_project(
    client: LabelStudioClient,
    images: ImageLoader,
    project_id: int,
    folder: Path,
    *,
    tasks: Iterable[int] | None = None,
    absent: bool = False,
    copied: bool = False,
    failed: _Failed = _log_failure,
) -> Iterator[Record]:
    """The annotated objects of a project: one record for each region with an area and each of its labels.

    Annotations that were cancelled, or that another one was made from, are left out. So are rectangles and ellipses of
    labels that have a brush, bitmask or polygon control: those are prompts, not outlines. The prompt is what the
    backend would ask its policy for: the label's hint, alias or value, or the text that the annotator typed.

    The meta of a record has `task`, `annotation`, `updated` (when the annotation was), `by` (the annotator's id),
    `ground_truth`, `region`, `label`, `shape`, `to_name`, `item_index`, and `weight`:
    1, or `ACCEPTED_WEIGHT` where the annotation is its parent prediction, unchanged.

    Args:
        client: The Label Studio.
        images: Fetches the images of tasks.
        project_id: The project.
        folder: Where the images are kept as PNG files, as a browser shows them; made when missing. Those that are
            there are not fetched again.
        tasks: Ids of the tasks to read; all that have an annotation by default.
        absent: Also give a record, with an empty mask and `absent` in its meta, for every label of which an annotation
            has nothing in a picture.
        copied: Also read annotations that somebody else made another one from: they are what their author says.
        failed: Called with the id of a task and what is wrong with it or with one of its regions; everything else goes
            on. By default a warning is logged.

    Raises:
        ApiError: Label Studio does not answer, or there is no such project.
        ConfigError: The labelling config cannot be used.
    """
    project = client.call("GET", f"/api/projects/{int(project_id)}/")
    config = LabelConfig.parse(str(project.get("label_config")) if isinstance(project, dict) else "")
    folder.mkdir(parents=True, exist_ok=True)
    for task in _annotated_tasks(client, int(project_id), tasks):
        reader = _TaskReader(config, task, images, folder, client.url, absent, copied, failed)
        try:
            records = list(reader.records())
        except SegAgentError as error:
            failed(task.get("id"), str(error))
            continue
        yield from sorted(records, key=lambda record: record.image)


def _annotated_tasks(
    client: LabelStudioClient, project_id: int, tasks: Iterable[int] | None
) -> Iterator[dict[str, Any]]:
    """Tasks with annotations and predictions, by their ids."""
    if tasks is not None:
        wanted = sorted(set(tasks))
        for start in range(0, len(wanted), _PAGE):
            yield from _page(client, project_id, 0, wanted[start : start + _PAGE])
        return
    last = 0
    # By the last id and not by page numbers, which shift when tasks come and go meanwhile.
    while page := _page(client, project_id, last, None):
        yield from page
        last = page[-1]["id"]


def _page(client: LabelStudioClient, project_id: int, after: int, wanted: Sequence[int] | None) -> list[dict[str, Any]]:
    query: dict[str, Any] = {
        "filters": {
            "conjunction": "and",
            "items": [
                {"filter": f"filter:tasks:{name}", "operator": "greater", "type": "Number", "value": value}
                for name, value in (("id", after), ("total_annotations", 0))
            ],
        },
        "ordering": ["tasks:id"],
    }
    if wanted is not None:
        query["selectedItems"] = {"all": False, "included": list(wanted)}
    answer = client.call(
        "GET", "/api/tasks", project=project_id, page=1, page_size=_PAGE, fields="all", resolve_uri="false",
        review="true",  # or Label Studio asks the ML backend, perhaps ourselves, for predictions of these tasks
        query=json.dumps(query),
    )  # fmt: skip
    page = answer.get("tasks") if isinstance(answer, dict) else None
    if not isinstance(page, list) or not all(isinstance(t, dict) and isinstance(t.get("id"), int) for t in page):
        raise ApiError(f"GET /api/tasks answered with something else than tasks: {str(answer)[:100]}")
    return page


@dataclass(frozen=True, slots=True)
class _Area:
    """A region on its picture; the mask is COCO's RLE, since there may be many on a large picture."""

    region: Region
    picture: Path
    mask: dict[str, Any]

    def same(self, other: _Area) -> bool:
        if (self.region.labels, self.picture) != (other.region.labels, other.picture):
            return False
        return self.mask == other.mask or iou(decode_mask(self.mask), decode_mask(other.mask)) >= _SAME


class _TaskReader:
    """The objects of one task."""

    def __init__(
        self, config: LabelConfig, task: Mapping[str, Any], images: ImageLoader, folder: Path, server: str,
        absent: bool, copied: bool, failed: _Failed,
    ) -> None:  # fmt: skip
        self._config, self._task, self._images, self._folder = config, task, images, folder
        self._server, self._absent, self._copied, self._failed = server, absent, copied, failed
        data = task.get("data")
        self._data: Mapping[str, Any] = data if isinstance(data, dict) else {}
        self._pictures: dict[str, tuple[Path, Image]] = {}
        self._ignored = {control.name for control in config.controls if control.role == "ignore"}

    def records(self) -> Iterator[Record]:
        predictions = {p["id"]: p for p in _objects(self._task.get("predictions"))}
        annotations = [a for a in _objects(self._task.get("annotations")) if not a.get("was_cancelled")]
        copies = [(a.get("parent_annotation"), _author(a)) for a in annotations]
        for annotation in annotations:
            if any(p == annotation["id"] and (not self._copied or by == _author(annotation)) for p, by in copies):
                continue
            areas = list(self._areas(annotation.get("result"), annotation["id"]))
            parent = predictions.get(annotation.get("parent_prediction"))
            accepted = parent is not None and _all_same(areas, list(self._areas(parent.get("result"), None)))
            weight = ACCEPTED_WEIGHT if accepted else 1.0
            there: set[tuple[Path, str]] = set()
            for area in areas:
                for record in self._labelled(annotation, area, weight):
                    there.add((record.image, record.prompt))
                    yield record
            if self._absent:
                yield from self._missing(annotation, there, weight)

    def _areas(self, results: Any, annotation: Any) -> Iterator[_Area]:
        """The regions with an area; failures are told of annotations only."""
        for region in read_regions(results):
            tag = next((tag for tag in self._config.images if tag.name == region.to_name), None)
            if tag is None or region.shape == "keypoint" or region.from_name in self._ignored:
                continue
            if region.shape in ("rectangle", "ellipse") and self._has_outlines(tag, region):
                continue
            try:
                path, pixels = self._picture(tag, region.item_index)
                yield _Area(region, path, encode_mask(region.mask(*pixels.shape[:2])))
            except InputError as error:
                if annotation is not None:
                    self._failed(self._task.get("id"), f"annotation {annotation}: {error}")

    def _has_outlines(self, tag: ImageTag, region: Region) -> bool:
        outputs = self._config.outputs(tag.name, self._data)
        return any(
            control.shape in _OUTLINES for control, label in outputs if not region.labels or label.name in region.labels
        )

    def _picture(self, tag: ImageTag, item_index: int | None) -> tuple[Path, Image]:
        """A picture of the task: where it is kept, and its pixels."""
        url = next((url for index, url in tag.urls(self._data) if (index or 0) == (item_index or 0)), None)
        if url is None:
            raise InputError(f"the task has no image in {tag.field!r}" + (f" at {item_index}" if item_index else ""))
        if url not in self._pictures:
            name = hashlib.sha256(f"{self._server} {url}".encode(errors="surrogatepass")).hexdigest()[:24]
            path = self._folder / f"{name}.png"
            if path.exists():
                pixels = read_image(path)
            else:
                pixels = self._images.load(url, self._task.get("id"))
                part = path.with_suffix(f".{os.getpid()}.part")
                PilImage.fromarray(pixels).save(part, "PNG", compress_level=1)
                part.replace(path)
            self._pictures = {url: (path, pixels)}  # one at a time: a list of many pictures must not fill the memory
        return self._pictures[url]

    def _labelled(self, annotation: Mapping[str, Any], area: _Area, weight: float) -> Iterator[Record]:
        region = area.region
        typed = self._config.prompt_text(annotation.get("result"))
        for name in region.labels or (None,):
            try:
                _, label = self._config.output_for(region.to_name, name, self._data)
            except SegAgentError as error:
                self._failed(self._task.get("id"), f"annotation {annotation['id']}: {error}")
                continue
            alone = len(self._config.outputs(region.to_name, self._data)) == 1
            parts: list[Any] = [self._task["id"], annotation["id"], region.id]
            parts += [name] if len(region.labels) > 1 else []
            yield Record(
                area.picture,
                typed if typed and alone else label.prompt(self._data),
                area.mask,
                "/".join(map(str, parts)),
                (area.mask["size"][0], area.mask["size"][1]),
                self._about(annotation, weight)
                | {
                    "region": region.id,
                    "label": label.name,
                    "shape": region.shape,
                    "to_name": region.to_name,
                    "item_index": region.item_index,
                },
            )

    def _missing(self, annotation: Mapping[str, Any], there: set[tuple[Path, str]], weight: float) -> Iterator[Record]:
        """Records that say that there is nothing: of every picture and label but those that are there."""
        if self._config.prompt_text(annotation.get("result")):
            return  # what was asked for is not what the labels say
        for tag in self._config.images:
            for index, _ in tag.urls(self._data):
                path, pixels = self._picture(tag, index)
                for _, label in self._config.outputs(tag.name, self._data):
                    prompt = label.prompt(self._data)
                    if (path, prompt) in there:
                        continue
                    size = (pixels.shape[0], pixels.shape[1])
                    name = f"{self._task['id']}/{annotation['id']}/no {label.name}" + (f"/{index}" if index else "")
                    about = {"label": label.name, "to_name": tag.name, "item_index": index, "absent": True}
                    empty = encode_mask(np.zeros(size, bool))
                    yield Record(path, prompt, empty, name, size, self._about(annotation, weight) | about)

    def _about(self, annotation: Mapping[str, Any], weight: float) -> dict[str, Any]:
        """The meta that all records of an annotation share."""
        return {
            "task": self._task["id"],
            "annotation": annotation["id"],
            "updated": str(annotation.get("updated_at") or ""),
            "by": _author(annotation),
            "ground_truth": bool(annotation.get("ground_truth")),
            "weight": weight,
        }


def _author(annotation: Mapping[str, Any]) -> Any:
    """The id of who made an annotation, or None."""
    by = annotation.get("completed_by")
    return by.get("id") if isinstance(by, dict) else by


def _all_same(areas: Sequence[_Area], parents: Sequence[_Area]) -> bool:
    """Whether the areas of an annotation are those of a prediction, in any order."""
    left = list(parents)
    for area in areas:
        twin = next((number for number, other in enumerate(left) if area.same(other)), None)
        if twin is None:
            return False
        del left[twin]
    return not left


def _objects(items: Any) -> list[dict[str, Any]]:
    """Those of a list that are annotations or predictions."""
    return [item for item in items if isinstance(item, dict) and "id" in item] if isinstance(items, list) else []
