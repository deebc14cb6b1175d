from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage
from typer.testing import CliRunner

from label_studio_segagent.cli import app
from label_studio_segagent.datasets.coco_writer import CocoWriter
from label_studio_segagent.hlmat.trajectory import encode_mask, read_trajectories
from label_studio_segagent.training.trainer import open_image

pytestmark = pytest.mark.usefixtures("clean_environment")


def run(*arguments: Any, **environment: str) -> Any:
    runner = CliRunner()
    return runner.invoke(
        app, ["trajectories", *map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb", **environment}
    )


def text(result: Any) -> str:
    return " ".join(result.output.split())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A COCO folder: two pictures with a disc and a square each, one of them empty, one label not Latin."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    rng = np.random.default_rng(0)
    for number in range(2):
        pixels = rng.integers(0, 60, (70, 100, 3)).astype(np.uint8)
        for category, centre in ((1, (25, 35)), (2, (75, 35))):
            mask = np.zeros((70, 100), np.uint8)
            if (number, category) != (1, 2):
                cv2.circle(mask, centre, 12 + number, 1, -1)
            pixels[mask > 0] = (230, 60, 40)
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": category,
                 "segmentation": encode_mask(mask.astype(bool))}
            )  # fmt: skip
        PilImage.fromarray(pixels).save(root / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 100, "height": 70})
    categories = [{"id": 1, "name": "[b]Scheibe"}, {"id": 2, "name": "円盤"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "train.json").write_text(json.dumps(content))
    return root


def test_from_masks_to_trajectories_statistics_and_pictures(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "train.jsonl"
    result = run(data, "--split", "train", "--out", out, "--segmenter", "grabcut", "--box-starts", 1)
    assert result.exit_code == 0, result.output
    found = list(read_trajectories(out))
    assert len(found) == 12 and {t.prompt for t in found} == {"[b]Scheibe", "円盤"}
    shown = text(result)
    for words in ("empty", "refine", "auxiliary", "[b]Scheibe", "円盤", "12 trajectories of 4 objects", "objects/s",
                  "1 have an empty mask", "train.png", "train.stats.json"):  # fmt: skip
        assert words in shown, words
    numbers = json.loads((tmp_path / "runs" / "train.stats.json").read_text("utf-8"))
    assert numbers["objects"] == 3 and numbers["kinds"]["box"]["trajectories"] == 3
    assert numbers["run"]["made"] == 12 and numbers["run"]["empty"] == 1 and numbers["failures"] == {}
    assert numbers["settings"] == {"stop_iou": 0.98, "least_gain": 0.0, "max_clicks": 7, "seed": 0}
    assert numbers["labels"]["[b]Scheibe"]["objects"] == 2
    with PilImage.open(tmp_path / "runs" / "train.png") as picture:
        assert picture.size[1] > 8 * 260
    again = run(data, "--out", out, "--segmenter", "grabcut", "--box-starts", 1)
    assert "0 trajectories of 1 objects" in text(again) and "3 objects had theirs" in text(again)


def test_the_settings_are_used(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    result = run(
        data, "--out", out, "--segmenter", "grabcut", "--tau-stop", 0.9, "--tau-diff", 0.01, "--max-clicks", 2,
        "--refine-starts", 2, "--auxiliary", 0, "--seed", 7, "--limit", 1, "--pictures", 0, "--jobs", 2,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = list(read_trajectories(out))
    assert [(t.meta["kind"], t.meta["number"]) for t in found] == [("empty", 0), ("refine", 0), ("refine", 1)]
    rules = {"stop_iou": 0.9, "least_gain": 0.01, "max_clicks": 2, "seed": 7, "segmenter": "grabcut-1"}
    assert found[0].meta["rules"] == rules
    assert not out.with_suffix(".png").exists()


def test_the_segmenter_comes_from_the_environment(data: Path, tmp_path: Path) -> None:
    arguments = (data, "--out", tmp_path / "t.jsonl", "--limit", 1, "--auxiliary", 0, "--refine-starts", 0)
    assert run(*arguments, SEGAGENT_SEGMENTER="grabcut").exit_code == 0
    [found] = read_trajectories(tmp_path / "t.jsonl")
    assert found.meta["rules"]["segmenter"] == "grabcut-1"
    result = run(*arguments, SEGAGENT_SEGMENTER="nope")
    assert result.exit_code == 1 and "unknown segmenter 'nope'" in result.output


def test_objects_that_cannot_be_read_are_named_and_the_exit_code_is_2(data: Path, tmp_path: Path) -> None:
    content = json.loads((data / "train.json").read_text())
    for number in range(20):
        content["annotations"].append({"id": 100 + number, "image_id": 0, "category_id": 1, "segmentation": "[b]none"})
    (data / "train.json").write_text(json.dumps(content))
    result = run(data, "--out", tmp_path / "t.jsonl", "--segmenter", "grabcut", "--pictures", 0)
    assert result.exit_code == 2 and len(list(read_trajectories(tmp_path / "t.jsonl"))) == 9
    assert "100: the mask of object 100 cannot be read" in text(result) and "[b]none" in text(result)
    assert "and 10 more, all in .stats.json" in text(result)
    assert len(json.loads((tmp_path / "t.stats.json").read_text())["failures"]) == 20


@pytest.mark.parametrize(
    ("size", "option", "words"),
    [
        ((60, 90), (), ""),  # (height, width) of what is shown; 90 x 60 are stored
        ((90, 60), (), ""),
        ((60, 90), ("--exif", "applied"), ""),
        ((90, 60), ("--exif", "ignored"), ""),
        ((60, 90), ("--exif", "ignored"), "--exif applied takes its masks as drawn on (60, 90)"),
        ((90, 60), ("--exif", "applied"), "--exif ignored takes its masks as drawn on (90, 60)"),
        ((60, 90), ("--exif", "maybe"), "--exif is 'maybe'; it must be applied or ignored"),
    ],
)
def test_photographs_that_an_exif_tag_turns(tmp_path: Path, size: Any, option: tuple[str, ...], words: str) -> None:
    exif = PilImage.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    pixels = np.zeros((90, 60, 3), np.uint8)
    pixels[20:50, 10:40] = 255
    PilImage.fromarray(pixels).save(tmp_path / "images" / "a.png", exif=exif)
    mask = np.zeros(size, bool)
    mask[10:40, 20:50] = True
    writer = CocoWriter(tmp_path, ["cat"])
    writer.add_object(writer.add_image("a.png", size), "cat", encode_mask(mask))
    writer.write("train.json")
    out = tmp_path / "t.jsonl"
    result = run(tmp_path / "train.json", "--out", out, "--segmenter", "grabcut", "--pictures", 0, *option)
    assert words in text(result) and (result.exit_code == 0) == (not words)
    if not words:
        for trajectory in read_trajectories(out):
            assert open_image(trajectory).shape[:2] == trajectory.steps[0].mask.shape == size


def test_no_objects_are_an_error(data: Path, tmp_path: Path) -> None:
    content = json.loads((data / "train.json").read_text())
    for annotation in content["annotations"]:
        annotation["image_id"] = 99
    (data / "train.json").write_text(json.dumps(content))
    result = run(data, "--out", tmp_path / "t.jsonl", "--segmenter", "grabcut")
    assert result.exit_code == 1 and "has no objects" in text(result) and "no image 99" in text(result)


def test_mask_folders_and_labels(tmp_path: Path) -> None:
    (tmp_path / "d" / "images").mkdir(parents=True)
    (tmp_path / "d" / "masks").mkdir()
    mask = cv2.circle(np.zeros((60, 60), np.uint8), (30, 30), 15, 255, -1)
    PilImage.fromarray(np.repeat(mask[..., None], 3, 2)).save(tmp_path / "d" / "images" / "a.jpg")
    PilImage.fromarray(mask).save(tmp_path / "d" / "masks" / "a.png")
    result = run(tmp_path / "d", "--out", tmp_path / "t.jsonl", "--segmenter", "grabcut")
    assert result.exit_code == 1 and "give a label" in text(result)
    result = run(tmp_path / "d", "--out", tmp_path / "t.jsonl", "--segmenter", "grabcut", "--label", "Zelle")
    assert result.exit_code == 0 and {t.prompt for t in read_trajectories(tmp_path / "t.jsonl")} == {"Zelle"}


def test_the_segagent_layout_out_and_in(data: Path, tmp_path: Path) -> None:
    first, released, second = tmp_path / "1.jsonl", tmp_path / "released.json", tmp_path / "2.jsonl"
    result = run(data, "--out", first, "--segmenter", "grabcut", "--segagent-json", released)
    assert result.exit_code == 0 and "3 trajectories in the SegAgent layout" in text(result)
    result = run(released, "--out", second, "--images", data / "images", "--recorded")
    assert result.exit_code == 0, result.output
    ours = [t for t in read_trajectories(first) if t.meta["kind"] == "empty"]
    theirs = list(read_trajectories(second))
    assert [(t.prompt, t.image) for t in ours] == [(t.prompt, t.image) for t in theirs]
    for one, two in zip(ours, theirs, strict=True):
        assert [step.action for step in one.steps[:-1]] == [step.action for step in two.steps[:-1]]
        assert [step.text for step in one.steps[:-1]] == [step.text for step in two.steps[:-1]]
    result = run(released, "--out", second, "--images", data / "images", "--recorded")
    assert result.exit_code == 1 and "is there already" in text(result)
    masks = run(released, "--out", tmp_path / "3.jsonl", "--images", data / "images", "--segmenter", "grabcut")
    assert masks.exit_code == 0 and len(list(read_trajectories(tmp_path / "3.jsonl"))) == 9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "there is no nowhere"),
        (("label-studio:x",), "label-studio:12"),
        (("label-studio:3",), "LABEL_STUDIO_URL is not set"),
        (("label-studio:3", "--split", "val"), "has no split 'val'"),
        (("DATA", "--split", "val"), "no split 'val'; it has train"),
        (("DATA", "--tau-stop", "1.5"), "tau_stop is 1.5"),
        (("DATA", "--tau-diff", "nan"), "tau_diff is nan"),
        (("DATA", "--segmenter", "[b]nope"), "unknown segmenter '[b]nope'"),
    ],
)
def test_what_is_wrong_is_said(data: Path, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    given = [data if argument == "DATA" else argument for argument in arguments]
    result = run(*given, "--out", tmp_path / "t.jsonl")
    assert (
        result.exit_code == 1
        and f"Error: {words}" in text(result).replace("Error: ", "Error: ", 1)
        or words in text(result)
    )
    assert isinstance(result.exception, SystemExit)


def test_an_output_that_cannot_be_written(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(data, "--out", tmp_path / "file" / "t.jsonl", "--segmenter", "grabcut")
    assert result.exit_code == 1 and "Error:" in result.output and isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_and_the_same_command_again(data: Path, tmp_path: Path, jobs: int, start_command: Any) -> None:
    content = json.loads((data / "train.json").read_text())
    content["images"] = [{**content["images"][0], "id": n} for n in range(300)]
    one = content["annotations"][0]
    content["annotations"] = [{**one, "id": n, "image_id": n} for n in range(300)]
    for number, image in enumerate(content["images"]):
        image["file_name"] = f"{number}.png"
        (data / "images" / f"{number}.png").write_bytes((data / "images" / "0.png").read_bytes())
    (data / "train.json").write_text(json.dumps(content))
    out = tmp_path / "t.jsonl"
    command = [
        sys.executable, "-m", "label_studio_segagent.cli", "trajectories", str(data), "--out", str(out),
        "--segmenter", "grabcut", "--jobs", str(jobs),
    ]  # fmt: skip
    process = start_command(command)
    deadline = time.monotonic() + 60
    while not (out.exists() and out.read_bytes().count(b"\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Stopped; the same command goes on." in said and "Traceback" not in said
    before = out.read_bytes()
    assert 3 < before.count(b"\n") < 900 and before.endswith(b"\n")
    result = run(data, "--out", out, "--segmenter", "grabcut", "--pictures", 0, "--limit", 20)
    assert result.exit_code == 0 and out.read_bytes().startswith(before)
