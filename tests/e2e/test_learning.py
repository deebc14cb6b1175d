"""Annotations in a real Label Studio become a better model, by themselves, while predictions go on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image as PilImage
from support import Backend

from label_studio_segagent.labelstudio.config import LabelConfig
from label_studio_segagent.labelstudio.local import LocalLabelStudio
from label_studio_segagent.labelstudio.regions import write_region
from label_studio_segagent.live_demo import start_backend

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Gizmo"/></BrushLabels>
</View>"""


def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Four discs on noise: the yellow one is a gizmo, the larger blue ones are not."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 90, (120, 240, 3)).astype(np.uint8)
    mask = np.zeros((120, 240), np.uint8)
    gizmo = int(rng.integers(4))
    for place in range(4):
        centre = (30 + 60 * place + int(rng.integers(-3, 4)), int(rng.integers(45, 75)))
        radius = int(rng.integers(12, 16)) if place == gizmo else int(rng.integers(18, 24))
        cv2.circle(image, centre, radius, (240, 200, 30) if place == gizmo else (40, 90, 240), -1)
        if place == gizmo:
            cv2.circle(mask, centre, radius, 1, -1)
    return image, mask > 0


@pytest.fixture(scope="module")
def learner(label_studio: LocalLabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    folder = tmp_path_factory.mktemp("learner")
    process, url = start_backend(
        label_studio, folder, SEGAGENT_TRAIN_AFTER="6", SEGAGENT_TRAIN_QUIET="1", SEGAGENT_TRAIN_SECONDS="40"
    )
    version = httpx.post(f"{url}/setup", json={}).json()["model_version"]
    yield Backend(url, version, folder, process)
    process.terminate()
    process.wait(60)


@pytest.fixture(scope="module")
def project(
    label_studio: LocalLabelStudio, learner: Backend, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("gizmos")
    paths = []
    for number in range(10):
        paths.append(folder / f"{number}.png")
        PilImage.fromarray(draw(number)[0]).save(paths[-1])
    pid = label_studio.create_project("Gizmos", CONFIG)
    tasks = label_studio.import_files(pid, paths)
    label_studio.connect_backend(pid, learner.url, learner.version)
    return {"id": pid, "tasks": tasks}


def annotate(label_studio: LocalLabelStudio, task: int, mask: np.ndarray) -> float:
    """Submit a mask, as an annotator does; returns the seconds that it took."""
    config = LabelConfig.parse(CONFIG)
    control, label = config.outputs("image", {})[0]
    started = time.monotonic()
    label_studio.client.call(
        "POST", f"/api/tasks/{task}/annotations/", {"result": write_region(mask, control, label, 1.0)}
    )
    return time.monotonic() - started


def wait_for(url: str, good: Callable[[list[dict[str, Any]]], bool], seconds: float = 180) -> list[dict[str, Any]]:
    deadline = time.monotonic() + seconds
    jobs: list[dict[str, Any]] = []
    while time.monotonic() < deadline:
        jobs = httpx.get(f"{url}/jobs", timeout=10).json()["jobs"]
        if good(jobs):
            return jobs
        time.sleep(0.3)
    raise AssertionError(f"waited in vain; jobs: {jobs}")


def setup_version(learner: Backend, project: int) -> str:
    answer = httpx.post(f"{learner.url}/setup", json={"project": f"{project}.1795382579"}, timeout=10)
    return str(answer.json()["model_version"])


def test_annotations_make_a_better_version(
    label_studio: LocalLabelStudio, learner: Backend, project: dict[str, Any]
) -> None:
    for number in range(6):
        annotate(label_studio, project["tasks"][number], draw(number)[1])
    wait_for(learner.url, lambda jobs: bool(jobs) and jobs[0]["state"] == "running")
    # While it learns, requests are answered at once.
    started = time.monotonic()
    assert httpx.get(f"{learner.url}/health", timeout=5).status_code == 200
    assert time.monotonic() - started < 1
    [job] = wait_for(learner.url, lambda jobs: jobs[0]["state"] in ("done", "failed"))
    assert job["state"] == "done", job["reason"]
    assert job["why"] == "6 new annotations" and job["project"] == project["id"]
    result = job["result"]
    assert result["trained_on"] + result["held_out"] == 6 and result["held_out"] >= 1
    assert result["promoted"] and result["miou"] >= result["miou_before"]
    assert setup_version(learner, project["id"]) == result["version"] != learner.version
    assert setup_version(learner, 999999) == learner.version
    assert httpx.get(f"{learner.url}/versions").json()["versions"] == [result["version"], learner.version]
    assert label_studio.client.call("GET", f"/api/projects/{project['id']}/")["model_version"] == result["version"]
    # Label Studio gets its next predictions from the new version.
    label_studio.retrieve_predictions(project["id"], project["tasks"][6:])
    made = [p for p in label_studio.predictions(project["id"]) if p["task"] in project["tasks"][6:]]
    assert {p["model_version"] for p in made} == {result["version"]} and len(made) == 4


def test_the_page_shows_it(learner: Backend, project: dict[str, Any]) -> None:
    page = httpx.get(learner.url, headers={"Accept": "text/html,application/xhtml+xml"}).text
    assert f"Project {project['id']}" in page and "promoted" in page and "6 new annotations" in page
    assert httpx.get(learner.url).json() == {"status": "UP", "model_class": "SegAgent"}


def test_a_killed_worker_loses_nothing(
    label_studio: LocalLabelStudio, learner: Backend, project: dict[str, Any]
) -> None:
    before = setup_version(learner, project["id"])
    for number in range(6, 10):
        annotate(label_studio, project["tasks"][number], draw(number)[1])
    # The button does not wait for more.
    backend = label_studio.client.call("GET", "/api/ml", project=project["id"])[0]["id"]
    label_studio.client.call("POST", f"/api/ml/{backend}/train", {"use_ground_truth": False})
    wait_for(learner.url, lambda jobs: jobs[0]["state"] == "running" and jobs[0]["why"].startswith("the Start"))
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(learner.process.pid)}
    [worker] = [pid for pid, command in commands.items() if b"worker" in command]
    os.kill(worker, signal.SIGKILL)
    assert setup_version(learner, project["id"]) == before
    jobs = wait_for(learner.url, lambda jobs: jobs[0]["state"] in ("done", "failed"), 240)
    assert jobs[0]["state"] == "done" and jobs[0]["attempts"] == 2
    assert jobs[0]["result"]["trained_on"] + jobs[0]["result"]["held_out"] == 10


def children(pid: int) -> list[str]:
    """All descendants of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [child, *children(int(child))]
    return found
