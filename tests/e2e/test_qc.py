"""Quality control in a real Label Studio: spoilt masks come first, are explained, exported without, and cleared."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PilImage
from support import draw, spoil
from typer.testing import CliRunner

from label_studio_segagent.cli import app
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.labelstudio.config import LabelConfig
from label_studio_segagent.labelstudio.local import LocalLabelStudio
from label_studio_segagent.labelstudio.regions import read_regions, write_region
from label_studio_segagent.labelstudio.tasks import iterate_tasks

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="object"/></BrushLabels>
</View>"""
SPOILT = (1, 4)


@pytest.fixture(scope="module")
def project(label_studio: LocalLabelStudio, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("blobs")
    paths = []
    for number in range(6):
        paths.append(folder / f"{number}.png")
        PilImage.fromarray(draw(number)[0]).save(paths[-1])
    pid = label_studio.create_project("Quality", CONFIG)
    tasks = label_studio.import_files(pid, paths)
    config = LabelConfig.parse(CONFIG)
    control, label = config.outputs("image", {})[0]
    for number, task in enumerate(tasks):
        mask = draw(number)[1]
        result = write_region(spoil(mask) if number in SPOILT else mask, control, label, 1.0)
        label_studio.client.call("POST", f"/api/tasks/{task}/annotations/", {"result": result})
    return {"id": pid, "tasks": tasks}


@pytest.fixture(scope="module")
def segagent(label_studio: LocalLabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    environment = {
        "LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.token,
        "SEGAGENT_DATA_DIR": str(tmp_path_factory.mktemp("qc")),
    }  # fmt: skip

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments), env=environment)
        assert result.exit_code == 0, result.output
        return result.output

    return run


def columns(label_studio: LocalLabelStudio, project: int) -> dict[int, dict[str, Any]]:
    return {task["id"]: task["data"] for task in iterate_tasks(label_studio.client, project)}


def test_the_spoilt_ones_are_first_in_the_queue(
    label_studio: LocalLabelStudio, project: dict[str, Any], segagent: Callable[..., str]
) -> None:
    client, pid = label_studio.client, project["id"]
    before = [client.call("GET", f"/api/tasks/{t}/annotations/") for t in project["tasks"]]
    output = segagent("qc", "run", "--project", str(pid), "--add-control")
    assert "6 annotations, 6 inspected now" in output
    [view] = [v for v in client.call("GET", "/api/dm/views/", project=pid) if v["data"]["title"] == "QC queue"]
    listed = client.call("GET", "/api/tasks", project=pid, view=view["id"], page_size=10)["tasks"]
    assert {task["id"] for task in listed[:2]} == {project["tasks"][i] for i in SPOILT}
    scores = [float(task["data"]["qc_score"]) for task in listed]
    assert scores == sorted(scores) and scores[1] < 0.7 < scores[2]
    assert all(task["data"]["qc_issues"] for task in listed[:2]) and all("image" in task["data"] for task in listed)
    # Boxes to look at, in a control of their own, on the flagged tasks.
    boxes = {p["task"]: p for p in label_studio.predictions(pid) if p["model_version"].startswith("qc-")}
    assert {project["tasks"][i] for i in SPOILT} <= set(boxes)
    [first, *_] = boxes[project["tasks"][SPOILT[0]]]["result"]
    assert (
        first["from_name"] == "qc_issue"
        and first["value"]["rectanglelabels"][0] in listed[0]["data"]["qc_issues"] + listed[1]["data"]["qc_issues"]
    )
    assert 'name="qc_issue"' in client.call("GET", f"/api/projects/{pid}/")["label_config"]
    # What annotators made is as it was.
    assert [client.call("GET", f"/api/tasks/{t}/annotations/") for t in project["tasks"]] == before


def test_again_only_what_has_changed(
    label_studio: LocalLabelStudio, project: dict[str, Any], segagent: Callable[..., str]
) -> None:
    client, pid = label_studio.client, project["id"]
    count = len(label_studio.predictions(pid))
    assert "6 annotations, 0 inspected now" in segagent("qc", "run", "--project", str(pid))
    assert len(label_studio.predictions(pid)) == count
    # The annotator corrects one of them.
    task = project["tasks"][SPOILT[0]]
    [annotation] = client.call("GET", f"/api/tasks/{task}/annotations/")
    control, label = LabelConfig.parse(CONFIG).outputs("image", {})[0]
    good = write_region(draw(SPOILT[0])[1], control, label, 1.0)
    low = float(columns(label_studio, pid)[task]["qc_score"])
    client.call("PATCH", f"/api/annotations/{annotation['id']}/", {"result": good})
    assert "6 annotations, 1 inspected now" in segagent("qc", "run", "--project", str(pid))
    assert float(columns(label_studio, pid)[task]["qc_score"]) > max(low, 0.7)


@pytest.mark.parametrize("kind", ["coco", "masks", "labelstudio"])
def test_the_good_ones_are_exported(
    project: dict[str, Any], segagent: Callable[..., str], tmp_path: Path, kind: str
) -> None:
    output = segagent(
        "qc", "export", "--project", str(project["id"]), "--out", str(tmp_path), "--min-score", "0.7", "--format", kind
    )
    assert "5 regions kept, 1 left out" in output
    with (tmp_path / "rejected.csv").open(encoding="utf-8") as file:
        [row] = list(csv.DictReader(file))
    assert int(row["task"]) == project["tasks"][SPOILT[1]] and "below 0.70" in row["reasons"]
    report = (tmp_path / "report.html").read_text("utf-8")
    assert "quality of 6 regions" in report and "data:image/jpeg;base64" in report
    if kind == "coco":
        from pycocotools.coco import COCO

        coco = COCO(str(tmp_path / "coco.json"))
        assert len(coco.anns) == 5 and all((tmp_path / "images" / i["file_name"]).exists() for i in coco.imgs.values())
    elif kind == "masks":
        assert len(list((tmp_path / "masks" / "object").glob("*.png"))) == 5
    else:
        tasks = json.loads((tmp_path / "tasks.json").read_text("utf-8"))
        assert [len(task["annotations"][0]["result"]) for task in tasks] == [1] * 5


def test_masks_are_refined_into_predictions(
    label_studio: LocalLabelStudio, project: dict[str, Any], segagent: Callable[..., str], tmp_path: Path
) -> None:
    client, pid = label_studio.client, project["id"]
    before = [client.call("GET", f"/api/tasks/{t}/annotations/") for t in project["tasks"]]
    output = segagent("refine", "--project", str(pid), "--out", str(tmp_path))
    assert "1 of 6 regions changed" in output and (tmp_path / "refined.jpg").exists()
    [made] = [p for p in label_studio.predictions(pid) if p["model_version"].startswith("refine-")]
    assert made["task"] == project["tasks"][SPOILT[1]]
    true = draw(SPOILT[1])[1]
    [region] = read_regions(made["result"])
    assert region.labels == ("object",) and iou(region.mask(*true.shape), true) > 0.9
    assert [client.call("GET", f"/api/tasks/{t}/annotations/") for t in project["tasks"]] == before
    segagent("refine", "--project", str(pid), "--out", str(tmp_path))  # again: in its place
    assert len([p for p in label_studio.predictions(pid) if p["model_version"].startswith("refine-")]) == 1
    client.call("DELETE", f"/api/predictions/{made['id']}/")


def test_annotators_are_compared(
    label_studio: LocalLabelStudio, project: dict[str, Any], segagent: Callable[..., str], tmp_path: Path
) -> None:
    client, pid, task = label_studio.client, project["id"], project["tasks"][0]
    control, label = LabelConfig.parse(CONFIG).outputs("image", {})[0]
    truth = {"result": write_region(draw(0)[1], control, label, 1.0), "ground_truth": True}
    made = client.call("POST", f"/api/tasks/{task}/annotations/", truth)
    output = segagent("qc", "annotators", "--project", str(pid), "--out", str(tmp_path))
    assert "1.000" in output and "0 pictures were drawn on by several people" in output
    assert json.loads((tmp_path / "consensus.json").read_text())["annotations"] == []
    client.call("DELETE", f"/api/annotations/{made['id']}/")


def test_nothing_is_left_behind(
    label_studio: LocalLabelStudio, project: dict[str, Any], segagent: Callable[..., str]
) -> None:
    client, pid = label_studio.client, project["id"]
    assert "Cleared 6 tasks" in segagent("qc", "clear", "--project", str(pid))
    assert not any("qc_score" in data or "qc_issues" in data for data in columns(label_studio, pid).values())
    assert label_studio.predictions(pid) == []
    assert not [v for v in client.call("GET", "/api/dm/views/", project=pid) if v["data"]["title"] == "QC queue"]
    assert "qc_issue" not in client.call("GET", f"/api/projects/{pid}/")["label_config"]
