from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import label_studio_segagent
from label_studio_segagent import SegAgent
from label_studio_segagent.cli import app
from label_studio_segagent.demo import demo_photos
from label_studio_segagent.policies.embedded import EmbeddedPolicy
from label_studio_segagent.segmenters.embedded import EmbeddedSegmenter

DEMO_DATA = Path(label_studio_segagent.__file__).parent / "demo_data"

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["train-embedded", *map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The demo's photographs as training data."""
    root = tmp_path / "data"
    root.mkdir()
    (root / "images").symlink_to(DEMO_DATA / "images")
    (root / "train.json").symlink_to(DEMO_DATA / "demo.json")
    return root


def test_both_models_are_trained_and_work_together(data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "segmenter", tmp_path / "policy"
    result = run("segmenter", "--data", data, "--out", first, "--minutes", 0.02)
    assert result.exit_code == 0, result.output
    assert {"segmenter.safetensors", "MODEL_CARD.md", "checkpoint.pt", "segmenter.csv"} <= {
        p.name for p in first.iterdir()
    }
    weights = first / "segmenter.safetensors"
    arguments = ("--data", data, "--out", second, "--segmenter", weights, "--trajectory-minutes", 0.1)
    result = run("policy", *arguments, "--minutes", 0.01)
    assert result.exit_code == 0, result.output
    assert "policy.safetensors" in result.output and (second / "states.jsonl").stat().st_size > 0
    again = run("policy", *arguments, "--minutes", 0.01)
    assert again.exit_code == 1 and "--resume" in again.output
    assert run("policy", *arguments, "--minutes", 0.02, "--resume").exit_code == 0
    agent = SegAgent(
        EmbeddedPolicy(second / "policy.safetensors", tool := EmbeddedSegmenter(weights)), tool, max_clicks=1
    )
    photo = demo_photos()[0]
    assert agent.segment(photo.image, next(iter(photo.masks))).mask.shape == photo.image.shape[:2]


def test_what_cannot_be_trained_on_is_named(tmp_path: Path, data: Path) -> None:
    result = run("segmenter", "--data", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 1 and str(tmp_path) in result.output and "train.json" in result.output
    result = run("segmenter", "--data", data, "--weight", 1, "--weight", 2, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "2 --weight for 1 --data" in result.output
    result = run("policy", "--data", data, "--out", tmp_path / "out", "--segmenter", tmp_path / "missing")
    assert result.exit_code == 1 and "train-embedded segmenter" in result.output
