"""The main job with a real Label Studio: import, connect, retrieve, smart tools, submit, edit, delete."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageOps
from support import CONFIG, Backend

from label_studio_segagent.labelstudio.local import LocalLabelStudio
from label_studio_segagent.labelstudio.regions import Region, read_regions

CORRUPT = 7
"""Position of the damaged image among the twenty."""


@pytest.fixture(scope="module")
def project(
    label_studio: LocalLabelStudio, backend: Backend, photo_paths: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Twenty tasks, one of them damaged, with the backend connected and predictions retrieved once."""
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for i, path in enumerate([*photo_paths, *photo_paths]):
        target = folder / f"{i:02d}-{path.name}"
        with Image.open(path) as picture:
            (ImageOps.mirror(picture) if i >= len(photo_paths) else picture).save(target, quality=92)
        paths.append(target)
    paths[CORRUPT].write_bytes(paths[CORRUPT].read_bytes()[:900])
    number = label_studio.create_project("Twenty tasks", CONFIG)
    tasks = label_studio.import_files(number, paths)
    backend_id = label_studio.connect_backend(number, backend.url, backend.version)
    label_studio.retrieve_predictions(number)
    return {"id": number, "tasks": tasks, "paths": paths, "backend": backend_id}


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def predictions_by_task(label_studio: LocalLabelStudio, project: int) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for prediction in label_studio.predictions(project):
        found.setdefault(prediction["task"], []).append(prediction)
    return found


def test_every_task_but_the_damaged_one_gets_one_prediction(
    label_studio: LocalLabelStudio, backend: Backend, project: dict[str, Any]
) -> None:
    found = predictions_by_task(label_studio, project["id"])
    assert sorted(found) == sorted(task for i, task in enumerate(project["tasks"]) if i != CORRUPT)
    for task, predictions in found.items():
        assert len(predictions) == 1
        assert predictions[0]["model_version"] == backend.version
        assert 0 <= predictions[0]["score"] <= 1
        path = project["paths"][project["tasks"].index(task)]
        width, height = size_of(path)
        for region in read_regions(predictions[0]["result"]):
            assert region.labels == ("object",)
            assert region.mask(height, width).any()


def test_a_second_retrieve_duplicates_nothing(label_studio: LocalLabelStudio, project: dict[str, Any]) -> None:
    before = {prediction["id"] for prediction in label_studio.predictions(project["id"])}
    label_studio.retrieve_predictions(project["id"])
    assert {prediction["id"] for prediction in label_studio.predictions(project["id"])} == before


def test_the_score_column_is_filled(label_studio: LocalLabelStudio, project: dict[str, Any]) -> None:
    answer = label_studio.client.call("GET", "/api/tasks", project=project["id"], page_size=100, fields="all")
    scores = {task["id"]: task["predictions_score"] for task in answer["tasks"]}
    damaged = project["tasks"][CORRUPT]
    assert scores.pop(damaged) is None
    assert all(isinstance(score, float) for score in scores.values())


def test_the_next_task_comes_with_its_prediction(label_studio: LocalLabelStudio, project: dict[str, Any]) -> None:
    task = label_studio.client.call("GET", f"/api/projects/{project['id']}/next")
    assert task["id"] in project["tasks"]
    assert task["predictions"][0]["result"]


def test_the_damaged_task_can_still_be_opened(label_studio: LocalLabelStudio, project: dict[str, Any]) -> None:
    task = label_studio.client.call("GET", f"/api/tasks/{project['tasks'][CORRUPT]}/")
    assert task["predictions"] == []


def smart(label_studio: LocalLabelStudio, project: dict[str, Any], task: int, result: list[dict[str, Any]]) -> Any:
    path = f"/api/ml/{project['backend']}/interactive-annotating"
    return label_studio.client.call("POST", path, {"task": task, "context": {"result": result}})


def key_point(x: float, y: float, size: tuple[int, int], positive: bool, number: int) -> dict[str, Any]:
    return {
        "id": f"key{number}",
        "type": "keypointlabels",
        "from_name": "point",
        "to_name": "image",
        "original_width": size[0],
        "original_height": size[1],
        "image_rotation": 0,
        "is_positive": positive,
        "value": {"x": x, "y": y, "width": 0.3, "keypointlabels": ["object"]},
    }


def only_region(answer: Any) -> Region:
    regions = read_regions(answer["data"]["result"])
    assert len(regions) == 1, answer
    return regions[0]


def test_smart_key_points_positive_then_negative(label_studio: LocalLabelStudio, project: dict[str, Any]) -> None:
    index = next(i for i, path in enumerate(project["paths"]) if "flower" in path.name)
    task, (width, height) = project["tasks"][index], size_of(project["paths"][index])
    first = key_point(50, 50, (width, height), True, 1)
    one = only_region(smart(label_studio, project, task, [first]))
    mask = one.mask(height, width)
    assert one.from_name == "brush" and one.labels == ("object",)
    assert mask[height // 2, width // 2]
    # A negative click on a petal that the first mask holds takes that place out of the mask.
    x, y = 42.0, 50.0
    assert mask[int(y / 100 * height), int(x / 100 * width)]
    two = only_region(smart(label_studio, project, task, [first, key_point(x, y, (width, height), False, 2)]))
    second = two.mask(height, width)
    assert not second[int(y / 100 * height), int(x / 100 * width)]
    assert second[height // 2, width // 2]
    # The clicks are on the region that was predicted there: they correct it, and Label Studio replaces it.
    [predicted] = predictions_by_task(label_studio, project["id"])[task]
    assert one.id == two.id == read_regions(predicted["result"])[0].id


def test_smart_rectangle(label_studio: LocalLabelStudio, project: dict[str, Any]) -> None:
    index = next(i for i, path in enumerate(project["paths"]) if "pagoda" in path.name)
    task, (width, height) = project["tasks"][index], size_of(project["paths"][index])
    box = {
        "id": "box1",
        "type": "rectanglelabels",
        "from_name": "box",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"x": 8, "y": 5, "width": 48, "height": 88, "rotation": 0, "rectanglelabels": ["object"]},
    }
    region = only_region(smart(label_studio, project, task, [box]))
    x0, y0, x1, y1 = region.box(height, width)
    assert region.type == "brushlabels"
    slack = 0.02 * width  # a segmenter may follow the object a little beyond the box
    assert x0 >= 0.08 * width - slack and x1 <= 0.56 * width + slack and y1 <= 0.93 * height + slack
    assert region.mask(height, width).mean() > 0.05


@pytest.mark.parametrize("context", [{"result": []}, {}, None])
def test_an_empty_context_is_no_error(label_studio: LocalLabelStudio, project: dict[str, Any], context: Any) -> None:
    path = f"/api/ml/{project['backend']}/interactive-annotating"
    answer = label_studio.client.call("POST", path, {"task": project["tasks"][0], "context": context})
    assert "errors" not in answer or not answer["errors"]


def events(backend: Backend) -> list[tuple[str, dict[str, Any]]]:
    with sqlite3.connect(backend.folder / "inbox.sqlite3") as db:
        rows = db.execute("SELECT action, body FROM events ORDER BY id").fetchall()
    return [(action, json.loads(body)) for action, body in rows]


def wait_for(backend: Backend, action: str, seen: int) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = [body for name, body in events(backend)[seen:] if name == action]
        if found:
            return found[-1]
        time.sleep(0.1)
    raise AssertionError(f"no {action} among {[name for name, _ in events(backend)[seen:]]}")


def test_submit_edit_delete_and_train_reach_the_inbox(
    label_studio: LocalLabelStudio, backend: Backend, project: dict[str, Any]
) -> None:
    call, task, seen = label_studio.client.call, project["tasks"][0], len(events(backend))
    prediction = predictions_by_task(label_studio, project["id"])[task][0]
    annotation = call("POST", f"/api/tasks/{task}/annotations/", {"result": prediction["result"], "lead_time": 1.5})
    created = wait_for(backend, "ANNOTATION_CREATED", seen)
    assert created["annotation"]["id"] == annotation["id"]
    assert created["annotation"]["result"] == prediction["result"]
    call("PATCH", f"/api/annotations/{annotation['id']}/", {"ground_truth": True})
    assert wait_for(backend, "ANNOTATION_UPDATED", seen)["annotation"]["ground_truth"] is True
    call("DELETE", f"/api/annotations/{annotation['id']}/")
    assert wait_for(backend, "ANNOTATIONS_DELETED", seen)["annotations"] == [{"id": annotation["id"]}]
    call("POST", f"/api/ml/{project['backend']}/train", {"use_ground_truth": False})
    assert wait_for(backend, "START_TRAINING", seen)["project"]["id"] == project["id"]


def test_label_studio_sees_the_version(
    label_studio: LocalLabelStudio, backend: Backend, project: dict[str, Any]
) -> None:
    answer = label_studio.client.call("GET", f"/api/ml/{project['backend']}/versions")
    assert answer["versions"] == [backend.version]
    assert label_studio.client.call("GET", f"/api/ml/{project['backend']}")["readable_state"] == "Connected"


def test_health_and_setup_answer_while_a_prediction_runs(
    label_studio: LocalLabelStudio, backend: Backend, project: dict[str, Any]
) -> None:
    """Not a benchmark (benchmarks/server.py is): only that they do not wait for the prediction."""
    body = {
        "tasks": [label_studio.client.call("GET", f"/api/tasks/{task}/") for task in project["tasks"]],
        "label_config": CONFIG,
    }
    import threading

    done = threading.Event()

    def predict() -> None:
        httpx.post(f"{backend.url}/predict", json=body, timeout=120).raise_for_status()
        done.set()

    thread = threading.Thread(target=predict)
    thread.start()
    answered = 0
    with httpx.Client() as client:
        while not done.wait(0.05):
            assert client.get(f"{backend.url}/health").json()["status"] == "UP"
            assert client.post(f"{backend.url}/setup", json={}).json()["model_version"] == backend.version
            answered += 1
    thread.join()
    assert answered >= 5


def test_a_personal_access_token_works_too(
    label_studio: LocalLabelStudio, backend: Backend, project: dict[str, Any], tmp_path: Path, personal_token: str
) -> None:
    from label_studio_segagent.labelstudio.client import LabelStudioClient
    from label_studio_segagent.labelstudio.images import ImageLoader

    client = LabelStudioClient(label_studio.url, personal_token)
    url = client.call("GET", f"/api/tasks/{project['tasks'][0]}/")["data"]["image"]
    loader = ImageLoader(client, tmp_path)
    image = loader.load(url)
    loader.close()
    width, height = size_of(project["paths"][0])
    assert image.shape == (height, width, 3)


def test_doctor_finds_nothing_wrong(
    label_studio: LocalLabelStudio, backend: Backend, project: dict[str, Any], tmp_path: Path
) -> None:
    from label_studio_segagent.server.doctor import examine
    from label_studio_segagent.server.settings import load_settings

    settings = load_settings(
        label_studio_url=label_studio.url,
        label_studio_api_key=label_studio.token,
        data_dir=tmp_path,
        policy="saliency",  # as the backend
    )
    checks = list(examine(settings, project["id"], backend.url))
    assert [check for check in checks if check.status != "ok"] == []
    assert len(checks) == 10
