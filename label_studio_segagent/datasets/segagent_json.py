"""The JSON files of the released SegAgent data: clicks and the masks that they made.

The layout, as the program has it that wrote them (github.com/aim-uofa/SegAgent, `isegm/inference/evaluation.py`; the
data themselves, modelscope.cn/models/zzzmmz/SegAgent-Dataset, were not at hand):

    {"info": {…}, "data": [{
        "image_name": 581857,                   a number (RefCOCO family), or a file name, perhaps without suffix
        "height": 640, "width": 427,
        "gt_ann": {"object_id": …, "caption": ["the lady", …], "segmentation": RLE, "bbox": [x, y, w, h], "area": …},
        "clicks_list": [{
            "idx": 0, "coor": [row, column], "is_positive": true, "mask": RLE, "box": …, "area": …, "iou": 0.8
        }, …]
    }, …]}

`mask` and `iou` are those *after* the click, `coor` is in pixels, RLEs are COCO's compressed ones. A rollout starts
from an empty mask; a click that did not raise the IoU is not in the list.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, InputError
from ..hlmat.actions import GRAMMARS, Answer, Click, Finish
from ..hlmat.arrays import Mask, mask_box
from ..hlmat.metrics import iou
from ..hlmat.trajectory import Step, Trajectory, decode_mask, encode_mask
from .record import Record, read_json
from .refcoco import find_image, image_folders, refcoco_image_name

__all__ = ["read_segagent_json", "segagent_records", "write_segagent_json"]

_UNNAMED = "object"
"""Prompt of an object without a caption."""


def segagent_records(
    path: Path, images: Path | None = None, label: str | None = None, content: Any = None
) -> list[Record]:
    """The objects of a file in the layout of the SegAgent data, without the clicks: one for each caption.

    Args:
        path: The JSON file.
        images: The folder of the image files; by default they are looked for beside and above the file.
        label: The prompt of objects without a caption; "object" by default.
        content: What is in the file, where it has been read already.

    Raises:
        ConfigError: It cannot be read, or it has another layout.
    """
    return [record for record, _ in _read(path, images, label, content)]


def read_segagent_json(
    path: Path,
    images: Path | None = None,
    label: str | None = None,
    failed: Callable[[Record, InputError], None] | None = None,
) -> Iterator[Trajectory]:
    """The clicks of a file in the layout of the SegAgent data as trajectories: one for each caption.

    The answers are written in the text protocol: each rates the mask that it was shown, before its click.

    Args:
        path: The JSON file.
        images: See `segagent_records`.
        label: See `segagent_records`.
        failed: Told of each object that cannot be read; the others go on. Without it the first one raises.

    Raises:
        ConfigError: The file cannot be read, or it has another layout.
        InputError: An object cannot be read, and there is no `failed`.
    """
    for record, clicks in _read(path, images, label, None):
        try:
            yield _trajectory(record, clicks)
        except InputError as error:
            if failed is None:
                raise
            failed(record, error)


def _read(path: Path, images: Path | None, label: str | None, content: Any) -> list[tuple[Record, Any]]:
    content = read_json(path) if content is None else content
    refclef = "refclef" in path.name.lower()
    try:
        info = content.get("info") or {}
        written = [Path(str(info["images"]))] if "images" in info else []  # by `write_segagent_json`
        folders = image_folders([images] if images else [path.parent, path.parent.parent, *written])
        found = []
        for number, entry in enumerate(content["data"]):
            name, truth = entry["image_name"], entry["gt_ann"]
            if isinstance(name, int):
                image = find_image(folders, refcoco_image_name(name, refclef), name)
            else:
                image = find_image(folders, name if Path(name).suffix else f"{name}.jpg")
            captions = truth.get("caption")
            for place, caption in enumerate(captions if isinstance(captions, list) and captions else [captions]):
                known = isinstance(caption, str) and caption not in ("", "Unknown")
                prompt = str(caption) if known else label or _UNNAMED
                meta = {"expression": True} if known else {}
                size = (int(entry["height"]), int(entry["width"]))
                record = Record(image, prompt, truth["segmentation"], f"{number}/{place}", size, meta)
                found.append((record, entry.get("clicks_list")))
        return found
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} does not have the layout of the SegAgent data: {type(error).__name__}: {error}"
        ) from error


def _trajectory(record: Record, clicks: Any) -> Trajectory:
    target = _mask(record.mask, record)
    mask = np.zeros_like(target)
    trajectory = Trajectory(record.prompt, str(record.image.resolve()))
    trajectory.meta = {"object": record.id, "kind": "empty", "source": "segagent", "target": encode_mask(target)}
    for click in clicks if isinstance(clicks, list) else []:
        action = _click(click, record, target.shape)
        trajectory.steps.append(_step(mask, action, target))
        mask = _mask(click.get("mask"), record)
    trajectory.steps.append(_step(mask, Finish() if mask.any() else None, target))
    return trajectory


def _step(mask: Mask, action: Click | Finish | None, target: Mask) -> Step:
    now = iou(mask, target)
    text = "" if action is None else GRAMMARS["segagent"]().format(Answer(action, now), mask.shape)
    return Step(mask, action, true_iou=now, text=text)


def _mask(rle: Any, record: Record) -> Mask:
    size = rle.get("size") if isinstance(rle, dict) else None
    if not isinstance(size, list) or tuple(size) != record.size:  # before a mask of any size is made
        raise InputError(f"a mask of object {record.id} is {str(size)[:40]}, its image {record.size}")
    try:
        return decode_mask(rle)
    except InputError as error:
        raise InputError(f"a mask of object {record.id} cannot be read: {error}") from error


def _click(click: Any, record: Record, size: Sequence[int]) -> Click:
    try:
        row, column = (float(number) for number in click["coor"])
        if not (0 <= row < size[0] and 0 <= column < size[1]):
            raise ValueError(f"row {row:g}, column {column:g} is outside the {size[1]}x{size[0]} image")
        return Click(column, row, bool(click["is_positive"]))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"a click of object {record.id} cannot be read: {error}") from error


def write_segagent_json(path: Path, trajectories: Iterable[Trajectory], images: Path | None = None) -> int:
    """Write trajectories in the layout of the SegAgent data; returns how many.

    The layout holds neither a box nor a mask to start from: only trajectories that start with nothing and have a click
    are written.

    Args:
        path: The JSON file; replaced where there is one.
        trajectories: With the true mask as `Trajectory.target`.
        images: The folder to which image names are relative, which is written, too; by default only the name of the
            file is written.
    """
    count = 0
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", errors="backslashreplace") as file:
        info = {"generator": "label-studio-segagent"} | ({} if images is None else {"images": str(images)})
        file.write(f'{{"info": {json.dumps(info)}, "data": [')
        for trajectory in trajectories:
            clicked = [step for step in trajectory.steps if isinstance(step.action, Click) and not step.undone]
            if trajectory.box is not None or not clicked or clicked[0].mask.any():
                continue
            file.write(",\n" if count else "\n")
            file.write(json.dumps(_entry(trajectory, images), ensure_ascii=False))
            count += 1
        file.write("\n]}\n")
    part.replace(path)
    return count


def _entry(trajectory: Trajectory, images: Path | None) -> dict[str, Any]:
    target = trajectory.target
    assert target is not None
    image = Path(trajectory.image)
    name = image.relative_to(images) if images is not None and image.is_relative_to(images) else Path(image.name)
    steps = [step for step in trajectory.steps if not step.undone]
    clicks: list[dict[str, Any]] = []
    for step, after in zip(steps, steps[1:], strict=False):
        if isinstance(step.action, Click):
            mask = after.mask
            clicks.append({
                "idx": len(clicks), "coor": list(step.action.pixel(*target.shape)), "is_positive": step.action.positive,
                "mask": encode_mask(mask), "box": _xywh(mask), "area": int(mask.sum()), "iou": iou(mask, target),
            })  # fmt: skip
    return {
        "image_name": name.as_posix(),
        "height": target.shape[0],
        "width": target.shape[1],
        "gt_ann": {
            "object_id": trajectory.meta.get("object"),
            "caption": [trajectory.prompt],
            "segmentation": encode_mask(target),
            "bbox": _xywh(target),
            "area": int(target.sum()),
        },
        "clicks_list": clicks,
    }


def _xywh(mask: Mask) -> list[float]:
    x0, y0, x1, y1 = mask_box(mask) or (0.0, 0.0, 0.0, 0.0)
    return [x0, y0, x1 - x0, y1 - y0]
