from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from label_studio_segagent.errors import RegionError
from label_studio_segagent.labelstudio.config import Control, Label
from label_studio_segagent.labelstudio.regions import Region, read_regions, write_region
from label_studio_segagent.labelstudio.standing import boxed_region, standing_region

HEIGHT, WIDTH = 60, 100
BRUSH = Control("brush", "brush", "image", (Label("cat", "cat", ""), Label("dog", "dog", "")))


def block(x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:50, x0:x1] = True
    return mask


def drawn(x0: int, x1: int, label: str = "cat", **more: Any) -> dict[str, Any]:
    [result] = write_region(block(x0, x1), BRUSH, Label(label, label, ""), 0.9)
    return {**result, **more}


def click(x: float, y: float, label: str = "cat", **more: Any) -> Region:
    value = {"x": (x + 0.5) / WIDTH * 100, "y": (y + 0.5) / HEIGHT * 100, "width": 0.2, "keypointlabels": [label]}
    point = {"id": "p", "type": "keypointlabels", "from_name": "point", "to_name": "image", "value": value, **more}
    return read_regions([point])[0]


def meant(task: dict[str, Any], point: Region) -> str | None:
    found = standing_region(task, point, HEIGHT, WIDTH)
    return None if found is None else found[0].id


def test_on_and_beside_a_region_but_not_far_from_it() -> None:
    one, two = drawn(10, 40), drawn(50, 90)
    task = {"drafts": [{"id": 1, "result": [one, two]}]}
    assert meant(task, click(20, 30)) == one["id"] and meant(task, click(60, 30)) == two["id"]
    assert meant(task, click(41, 30)) == one["id"] and meant(task, click(48, 30)) == two["id"]
    assert meant(task, click(45, 30)) is None and meant(task, click(20, 3)) is None
    found = standing_region(task, click(20, 30), HEIGHT, WIDTH)
    assert found is not None and np.array_equal(found[1], block(10, 40))


def test_only_regions_of_the_same_label_on_the_same_picture() -> None:
    task = {"drafts": [{"id": 1, "result": [drawn(10, 40, "dog")]}]}
    assert meant(task, click(20, 30)) is None and meant(task, click(20, 30, "dog")) is not None
    listed = {"drafts": [{"id": 1, "result": [drawn(10, 40, item_index=1)]}]}
    assert meant(listed, click(20, 30)) is None and meant(listed, click(20, 30, item_index=1)) is not None


def test_what_the_annotator_sees_decides() -> None:
    old, new = drawn(10, 40), drawn(10, 40)
    first = {"id": 1, "updated_at": "2026-01-01", "result": [old]}
    second = {"id": 2, "updated_at": "2026-01-02", "result": [new]}
    submitted = [{"id": 9, "result": [old]}]
    assert meant({"drafts": [second, first], "annotations": submitted}, click(20, 30)) == new["id"]
    assert meant({"drafts": [], "annotations": submitted}, click(20, 30)) == old["id"]
    cancelled = [{"id": 9, "was_cancelled": True, "result": [old]}]
    task = {"annotations": cancelled, "predictions": [{"id": 3, "result": [new]}]}
    assert meant(task, click(20, 30)) == new["id"]


def test_odd_tasks_start_a_new_region() -> None:
    broken = drawn(10, 40)
    broken["value"] = {**broken["value"], "rle": [1, 2, 3]}
    tasks: list[dict[str, Any]] = [
        {}, {"drafts": None}, {"drafts": ["x"]}, {"drafts": [{"id": 1}]},
        {"drafts": [{"id": 1, "result": [broken, 7]}]}, {"predictions": [{"id": 1, "result": "text"}]},
    ]  # fmt: skip
    assert [meant(task, click(20, 30)) for task in tasks] == [None] * len(tasks)


def around(x0: float, y0: float, x1: float, y1: float, label: str = "cat", kind: str = "rectangle") -> Region:
    """A box in pixels, as a smart tool draws it."""
    x, y, w, h = x0 / WIDTH * 100, y0 / HEIGHT * 100, (x1 - x0) / WIDTH * 100, (y1 - y0) / HEIGHT * 100
    value = {"x": x, "y": y, "width": w, "height": h, "rotation": 0}
    if kind == "ellipse":
        value = {"x": x + w / 2, "y": y + h / 2, "radiusX": w / 2, "radiusY": h / 2, "rotation": 0}
    result = {"id": "b", "from_name": "box", "to_name": "image", "type": f"{kind}labels"}
    [region] = read_regions([{**result, "value": {**value, f"{kind}labels": [label]}}])
    return region


def redone(task: dict[str, Any], box: Region) -> str | None:
    found = boxed_region(task, box, HEIGHT, WIDTH)
    return None if found is None else found[0].id


def test_a_box_around_a_region_is_about_it() -> None:
    one, two = drawn(10, 40), drawn(50, 90)
    task = {"drafts": [{"id": 1, "result": [one, two]}]}
    assert redone(task, around(8, 8, 42, 52)) == one["id"] and redone(task, around(52, 12, 88, 50)) == two["id"]
    assert redone(task, around(8, 8, 42, 52, kind="ellipse")) == one["id"]
    assert redone(task, around(0, 0, 48, 60)) == one["id"]  # far around it, but with no other inside
    assert redone(task, around(0, 0, 100, 60)) is None  # around both
    assert redone(task, around(12, 12, 22, 30)) is None and redone(task, around(30, 5, 60, 55)) is None
    found = boxed_region(task, around(8, 8, 42, 52), HEIGHT, WIDTH)
    assert found is not None and np.array_equal(found[1], block(10, 40))


def test_a_box_is_about_the_region_that_it_fits_best() -> None:
    small, large = drawn(30, 70), drawn(20, 80)
    task = {"drafts": [{"id": 1, "result": [small, large]}]}
    assert redone(task, around(20, 10, 80, 50)) == large["id"] and redone(task, around(31, 10, 69, 50)) == small["id"]


def test_a_box_is_not_about_other_labels() -> None:
    task = {"drafts": [{"id": 1, "result": [drawn(10, 40, "dog")]}]}
    assert redone(task, around(8, 8, 42, 52)) is None and redone(task, around(8, 8, 42, 52, "dog")) is not None
    assert redone({}, around(8, 8, 42, 52)) is None
    with pytest.raises(RegionError, match="covers no pixel"):
        redone(task, around(200, 8, 210, 52, "dog"))
