from __future__ import annotations

import base64
import csv
import io
import json
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage
from typer.testing import CliRunner

from label_studio_segagent.cli import app
from label_studio_segagent.datasets import load_dataset
from label_studio_segagent.hlmat.trajectory import encode_mask

pytestmark = pytest.mark.usefixtures("clean_environment")
PLAIN = ("--policy", "saliency", "--segmenter", "grabcut")


def run(*arguments: Any, **environment: str) -> Any:
    runner = CliRunner()
    return runner.invoke(app, ["evaluate", *map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb", **environment})


def text(result: Any) -> str:
    return " ".join(result.output.split())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two pictures with a bright square each; the labels are not harmless."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(2):
        mask = np.zeros((60, 80), bool)
        mask[15:45, 20 : 50 + 10 * number] = True
        pixels = np.random.default_rng(number).integers(0, 60, (60, 80, 3)).astype(np.uint8)
        pixels[mask] = (230, 60, 40)
        PilImage.fromarray(pixels).save(root / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 80, "height": 60})
        annotations.append({"id": number, "image_id": number, "category_id": number, "segmentation": encode_mask(mask)})
    categories = [{"id": 0, "name": "<script>[b]x"}, {"id": 1, "name": "円盤"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "val.json").write_text(json.dumps(content))
    return root


def test_numbers_table_and_report(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    result = run(data, "--split", "val", "--out", out, *PLAIN, "--max-clicks", 2, "--blind", "--noc")
    assert result.exit_code == 0, result.output
    shown = text(result)
    for words in ("mIoU", "cIoU", "boundary IoU", "seconds per object", "NoC@85", "little off", "NoF", "blind", "(PRM)",
                  "<script>[b]x", "円盤", "2 objects measured", "report.html"):  # fmt: skip
        assert words in shown, words
    found = json.loads((out / "results.json").read_text("utf-8"))
    assert found["objects"] == found["images"] == 2 and found["failures"] == {}
    assert found["settings"]["max_clicks"] == 2 and len(found["per_click"]) == 3
    with (out / "objects.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["<script>[b]x", "円盤"]
    mean = np.mean([float(row["iou"]) for row in rows])
    assert found["metrics"]["miou"]["value"] == pytest.approx(mean) and mean > 0.8
    assert f"{mean:.3f}" in shown
    page = (out / "report.html").read_text("utf-8")
    assert "<script>" not in page and "&lt;script&gt;[b]x" in page and f"{mean:.3f}" in page
    assert page.count("<polyline") == 3 and page.count("<svg") == 2
    pictures = re.findall(r'base64,([^"]+)', page)
    assert len(pictures) == 4  # both are among the best and the worst
    with PilImage.open(io.BytesIO(base64.b64decode(pictures[0]))) as picture:
        assert picture.size[0] > 3 * 190
    again = run(data, "--split", "val", "--out", out, *PLAIN, "--max-clicks", 2, "--blind", "--noc", "--jobs", 2)
    assert again.exit_code == 0 and "0 objects measured" in text(again) and "2 had been measured" in text(again)
    assert json.loads((out / "results.json").read_text("utf-8")) == found
    other = run(data, "--split", "val", "--out", out, *PLAIN, "--max-clicks", 3, "--blind", "--noc")
    assert other.exit_code == 1 and "other settings" in text(other) and "'max_clicks': 2" in text(other)


def test_the_embedded_models_search_and_limit(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    result = run(data, "--out", out, "--candidates", 2, "--max-clicks", 2, "--limit", 1)
    assert result.exit_code == 0, result.output
    found = json.loads((out / "results.json").read_text("utf-8"))
    assert found["objects"] == 1 and found["settings"]["candidates"] == 2
    assert found["settings"]["policy"].startswith("embedded-")
    assert found["rating"]["final"]["masks"] == 1 and found["metrics"]["miou"]["low"] is None


def test_refining(data: Path, tmp_path: Path) -> None:
    result = run(data, "--out", tmp_path / "a", *PLAIN, "--refine-from", "corrupted")
    assert result.exit_code == 0 and "mIoU of the start masks" in text(result)
    found = json.loads((tmp_path / "a" / "results.json").read_text("utf-8"))
    metrics = found["metrics"]
    gain = metrics["miou"]["value"] - metrics["start_miou"]["value"]
    assert metrics["gain"]["value"] == pytest.approx(gain) and 0 < metrics["start_miou"]["value"] < 1
    masks = tmp_path / "masks.jsonl"
    masks.write_text(json.dumps({"id": "0", "mask": load_dataset(data)[0].mask}))
    result = run(data, "--out", tmp_path / "b", *PLAIN, "--refine-from", masks)
    assert result.exit_code == 2 and "1: no mask is given for object 1" in text(result)
    found = json.loads((tmp_path / "b" / "results.json").read_text("utf-8"))
    assert found["metrics"]["start_miou"]["value"] == 1.0 and list(found["failures"]) == ["1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "there is no nowhere"),
        (("label-studio:x",), "label-studio:12"),
        (("label-studio:3",), "LABEL_STUDIO_URL is not set"),
        (("label-studio:3", "--split", "val"), "has no split 'val'"),
        (("DATA", "--split", "test"), "no split 'test'; it has val"),
        (("DATA", "--policy", "[b]nope"), "unknown policy '[b]nope'"),
        (("DATA", "--candidates", "0"), "SEGAGENT_CANDIDATES"),
        (("DATA", "--refine-from", "nowhere.jsonl"), "cannot be read from nowhere.jsonl"),
    ],
)
def test_what_is_wrong_is_said(data: Path, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    given = [data if argument == "DATA" else argument for argument in arguments]
    result = run(*given, "--out", tmp_path / "o", "--segmenter", "grabcut")
    assert result.exit_code == 1 and "Error:" in result.output and words in text(result)
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("option", [("--jobs", "0"), ("--limit", "0"), ("--seed", "-1"), ("--out",)])
def test_wrong_usage(data: Path, tmp_path: Path, option: tuple[str, ...]) -> None:
    assert run(data, "--out", tmp_path / "o", *option).exit_code == 2


def test_nothing_to_measure(data: Path, tmp_path: Path) -> None:
    content = json.loads((data / "val.json").read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = "none"
    (data / "val.json").write_text(json.dumps(content))
    result = run(data, "--out", tmp_path / "o", *PLAIN)
    assert result.exit_code == 1 and "no object of" in text(result) and "the first, 0: the mask of" in text(result)


def test_ctrl_c_and_the_same_command_again(data: Path, tmp_path: Path, start_command: Any) -> None:
    content = json.loads((data / "val.json").read_text())
    one = content["annotations"][0]
    content["images"] = [{**content["images"][0], "id": n, "file_name": f"{n}.png"} for n in range(200)]
    content["annotations"] = [{**one, "id": n, "image_id": n} for n in range(200)]
    for number in range(200):
        (data / "images" / f"{number}.png").write_bytes((data / "images" / "0.png").read_bytes())
    (data / "val.json").write_text(json.dumps(content))
    out = tmp_path / "o"
    command = [
        sys.executable, "-m", "label_studio_segagent.cli", "evaluate", str(data), "--out", str(out), *PLAIN,
        "--jobs", "2",
    ]  # fmt: skip
    process = start_command(command)
    deadline, rows = time.monotonic() + 60, out / "objects.jsonl"
    while not (rows.exists() and rows.read_bytes().count(b"\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Stopped; the same command goes on." in said and "Traceback" not in said
    before = rows.read_bytes()
    assert 3 < before.count(b"\n") < 200
    result = run(data, "--out", out, *PLAIN)
    assert result.exit_code == 0 and rows.read_bytes().startswith(before) and rows.read_bytes().count(b"\n") == 200
