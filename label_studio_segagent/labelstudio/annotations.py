"""The annotations of one task, as records to learn from: what was drawn, and of which labels there is nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PilImage

from ..datasets.image_file import read_image
from ..datasets.record import Record
from ..errors import ConfigError, InputError
from ..hlmat.arrays import Image
from ..hlmat.metrics import iou
from ..hlmat.trajectory import decode_mask, encode_mask
from .config import ImageTag, Label, LabelConfig
from .images import ImageLoader
from .regions import Region, read_regions, region_id
from .shapes import BOX_SHAPES, MASK_SHAPES, TYPES

__all__ = ["ACCEPTED_WEIGHT", "TaskReader"]

ACCEPTED_WEIGHT = 0.3
"""Of the objects of a prediction that an annotator accepted as it was: less sure than masks drawn by hand."""
_SAME = 0.99
"""IoU from which on two masks are the same one, written twice."""


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


class TaskReader:
    """The objects of one task; see `project.read_project`.

    Args:
        config: The project's labelling config.
        task: As `/api/tasks` gives it, with its annotations and predictions.
        images: Fetches its images.
        folder: Where they are kept.
        server: Of Label Studio: its images are kept apart from those of others.
        absent: See `read_project`.
        copied: Likewise.
        failed: Told what is wrong with one of the regions.
    """

    def __init__(
        self, config: LabelConfig, task: Mapping[str, Any], images: ImageLoader, folder: Path, server: str, *,
        absent: bool, copied: bool, failed: Callable[[str], None],
    ) -> None:  # fmt: skip
        data = task.get("data")
        self._data: Mapping[str, Any] = data if isinstance(data, dict) else {}
        self._config, self._task, self._images, self._folder = config.for_task(self._data), task, images, folder
        self._server, self._absent, self._copied, self._failed = server, absent, copied, failed
        self._pictures: dict[str, tuple[Path, Image]] = {}
        self._tags = {tag.name: tag for tag in self._config.images}
        self._known = {name: self._config.known_labels(name, self._data) for name in self._tags}

    def records(self) -> Iterator[Record]:
        """The objects that were drawn, by annotation.

        Raises:
            SegAgentError: Nothing of the task can be read.
        """
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
            if self._absent and isinstance(annotation.get("result"), list):
                yield from self._missing(annotation, there, weight)

    def _areas(self, results: Any, annotation: Any) -> Iterator[_Area]:
        """The regions with an area; failures are told of annotations only."""
        for region in read_regions(results, self._config.ignored):
            if region.to_name not in self._tags and region.to_name in self._config.names:
                continue  # on a text, or on an Image that is not looked at
            try:
                tag = self._config.image(region.to_name)
                if region.shape == "keypoint" or self._points_only(tag, region):
                    continue
                path, pixels = self._picture(tag, region.item_index)
                mask = region.mask(*pixels.shape[:2])
                if not mask.any():
                    raise InputError(f"{region.title} has no pixel")
                yield _Area(region, path, encode_mask(mask))
            except InputError as error:
                if annotation is not None:
                    self._failed(f"annotation {annotation}: {error}")

    def _points_only(self, tag: ImageTag, region: Region) -> bool:
        """Whether a region only points at an object whose label has a control for its outline."""
        return region.shape in BOX_SHAPES and any(
            control.shape in MASK_SHAPES and (not region.labels or {label.name, label.value} & set(region.labels))
            for control, label in self._config.outputs(tag.name, self._data)
        )

    def _picture(self, tag: ImageTag, item_index: int | None) -> tuple[Path, Image]:
        """A picture of the task: where it is kept, and its pixels."""
        _, url = tag.picture(self._data, item_index)
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
        alone = len(self._config.outputs(region.to_name, self._data)) == 1
        found = self._labels(annotation, region)
        for label in found:
            parts: list[Any] = [self._task["id"], annotation["id"], region.id]
            parts += [label.title] if len(found) > 1 else []
            yield Record(
                area.picture,
                typed if typed and alone else label.prompt(self._data),
                area.mask,
                "/".join(map(str, parts)),
                (area.mask["size"][0], area.mask["size"][1]),
                self._about(annotation, weight)
                | {
                    "region": region.id,
                    "label": label.title,
                    "shape": region.shape,
                    "to_name": region.to_name,
                    "item_index": region.item_index,
                },
            )

    def _labels(self, annotation: Mapping[str, Any], region: Region) -> list[Label]:
        """The labels of a region that can be asked for. Others are failures, but for those of prompts beside them."""
        found: dict[str, Label] = {}
        errors: dict[str | None, ConfigError] = {}
        for name in region.labels or (None,):
            try:
                _, label = self._config.output_of(region.to_name, name, self._data)
                found[label.name] = label
            except ConfigError as error:
                errors[name] = error
        for name, reason in errors.items():
            if not found or name not in self._known[region.to_name]:
                self._failed(f"annotation {annotation['id']}: {reason} ({region.title})")
        return list(found.values())

    def _missing(self, annotation: Mapping[str, Any], there: set[tuple[Path, str]], weight: float) -> Iterator[Record]:
        """Records that say that there is nothing: of every picture and label that no result is about."""
        results = annotation["result"]
        if self._config.prompt_text(results):
            return  # what was asked for is not what the labels say
        for tag in self._config.images:
            outputs = self._config.outputs(tag.name, self._data)
            for index, _ in tag.urls(self._data):
                carried = self._carried(results, tag, index)
                unsaid = {
                    label.prompt(self._data): label.title for _, label in outputs
                    if carried is None or {label.name, label.value} & carried
                }  # fmt: skip
                try:
                    path, pixels = self._picture(tag, index)
                except InputError as error:
                    self._failed(f"annotation {annotation['id']}: {error}")
                    continue
                said = {prompt for picture, prompt in there if picture == path}
                held = sorted({name for prompt, name in unsaid.items() if prompt not in said})
                for _, label in outputs:
                    prompt = label.prompt(self._data)
                    if prompt in said or prompt in unsaid:
                        continue
                    size = (pixels.shape[0], pixels.shape[1])
                    name = f"{self._task['id']}/{annotation['id']}/no {label.title}" + (f"/{index}" if index else "")
                    about: dict[str, Any] = {
                        "label": label.title,
                        "to_name": tag.name,
                        "item_index": index,
                        "absent": True,
                    }
                    about |= {"unsaid": held} if held else {}
                    empty = encode_mask(np.zeros(size, bool))
                    yield Record(path, prompt, empty, name, size, self._about(annotation, weight) | about)

    def _carried(self, results: Sequence[Any], tag: ImageTag, index: int | None) -> set[str] | None:
        """All that results of any kind say of a picture; None where one of them may mean any label.

        What is not surely about another picture is about this one. A region without a label, or with one that the
        config does not have (any more), may be of any.
        """
        if any(isinstance(r, dict) and _is_lost(r) for r in results):
            return None
        elsewhere = set()
        for region in read_regions(results):
            if self._elsewhere(region, tag, index):
                elsewhere.add(region.id)
            elif region.to_name == tag.name and not self._known[tag.name] & set(region.labels):
                return None
        own = [r for n, r in enumerate(results) if isinstance(r, dict) and region_id(r, n) not in elsewhere]
        return {text for result in own for text in _strings(result.get("value"))}

    def _elsewhere(self, region: Region, tag: ImageTag, index: int | None) -> bool:
        """Whether a region is on another picture of the task."""
        other = self._tags.get(region.to_name)
        if other is None:
            return region.to_name in self._config.names
        if not any((at or 0) == (region.item_index or 0) for at, _ in other.urls(self._data)):
            return False  # nobody knows where it is
        return other.name != tag.name or (region.item_index or 0) != (index or 0)

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


def _is_lost(result: Mapping[str, Any]) -> bool:
    """Whether a result is a region of which nothing is left, not even its label."""
    return str(result.get("type", "")).lower() in TYPES and not isinstance(result.get("value"), dict)


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


def _strings(value: Any) -> Iterator[str]:
    """All texts in a value of JSON, whatever they are called."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list) and not (item and isinstance(item[0], (int, float))):  # an RLE has none
            waiting += item
