from __future__ import annotations

import csv
import sys
from pathlib import Path

import cv2
import pytest

from label_studio_segagent.training.curves import Curves


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "curves.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_table_picture_and_events(tmp_path: Path) -> None:
    curves = Curves(tmp_path, ("loss", "kept_back"))
    for step in range(1, 4):
        curves.add(step, step / 10, {"loss": 1 / step})
    curves.add(4, 0.4, {"kept_back": 0.25})
    curves.close()
    assert [r["loss"] for r in rows(tmp_path)] == ["1.0", "0.5", str(1 / 3), ""]
    assert rows(tmp_path)[3] == {"step": "4", "minutes": "0.4", "loss": "", "kept_back": "0.25"}
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert picture.shape[0] == 180, "one panel: a single point is no curve"
    [events] = tmp_path.glob("events.out.tfevents.*")
    assert b"kept_back" in events.read_bytes() and b"loss" in events.read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_a_resumed_run_repeats_nothing(tmp_path: Path) -> None:
    first = Curves(tmp_path, ("loss",))
    for step in range(1, 6):
        first.add(step, step, {"loss": step})
    first.close()
    again = Curves(tmp_path, ("loss",), step=3)
    again.add(4, 4.5, {"loss": 40})
    again.close()
    assert [(r["step"], r["loss"]) for r in rows(tmp_path)] == [("1", "1"), ("2", "2"), ("3", "3"), ("4", "40")]
    other = Curves(tmp_path, ("loss", "rate"), step=3)
    other.add(4, 4.5, {"rate": 1})
    other.close()
    assert [r["step"] for r in rows(tmp_path)] == ["4"], "the file of another version is not mixed with"


def test_without_tensorboardx_there_are_no_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    curves = Curves(tmp_path, ("loss",))
    for step in (1, 2):
        curves.add(step, step, {"loss": 1 / step})
    curves.close()
    assert {p.name for p in tmp_path.iterdir()} == {"curves.csv", "curves.png"}
