from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from label_studio_segagent.hlmat.actions import Click, Finish
from label_studio_segagent.hlmat.trajectory import Step, Trajectory, encode_mask, write_trajectories
from label_studio_segagent.training.trajectory_report import draw_trajectories, summarise

MASK = np.ones((8, 8), bool)


def trajectory(number: int, kind: str, ious: list[float], signs: str, label: str = "Katze 🐈") -> Trajectory:
    actions = [Click(3, 4, sign == "+") for sign in signs]
    steps = [Step(MASK, action, true_iou=value) for action, value in zip(actions, ious, strict=False)]
    if len(ious) > len(signs):
        steps.append(Step(MASK, Finish(), true_iou=ious[-1]))
    meta = {"key": f"k{number}", "kind": kind, "number": 0, "stopped": "no gain", "target": encode_mask(MASK)}
    return Trajectory(label, steps=steps, meta=meta)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    out = tmp_path / "t.jsonl"
    write_trajectories(
        out,
        [
            trajectory(1, "auxiliary", [0.4], "-"),
            trajectory(1, "empty", [0.0, 0.5, 0.9], "+-"),
            trajectory(2, "empty", [0.0, 0.7], "+"),
            trajectory(3, "empty", [0.0], "", "dog"),
        ],
    )
    return out


def test_numbers(path: Path) -> None:
    found = summarise(path)
    assert found.objects == 3 and list(found.kinds) == ["empty", "auxiliary"] and not found.examples
    empty = found.kinds["empty"]
    assert empty["trajectories"] == 3 and empty["steps"] == {"1": 1, "2": 1, "3": 1}
    assert empty["clicks"] == 3 and empty["positive"] == pytest.approx(2 / 3, abs=1e-4)
    assert empty["iou_by_click"] == pytest.approx([0, 0.4, (0.9 + 0.7 + 0) / 3], abs=1e-4)  # what has ended counts on
    assert empty["reached"] == [3, 2, 1] and empty["stopped"] == {"no gain": 3}
    assert found.kinds["auxiliary"]["iou_by_click"] == [0.4]
    assert list(found.labels) == ["Katze 🐈", "dog"]
    assert found.labels["Katze 🐈"] == {"objects": 2, "clicks": 1.5, "iou": 0.8}
    assert found.labels["dog"] == {"objects": 1, "clicks": 0.0, "iou": 0.0}


def test_examples_are_the_same_each_time_and_have_clicks(path: Path) -> None:
    for count in (1, 3, 4, 9):
        first, second = (summarise(path, count).examples for _ in range(2))
        assert [t.to_json() for t in first] == [t.to_json() for t in second]
        assert len(first) == min(count, 4)
        assert all(t.clicks for t in first[:3])


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").touch()
    found = summarise(tmp_path / "t.jsonl", 3)
    assert (found.objects, found.kinds, found.labels, found.examples) == (0, {}, {}, [])


def test_pictures(tmp_path: Path, path: Path) -> None:
    examples = list(summarise(path, 3).examples)
    assert draw_trajectories(examples, tmp_path / "none.png") == 0 and not (tmp_path / "none.png").exists()
    PilImage.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "a.png")
    for each in examples[:2]:
        each.image = str(tmp_path / "a.png")
    assert draw_trajectories(examples, tmp_path / "two.png") == 2
    with PilImage.open(tmp_path / "two.png") as picture:
        two = picture.size
    draw_trajectories(examples[:1], tmp_path / "one.png")
    with PilImage.open(tmp_path / "one.png") as picture:
        assert two[1] > 1.8 * picture.size[1] - 20
