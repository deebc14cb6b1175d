from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage

from label_studio_segagent.datasets.record import MaskFile, Record
from label_studio_segagent.errors import ConfigError, InputError
from label_studio_segagent.hlmat.arrays import Image
from label_studio_segagent.hlmat.trajectory import Trajectory, encode_mask, read_trajectories
from label_studio_segagent.segmenters import ImageState, load_segmenter
from label_studio_segagent.segmenters.grabcut import GrabCutSegmenter
from label_studio_segagent.training.generation import generate
from label_studio_segagent.training.trainer import open_image, weight_of
from label_studio_segagent.training.trajectories import TrajectorySettings

SETTINGS = TrajectorySettings(max_clicks=3, box=1)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Six objects on three pictures of different shapes, with unicode labels; the ring has a hole."""
    rng = np.random.default_rng(0)
    made = []
    for number, (height, width) in enumerate(((60, 90), (90, 50), (40, 40))):
        path = tmp_path / f"bild {number}.png"
        pixels = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
        for place, label in enumerate(("Ring 🍩", "квадрат")):
            mask = np.zeros((height, width), np.uint8)
            centre = (width // 4 if place == 0 else 3 * width // 4, height // 2)
            if place == 0:
                cv2.circle(cv2.circle(mask, centre, 9, 1, -1), centre, 3, 0, -1)
            else:
                cv2.rectangle(mask, (centre[0] - 6, centre[1] - 8), (centre[0] + 6, centre[1] + 8), 1, -1)
            pixels[mask > 0] = (220, 60, 40) if place == 0 else (40, 220, 80)
            rle = encode_mask(mask.astype(bool))
            made.append(Record(path, label, rle, f"{number}/{place}", (height, width), {"weight": 0.3}))
        PilImage.fromarray(pixels).save(path)
    return made


def keys(out: Path) -> list[tuple[str, str, int]]:
    return [(t.meta["object"], t.meta["kind"], t.meta["number"]) for t in read_trajectories(out)]


def test_every_object_gets_all_of_its_plan(records: list[Record], tmp_path: Path) -> None:
    out, seen = tmp_path / "deep" / "t.jsonl", []
    made = generate(records, "grabcut", out, SETTINGS, progress=seen.append)
    assert (made.objects, made.made, made.known, made.empty, made.failures) == (6, 24, 0, 0, [])
    assert made.seconds > 0 and sum(seen) == 6
    found = list(read_trajectories(out))
    assert keys(out) == [(r.id, *key) for r in records for key in SETTINGS.plan]
    assert len({t.meta["key"] for t in found}) == 6
    for trajectory in found:
        record = next(r for r in records if r.id == trajectory.meta["object"])
        assert (trajectory.prompt, trajectory.image) == (record.prompt, str(record.image.resolve()))
        assert trajectory.meta["target"] == record.mask and weight_of(trajectory) == 0.3
        assert trajectory.meta["rules"] == {"segmenter": "grabcut-1", **SETTINGS.rules}
        assert open_image(trajectory).shape[:2] == trajectory.steps[0].mask.shape
        assert (trajectory.box is not None) == (trajectory.meta["kind"] == "box")


def test_several_processes_give_the_same_file(records: list[Record], tmp_path: Path) -> None:
    one, two = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    generate(records, "grabcut", one, SETTINGS)
    made = generate(records, "grabcut", two, SETTINGS, jobs=2)
    assert made.made == 24 and one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("cut", [1, 40, 700, 3000])
def test_it_goes_on_after_a_kill_in_the_middle_of_a_line(records: list[Record], tmp_path: Path, cut: int) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "t.jsonl"
    generate(records, "grabcut", whole, SETTINGS)
    content = whole.read_bytes()
    for share in (0, 1, 2):
        end = len(content) * (share + 1) // 4 + cut
        out.write_bytes(content[:end])
        before = content[:end].count(b"\n")
        made = generate(records, "grabcut", out, SETTINGS)
        assert made.made == 24 - before - (content[end : end + 1] == b"\n")
        assert sorted(out.read_bytes().splitlines()) == sorted(content.splitlines())
    made = generate(records, "grabcut", out, SETTINGS)
    assert (made.objects, made.made, made.known) == (6, 0, 6)


def test_a_killed_process_loses_nothing_and_leaves_no_others(tmp_path: Path, records: list[Record]) -> None:
    many = []
    for number in range(100):
        image = tmp_path / f"{number}.png"
        image.write_bytes(records[0].image.read_bytes())
        many.append(replace(records[0], image=image, id=str(number)))
    rows = [[str(r.image), r.prompt, r.mask, r.id, r.size] for r in many]
    (tmp_path / "records.json").write_text(json.dumps(rows))
    out = tmp_path / "t.jsonl"
    code = (
        "import json, sys\nfrom pathlib import Path\n"
        "from label_studio_segagent.datasets.record import Record\n"
        "from label_studio_segagent.training.generation import generate\n"
        "if __name__ == '__main__':\n"
        "    rows = json.loads(Path(sys.argv[1]).read_text())\n"
        "    records = [Record(Path(i), p, m, n, tuple(s)) for i, p, m, n, s in rows]\n"
        "    generate(records, 'grabcut', Path(sys.argv[2]), jobs=2)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "records.json"), str(out)])
    deadline = time.monotonic() + 60
    while not (out.exists() and out.read_bytes().count(b"\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    children = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert children and out.read_bytes().count(b"\n") > 3
    while any(map(_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, children))
    written = {t.meta["key"] for t in read_trajectories(out)}
    assert written < {record.key for record in many}


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir() if Path("/proc").exists() else ():
        try:
            if entry.name.isdecimal() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.name))
        except (OSError, IndexError, ValueError):
            continue
    return found or [pid]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_more_of_a_kind_can_be_asked_for_later(records: list[Record], tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    generate(records, "grabcut", out, TrajectorySettings(refine=0, auxiliary=0))
    made = generate(records, "grabcut", out, TrajectorySettings(refine=2, auxiliary=0))
    assert made.known == 0 and {kind for _, kind, _ in keys(out)[6:]} == {"refine"}
    at_once = tmp_path / "once.jsonl"
    generate(records, "grabcut", at_once, TrajectorySettings(refine=2, auxiliary=0))
    assert sorted(out.read_bytes().splitlines()) == sorted(at_once.read_bytes().splitlines())


@pytest.mark.parametrize("other", [{"stop_iou": 0.9}, {"least_gain": 0.01}, {"max_clicks": 2}, {"seed": 1}])
def test_other_rules_need_another_file(records: list[Record], tmp_path: Path, other: Any) -> None:
    out = tmp_path / "t.jsonl"
    generate(records[:2], "grabcut", out, SETTINGS)
    [(name, value)] = other.items()
    with pytest.raises(ConfigError, match=f"made with .*{name}.*another file"):
        generate(records, "grabcut", out, replace(SETTINGS, **other))
    assert len(keys(out)) == 8


def test_trajectories_of_others_are_left_alone(records: list[Record], tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    out.write_text(Trajectory("somebody's").to_json() + "\n")
    generate(records[:1], "grabcut", out, SETTINGS)
    assert [t.prompt for t in read_trajectories(out)] == ["somebody's", *["Ring 🍩"] * 4]
    out.write_text("no trajectory\n")
    with pytest.raises(InputError, match="line 1"):
        generate(records[:1], "grabcut", out, SETTINGS)


def test_a_changed_annotation_is_a_new_object(records: list[Record], tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    generate(records[:1], "grabcut", out, SETTINGS)
    changed = replace(records[0], mask=records[1].mask)
    assert generate([changed], "grabcut", out, SETTINGS).made == 4
    assert generate([records[0], changed], "grabcut", out, SETTINGS).known == 2


class Counting(GrabCutSegmenter):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.images = self.clicks = 0

    def set_image(self, image: Image) -> ImageState:
        self.images += 1
        return super().set_image(image)

    def predict(self, *arguments: Any, **named: Any) -> Any:
        self.clicks += 1
        return super().predict(*arguments, **named)


def test_the_same_mask_under_several_prompts_is_segmented_once(records: list[Record], tmp_path: Path) -> None:
    once, thrice = Counting(), Counting()
    generate(records[:2], once, tmp_path / "1.jsonl", SETTINGS)
    said = [replace(records[0], prompt=text, id=text, meta={"split": text}) for text in ("the ring", "doughnut")]
    made = generate([*said, *records[:2]], thrice, tmp_path / "3.jsonl", SETTINGS)
    assert (thrice.images, thrice.clicks) == (1, once.clicks) and made.made == 16
    rings = [t for t in read_trajectories(tmp_path / "3.jsonl") if t.meta["target"] == records[0].mask]
    assert [t.prompt for t in rings] == ["the ring"] * 4 + ["doughnut"] * 4 + ["Ring 🍩"] * 4
    assert [t.meta.get("split") for t in rings[:8]] == ["the ring"] * 4 + ["doughnut"] * 4
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(rings[0].steps, rings[4].steps, strict=True))


def test_what_cannot_be_used_is_counted_and_the_rest_goes_on(records: list[Record], tmp_path: Path) -> None:
    nothing = encode_mask(np.zeros((60, 90), bool))
    one = np.zeros((60, 90), bool)
    one[59, 89] = True
    broken = [
        replace(records[0], id="empty", mask=nothing),
        replace(records[0], id="broken", mask="what?"),
        replace(records[0], id="missing", image=tmp_path / "missing.png"),
        replace(records[0], id="one pixel", mask=encode_mask(one)),
        replace(records[0], id="void", mask=MaskFile(tmp_path / "void.png", 7)),
    ]
    void = np.full((60, 90), 255, np.uint8)
    void[0, 0] = 3
    PilImage.fromarray(void).save(tmp_path / "void.png")
    out = tmp_path / "t.jsonl"
    made = generate([*broken, *records], "grabcut", out, SETTINGS)
    assert (made.objects, made.empty) == (11, 2)
    assert [name for name, _ in made.failures] == ["broken", "missing"]
    assert "missing.png" in dict(made.failures)["missing"]
    assert {name for name, _, _ in keys(out)} == {"one pixel", *(record.id for record in records)}


def test_a_tool_that_fails_loses_one_object(
    records: list[Record], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(GrabCutSegmenter):
        def predict(self, state: Any, clicks: Any, **named: Any) -> Any:
            if clicks and clicks[0].x > state.size[1] / 2:
                raise RuntimeError("out of memory")
            return super().predict(state, clicks, **named)

    made = generate(records, Failing(), tmp_path / "t.jsonl", TrajectorySettings(refine=0, auxiliary=0))
    assert made.failures == [(f"{i}/1", "RuntimeError: out of memory") for i in range(3)] and made.made == 3
    assert "0/1" in caplog.text


def test_nothing_to_do(tmp_path: Path) -> None:
    made = generate([], "grabcut", tmp_path / "t.jsonl")
    assert (made.objects, made.made) == (0, 0) and (tmp_path / "t.jsonl").read_bytes() == b""


def test_processes_need_a_name(records: list[Record], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="by its name"):
        generate(records, load_segmenter("grabcut"), tmp_path / "t.jsonl", jobs=2)
    with pytest.raises(ConfigError, match="1 or more"):
        generate(records, "grabcut", tmp_path / "t.jsonl", jobs=0)
    with pytest.raises(ConfigError, match="unknown segmenter 'nope'"):
        generate(records, "nope", tmp_path / "t.jsonl", jobs=2)
