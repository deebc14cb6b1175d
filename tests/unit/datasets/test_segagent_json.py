from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage

from label_studio_segagent.datasets import load_samples
from label_studio_segagent.datasets.segagent_json import read_segagent_json, segagent_records, write_segagent_json
from label_studio_segagent.errors import ConfigError, InputError
from label_studio_segagent.hlmat.actions import Click, Finish
from label_studio_segagent.hlmat.trajectory import Step, Trajectory, encode_mask

HEIGHT, WIDTH = 20, 40


def drawn(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[rows, columns] = True
    return mask


TARGET = drawn(slice(5, 15), slice(10, 30))  # 200 pixels
FIRST = drawn(slice(5, 15), slice(10, 40))  # IoU 2/3
SECOND = drawn(slice(5, 15), slice(10, 31))  # IoU 20/21


def entry(**changes: Any) -> dict[str, Any]:
    """As the released generator writes it: mask and IoU are those after the click, coordinates row first."""
    return {
        "image_name": 581857,
        "height": HEIGHT,
        "width": WIDTH,
        "gt_ann": {
            "object_id": [0, 1],
            "caption": ["the lady", "Frau 👩 links"],
            "segmentation": encode_mask(TARGET),
            "bbox": [10.0, 5.0, 20.0, 10.0],
            "area": 200,
        },
        "clicks_list": [
            {"idx": 0, "coor": [9, 19], "is_positive": True, "mask": encode_mask(FIRST), "iou": 0.667},
            {"idx": 1, "coor": [10, 35], "is_positive": False, "mask": encode_mask(SECOND), "iou": 0.952},
        ],
        **changes,
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "train2014"
    folder.mkdir()
    PilImage.new("RGB", (WIDTH, HEIGHT)).save(folder / "COCO_train2014_000000581857.jpg")
    PilImage.new("RGB", (WIDTH, HEIGHT)).save(folder / "bird.jpg")
    return folder


def save(tmp_path: Path, *entries: Any, name: str = "refcoco_train.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps({"info": {"args": {"split": "train"}}, "data": list(entries)}))
    return path


def test_objects_for_every_caption(tmp_path: Path, images: Path) -> None:
    path = save(tmp_path, entry(), entry(image_name="bird", gt_ann={**entry()["gt_ann"], "caption": "a bird"}))
    records = segagent_records(path)
    assert [(r.id, r.prompt) for r in records] == [("0/0", "the lady"), ("0/1", "Frau 👩 links"), ("1/0", "a bird")]
    samples = list(load_samples(records))
    assert all(np.array_equal(sample.mask, TARGET) for sample in samples)
    assert [Path(s.path).name for s in samples] == ["COCO_train2014_000000581857.jpg"] * 2 + ["bird.jpg"]


@pytest.mark.parametrize("caption", [None, "", "Unknown", [None], ["Unknown"], []])
def test_objects_without_a_caption(tmp_path: Path, images: Path, caption: Any) -> None:
    path = save(tmp_path, entry(gt_ann={**entry()["gt_ann"], "caption": caption}))
    assert [r.prompt for r in segagent_records(path)] == ["object"]
    assert [r.prompt for r in segagent_records(path, label="bird")] == ["bird"]


def test_each_answer_rates_the_mask_before_its_click(tmp_path: Path, images: Path) -> None:
    first, second = read_segagent_json(save(tmp_path, entry()))
    assert (first.prompt, second.prompt) == ("the lady", "Frau 👩 links")
    assert [step.text for step in first.steps] == [
        "Current IOU: 0\nPositive point: (450, 475)",
        "Current IOU: 67\nNegative point: (500, 875)",
        "Current IOU: 95\nFinish",
    ]
    assert [step.action for step in first.steps] == [Click(19, 9, True), Click(35, 10, False), Finish()]
    assert [step.true_iou for step in first.steps] == pytest.approx([0, 2 / 3, 20 / 21])
    assert not first.steps[0].mask.any() and np.array_equal(first.steps[1].mask, FIRST)
    assert first.target is not None and np.array_equal(first.target, TARGET)
    assert Path(first.image).is_file()


def test_an_entry_without_clicks_teaches_nothing(tmp_path: Path, images: Path) -> None:
    for clicks in ([], None):
        [step] = next(read_segagent_json(save(tmp_path, entry(clicks_list=clicks)))).steps
        assert step.action is None and step.text == "" and not step.mask.any()


def test_written_and_read_again(tmp_path: Path, images: Path) -> None:
    before = list(read_segagent_json(save(tmp_path, entry())))
    part = Trajectory("refined", steps=[Step(FIRST, Click(35, 10, False)), Step(SECOND, Finish())])
    boxed = Trajectory("boxed", box=(1, 2, 3, 4), steps=before[0].steps)
    nothing = Trajectory("nothing", steps=[Step(np.zeros_like(TARGET), None)])
    out = tmp_path / "out" / "mine.json"
    out.parent.mkdir()
    assert write_segagent_json(out, [*before, part, boxed, nothing], tmp_path) == 2
    content = json.loads(out.read_text("utf-8"))["data"]
    assert content[0]["image_name"] == "train2014/COCO_train2014_000000581857.jpg"
    assert content[1]["gt_ann"]["caption"] == ["Frau 👩 links"]
    assert content[0]["gt_ann"]["bbox"] == [10, 5, 20, 10] and content[0]["gt_ann"]["area"] == 200
    assert content[0]["gt_ann"]["segmentation"] == encode_mask(TARGET)
    clicks = content[0]["clicks_list"]
    assert [(c["idx"], c["coor"], c["is_positive"]) for c in clicks] == [(0, [9, 19], True), (1, [10, 35], False)]
    assert [c["iou"] for c in clicks] == pytest.approx([2 / 3, 20 / 21])  # after the click
    assert [c["mask"] for c in clicks] == [encode_mask(FIRST), encode_mask(SECOND)]
    after = list(read_segagent_json(out, tmp_path))
    for one, two in zip(before, after, strict=True):
        assert (one.prompt, one.image) == (two.prompt, two.image)
        for a, b in zip(one.steps, two.steps, strict=True):
            assert (a.action, a.text, a.true_iou) == (b.action, b.text, b.true_iou) and np.array_equal(a.mask, b.mask)


def test_what_was_written_elsewhere_finds_its_pictures(tmp_path: Path) -> None:
    (tmp_path / "train2014").mkdir()
    (tmp_path / "train2014" / "COCO_train2014_000000581857.jpg").write_bytes(b"")
    before = list(read_segagent_json(save(tmp_path, entry())))
    out = tmp_path / "runs" / "deep" / "mine.json"
    out.parent.mkdir(parents=True)
    write_segagent_json(out, before, tmp_path / "train2014")
    assert [trajectory.image for trajectory in read_segagent_json(out)] == [one.image for one in before]


def test_undone_clicks_are_not_written(tmp_path: Path) -> None:
    empty = np.zeros_like(TARGET)
    steps = [
        Step(empty, Click(19, 9)),
        Step(FIRST, Click(0, 0, True), undone=True),
        Step(FIRST, Click(35, 10, False)),
        Step(SECOND, Finish()),
    ]
    trajectory = Trajectory("x", "/a/b.jpg", steps=steps, meta={"target": encode_mask(TARGET)})
    assert write_segagent_json(tmp_path / "o.json", [trajectory]) == 1
    [made] = json.loads((tmp_path / "o.json").read_text())["data"]
    assert made["image_name"] == "b.jpg" and [c["coor"] for c in made["clicks_list"]] == [[9, 19], [10, 35]]


def test_nothing_to_write(tmp_path: Path) -> None:
    assert write_segagent_json(tmp_path / "o.json", []) == 0
    assert json.loads((tmp_path / "o.json").read_text())["data"] == []
    assert segagent_records(tmp_path / "o.json") == []


CLICK = entry()["clicks_list"][0]


@pytest.mark.parametrize(
    "broken",
    [
        entry(clicks_list=[5]),
        entry(clicks_list=[{}]),
        entry(clicks_list=[{**CLICK, "coor": [5]}]),
        entry(clicks_list=[{**CLICK, "coor": ["a", 3]}]),
        entry(clicks_list=[{**CLICK, "coor": [20, 3]}]),
        entry(clicks_list=[{**CLICK, "coor": [float("nan"), 3]}]),
        entry(clicks_list=[{**CLICK, "mask": None}]),
        entry(clicks_list=[{**CLICK, "mask": {"size": [10**9, 10**9], "counts": "4"}}]),
        entry(clicks_list=[{**CLICK, "mask": {"size": [HEIGHT, WIDTH], "counts": "4"}}]),
        entry(gt_ann={**entry()["gt_ann"], "segmentation": None}),
    ],
    ids=lambda broken: str(broken["clicks_list"])[:60],
)
def test_a_broken_object_is_lost_alone(tmp_path: Path, images: Path, broken: Any) -> None:
    path = save(tmp_path, broken, entry())
    failures: list[str] = []
    found = list(read_segagent_json(path, failed=lambda record, error: failures.append(f"{record.id} {error}")))
    assert [t.meta["object"] for t in found] == ["1/0", "1/1"] and len(failures) == 2
    with pytest.raises(InputError, match="object 0/0"):
        list(read_segagent_json(path))


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"data": 5}', '{"data": [5]}', '{"data": [{}]}', '{"data": [{"image_name": null}]}', "x", ""],
)
def test_another_layout(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ConfigError, match=r"x\.json"):
        segagent_records(tmp_path / "x.json")
