"""Reading what people drew in a real Label Studio, and making trajectories of it on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Backend
from typer.testing import CliRunner

from label_studio_segagent.cli import app
from label_studio_segagent.demo import demo_config, demo_photos
from label_studio_segagent.hlmat.trajectory import read_trajectories
from label_studio_segagent.labelstudio.client import LabelStudioClient
from label_studio_segagent.labelstudio.config import LabelConfig
from label_studio_segagent.labelstudio.images import ImageLoader
from label_studio_segagent.labelstudio.local import LocalLabelStudio
from label_studio_segagent.labelstudio.project import ACCEPTED_WEIGHT, read_project
from label_studio_segagent.labelstudio.regions import write_region
from label_studio_segagent.training.trainer import open_image

PHOTOS = [photo for photo in demo_photos() if photo.path.stem != "cup"][:4]
LABELS = list(dict.fromkeys(label for photo in PHOTOS for label in photo.masks))
CONFIG = demo_config(LABELS)


def drawn(photo: Any) -> list[dict[str, Any]]:
    outputs = {label.name: (control, label) for control, label in LabelConfig.parse(CONFIG).outputs("image", {})}
    return [r for label, masks in photo.masks.items() for mask in masks for r in write_region(mask, *outputs[label], 1)]


@pytest.fixture(scope="module")
def project(label_studio: LocalLabelStudio, backend: Backend) -> dict[str, Any]:
    """Four tasks: drawn by hand, a prediction accepted, cancelled, not annotated; and a backend to be left alone."""
    call = label_studio.client.call
    number = label_studio.create_project("To learn from", CONFIG, evaluate_predictions_automatically=True)
    tasks = label_studio.import_files(number, [photo.path for photo in PHOTOS])
    call("POST", f"/api/tasks/{tasks[0]}/annotations/", {"result": drawn(PHOTOS[0])})
    body = {"task": tasks[1], "result": drawn(PHOTOS[1]), "score": 0.9, "model_version": "somebody"}
    prediction = call("POST", "/api/predictions/", body)
    accepted = {"result": prediction["result"], "parent_prediction": prediction["id"]}
    call("POST", f"/api/tasks/{tasks[1]}/annotations/", accepted)
    call("POST", f"/api/tasks/{tasks[2]}/annotations/", {"result": drawn(PHOTOS[2]), "was_cancelled": True})
    label_studio.connect_backend(number, backend.url, backend.version)
    return {"id": number, "tasks": tasks}


def count(label_studio: LocalLabelStudio, project: int) -> int:
    return len(label_studio.predictions(project))


@pytest.mark.parametrize("kind", ["legacy", "pat"])
def test_what_was_drawn_is_read_as_it_was_drawn(
    label_studio: LocalLabelStudio, project: dict[str, Any], tmp_path: Path, kind: str, personal_token: str
) -> None:
    token = label_studio.token if kind == "legacy" else personal_token
    client = LabelStudioClient(label_studio.url, token)
    loader = ImageLoader(client, tmp_path / "cache")
    before, failures = count(label_studio, project["id"]), []
    records = list(
        read_project(
            client, loader, project["id"], tmp_path / "images", failed=lambda *failure: failures.append(failure)
        )
    )
    assert failures == []
    assert {record.meta["task"] for record in records} == set(project["tasks"][:2])
    for photo, task, weight in (
        (PHOTOS[0], project["tasks"][0], 1.0),
        (PHOTOS[1], project["tasks"][1], ACCEPTED_WEIGHT),
    ):
        mine = [record for record in records if record.meta["task"] == task]
        masks = [(label, mask) for label, each in photo.masks.items() for mask in each]
        assert [record.prompt for record in mine] == [label for label, _ in masks]
        assert {record.meta["weight"] for record in mine} == {weight}
        for record, (_, mask) in zip(mine, masks, strict=True):
            sample = record.load()
            assert np.array_equal(sample.mask, mask) and np.array_equal(sample.image, photo.image)
    chosen = read_project(client, loader, project["id"], tmp_path / "images", tasks=[project["tasks"][1], 999])
    assert {record.meta["task"] for record in chosen} == {project["tasks"][1]}
    assert count(label_studio, project["id"]) == before  # reading asked no backend for predictions
    loader.close()


def test_the_command_makes_trajectories_of_a_project(
    label_studio: LocalLabelStudio, project: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "t.jsonl"
    environment = {
        "LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.token, "COLUMNS": "200",
        "SEGAGENT_DATA_DIR": str(tmp_path / "data"),
    }  # fmt: skip
    arguments = ["trajectories", f"label-studio:{project['id']}", "--out", str(out), "--segmenter", "grabcut"]
    result = CliRunner().invoke(app, arguments, env=environment)
    assert result.exit_code == 0, result.output
    found = list(read_trajectories(out))
    assert {t.meta["task"] for t in found} == set(project["tasks"][:2])
    assert all(open_image(t).shape[:2] == t.steps[0].mask.shape for t in found)
    numbers = json.loads(out.with_suffix(".stats.json").read_text("utf-8"))
    assert numbers["objects"] == sum(len(masks) for photo in PHOTOS[:2] for masks in photo.masks.values())
    assert out.with_suffix(".png").exists()
    again = CliRunner().invoke(app, arguments, env=environment)
    assert again.exit_code == 0 and len(list(read_trajectories(out))) == len(found)
    missing = CliRunner().invoke(app, [arguments[0], "label-studio:99999", *arguments[2:]], env=environment)
    assert missing.exit_code == 1 and "404" in missing.output


def test_the_command_measures_an_agent_on_a_project(
    label_studio: LocalLabelStudio, project: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "measured"
    environment = {
        "LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.token, "COLUMNS": "200",
        "SEGAGENT_DATA_DIR": str(tmp_path / "data"),
    }  # fmt: skip
    arguments = ["evaluate", f"label-studio:{project['id']}", "--out", str(out), "--policy", "saliency", "--noc"]
    result = CliRunner().invoke(app, arguments, env=environment)
    assert result.exit_code == 0, result.output
    numbers = json.loads((out / "results.json").read_text("utf-8"))
    assert numbers["images"] == 2 and set(numbers["labels"]) == {label for p in PHOTOS[:2] for label in p.masks}
    assert numbers["objects"] == sum(len(masks) for photo in PHOTOS[:2] for masks in photo.masks.values())
    assert 0 < numbers["metrics"]["miou"]["value"] <= 1 and numbers["noc"]["80"]["noc"]["value"] >= 1
    assert len(list((out / "images").glob("*.png"))) == 2 and "data:image" in (out / "report.html").read_text("utf-8")
    rows = (out / "objects.jsonl").read_bytes()
    again = CliRunner().invoke(app, arguments, env=environment)  # nothing is measured twice
    assert again.exit_code == 0 and (out / "objects.jsonl").read_bytes() == rows
