from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from PIL import Image as PilImage
from typer.testing import CliRunner

from label_studio_segagent import __version__
from label_studio_segagent.cli import app
from label_studio_segagent.datasets import load_dataset, load_samples
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.hlmat.trajectory import Sample

pytestmark = pytest.mark.usefixtures("clean_environment")


def run(*arguments: Any, **environment: str) -> Any:
    """The command in this process."""
    runner = CliRunner()
    return runner.invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb", **environment})


def process(*command: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "200", **environment},
    )  # fmt: skip


@pytest.fixture
def photo(tmp_path: Path, scene: Sample) -> Path:
    path = tmp_path / "one.png"
    PilImage.fromarray(scene.image).save(path)
    return path


HELP = {
    (): [
        "human annotator",
        "serve",
        "demo",
        "predict",
        "trajectories",
        "evaluate",
        "train-embedded",
        "config",
        "doctor",
    ],
    ("serve",): ["LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY", "Settings > Model", "segagent doctor", "--port"],
    ("demo",): ["--label-studio", "photographs", "--out", "Ctrl+C"],
    ("predict",): ["--label", "several times", "COCO", "exit code", "--max-clicks", "--policy"],
    ("trajectories",): [
        "label-studio:<project id>",
        "refs(*).p",
        "--tau-diff",
        "--refine-starts",
        "goes on",
        "look at it",
    ],
    ("evaluate",): ["label-studio:<project id>", "--refine-from", "--candidates", "--noc", "goes on", "look at it"],
    ("config",): ["environment variable", "--json", "Secrets"],
    ("train-embedded",): ["segmenter", "policy", "[train]", "--resume"],
    ("train-embedded", "segmenter"): ["--data", "COCO", "--minutes", "--weight", "SEGAGENT_SEGMENTER=embedded:"],
    ("train-embedded", "policy"): ["--trajectory-minutes", "--segmenter", "SEGAGENT_POLICY=embedded:"],
    ("doctor",): ["what to do", "--project", "--backend-url", "exit code"],
}


@pytest.mark.parametrize("command", HELP)
def test_help_teaches(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    for word in HELP[command]:
        assert word in text, word


def test_no_command_shows_the_help() -> None:
    result = run()
    assert result.exit_code in (0, 2) and "Usage" in result.output and "serve" in result.output


@pytest.mark.parametrize("arguments", [("paint",), ("predict",), ("predict", "x.png"), ("serve", "--port", "nine")])
def test_wrong_usage_is_2_with_a_hint(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and "Usage" in result.output


HEAVY = "[m for m in ('torch', 'transformers', 'cv2', 'PIL', 'flask', 'pydantic', 'pycocotools') if m in sys.modules]"


def test_the_package_imports_nothing_heavy() -> None:
    done = process("-c", f"import sys, label_studio_segagent; print({HEAVY})")
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_version() -> None:
    assert run("--version").output == f"label-studio-segagent {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom label_studio_segagent.cli import app\n"
        f"try:\n    app(['--help'])\nexcept SystemExit:\n    print({HEAVY}, file=sys.stderr)"
    )
    done = process("-c", code)
    assert "Usage" in done.stdout and done.stderr.strip() == "[]"


def test_the_lazy_names_are_all_there() -> None:
    code = "import label_studio_segagent as s\nprint(sorted(n for n in s.__all__ if not hasattr(s, n)))\ns.nothing"
    done = process("-c", code)
    assert done.stdout.strip() == "[]"
    assert "AttributeError: module 'label_studio_segagent' has no attribute 'nothing'" in done.stderr


# predict


def test_predict(photo: Path, tmp_path: Path, scene: Sample) -> None:
    result = run("predict", photo, "--label", "ellipse", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "one.png" in result.output and str(tmp_path / "out") in result.output.replace("\n", "")
    mask = np.asarray(PilImage.open(tmp_path / "out" / "masks" / "one-ellipse-1.png")) > 127
    assert iou(mask, scene.mask) > 0.9
    assert (tmp_path / "out" / "strips" / "one-ellipse-1.png").exists()


def test_a_broken_file_is_reported_and_the_rest_is_written(photo: Path, tmp_path: Path, scene: Sample) -> None:
    second, broken = tmp_path / "two.jpg", tmp_path / "[red]broken[/b].jpg"
    PilImage.fromarray(np.ascontiguousarray(scene.image[:, ::-1])).save(second, quality=95)
    broken.mkdir(parents=True)  # the name has a slash
    broken = broken / "x.jpg"
    broken.write_bytes(second.read_bytes()[:400])
    result = run("predict", photo, broken, second, "--label", "ellipse", "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert f"{broken}: not an image that can be read" in result.output
    tasks = json.loads((tmp_path / "out" / "label_studio.json").read_text())
    assert [task["data"]["image"] for task in tasks] == ["one.png", "two.jpg"]
    assert all(task["predictions"][0]["result"] for task in tasks)


def test_nothing_but_broken_files(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    result = run("predict", tmp_path / "x.png", "--label", "a", "--out", tmp_path / "out")
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert "Written" not in result.output


def test_files_of_the_same_name_do_not_overwrite_each_other(photo: Path, tmp_path: Path, scene: Sample) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "one.png"
    PilImage.fromarray(np.ascontiguousarray(scene.image[:, ::-1])).save(other)
    result = run("predict", photo, other, photo, "--label", "a b", "--label", "a_b", "--label", "a b", "--out", "out")
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (tmp_path / "out" / "masks").iterdir())
    assert names == ["one-a_b-1-2.png", "one-a_b-1-3.png", "one-a_b-1-4.png", "one-a_b-1.png"]
    masks = [np.asarray(PilImage.open(tmp_path / "out" / "masks" / name)) > 127 for name in names]
    assert sorted(int(iou(mask, scene.mask) > 0.9) for mask in masks) == [0, 0, 1, 1]
    assert " one.png " in result.output and " other/one.png " in result.output
    tasks = json.loads((tmp_path / "out" / "label_studio.json").read_text())
    assert [task["data"]["image"] for task in tasks] == ["one.png", "one-2.png"]
    found = [(sample.prompt, Path(sample.path).name, sample) for sample in load_samples(load_dataset(tmp_path / "out"))]
    assert [(prompt, name) for prompt, name, _ in found] == [
        ("a b", "one.png"), ("a_b", "one.png"), ("a b", "one-2.png"), ("a_b", "one-2.png"),
    ]  # fmt: skip
    pixels = {"one.png": scene.image, "one-2.png": scene.image[:, ::-1]}
    assert all((sample.image == pixels[name]).all() for _, name, sample in found)
    assert [iou(sample.mask, scene.mask) > 0.9 for _, _, sample in found] == [True, True, False, False]


@pytest.mark.parametrize("option", ["--policy", "--segmenter"])
def test_an_unknown_model_is_said_without_a_traceback(photo: Path, option: str) -> None:
    done = process("-m", "label_studio_segagent.cli", "predict", photo, "--label", "a", option, "[/b]nope")
    assert done.returncode == 1
    assert f"Error: unknown {option[2:]} '[/b]nope'; known: " in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_wrong_number_names_the_setting(photo: Path) -> None:
    result = run("predict", photo, "--label", "a", "--max-clicks", "-3")
    assert result.exit_code == 1 and "SEGAGENT_MAX_CLICKS is '-3'" in result.output


@pytest.mark.parametrize("label", ["", "  "])
def test_an_empty_label(photo: Path, label: str) -> None:
    result = run("predict", photo, "--label", label)
    assert result.exit_code == 1 and "--label is empty" in result.output


def test_an_output_folder_that_is_a_file(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = run("predict", photo, "--label", "a", "--out", tmp_path / "file")
    assert result.exit_code == 1 and "Error:" in result.output and "file" in result.output
    assert isinstance(result.exception, SystemExit)


def test_settings_come_from_the_environment(photo: Path) -> None:
    result = run("predict", photo, "--label", "a", SEGAGENT_POLICY="nope")
    assert result.exit_code == 1 and "unknown policy 'nope'" in result.output


# serve, demo


def test_serve_says_what_is_wrong_and_exits_1(tmp_path: Path) -> None:
    arguments = ("serve", "--host", "127.0.0.1", "--port", "0", "--policy", "nope")
    result = run(*arguments)
    assert result.exit_code == 1 and "SEGAGENT_PORT is '0'" in result.output
    from label_studio_segagent.labelstudio.local import free_port

    done = process(
        "-m", "label_studio_segagent.cli", "serve", "--host", "127.0.0.1", "--port", free_port(), "--policy", "nope",
        SEGAGENT_DATA_DIR=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 1
    assert "Error: unknown policy 'nope'; known: " in done.stderr and "Traceback" not in done.stderr
    assert "LABEL_STUDIO_URL is not set" in done.stderr


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from label_studio_segagent import demo

    photos = [photo for photo in demo.demo_photos() if photo.path.stem == "cat"]
    monkeypatch.setattr(demo, "demo_photos", lambda: photos)
    result = run("demo", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "Mean IoU" in result.output and "segagent demo --label-studio" in result.output
    assert photos[0].path.name in result.output
    for name in ("sheet.png", "label_studio.json", "label_config.xml", "coco.json", "trajectories.jsonl"):
        assert name in result.output and (tmp_path / "out" / name).exists()


@pytest.mark.parametrize("command", ["serve", "demo", "predict", "evaluate", "trajectories", "star"])
def test_the_help_names_every_kind_of_model(command: str) -> None:
    from label_studio_segagent import policies, segmenters

    parameters = {p.name: p for p in typer.main.get_command(app).commands[command].params}  # type: ignore[attr-defined]
    said = parameters["segmenter"].help
    assert all(re.search(rf"\b{family}\b", said) for family in segmenters._FAMILIES) and "SEGAGENT_SEGMENTER" in said
    if command not in ("trajectories", "star"):
        said = parameters["policy"].help
        assert all(re.search(rf"\b{family}\b", said) for family in policies._FAMILIES) and "SEGAGENT_POLICY" in said
