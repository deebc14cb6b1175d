"""What the server does by itself in a real Label Studio: checking on submit and by the page, refining on retrieve."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from PIL import Image as PilImage
from support import Backend, draw, spoil

from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.labelstudio.config import LabelConfig
from label_studio_segagent.labelstudio.local import LocalLabelStudio
from label_studio_segagent.labelstudio.regions import read_regions, write_region
from label_studio_segagent.labelstudio.tasks import iterate_tasks
from label_studio_segagent.live_demo import start_backend

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="object"/></BrushLabels>
</View>"""


def result(number: int, spoilt: bool = False) -> list[dict[str, Any]]:
    control, label = LabelConfig.parse(CONFIG).outputs("image", {})[0]
    mask = draw(number)[1]
    return write_region(spoil(mask) if spoilt else mask, control, label, 1.0)


@pytest.fixture(scope="module")
def checker(label_studio: LocalLabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    folder = tmp_path_factory.mktemp("checker")
    process, url = start_backend(
        label_studio, folder, SEGAGENT_QC_ON_SUBMIT="true", SEGAGENT_REFINE_MASKS="true", SEGAGENT_TRAIN_AFTER="0"
    )
    yield Backend(url, httpx.post(f"{url}/setup", json={}).json()["model_version"], folder, process)
    process.terminate()
    process.wait(60)


@pytest.fixture(scope="module")
def project(
    label_studio: LocalLabelStudio, checker: Backend, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("blobs")
    paths = [folder / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        PilImage.fromarray(draw(number)[0]).save(path)
    pid = label_studio.create_project("Jobs", CONFIG)
    tasks = label_studio.import_files(pid, paths)
    label_studio.connect_backend(pid, checker.url, checker.version)
    return {"id": pid, "tasks": tasks}


@pytest.fixture
def finished(checker: Backend) -> Callable[..., list[dict[str, Any]]]:
    """`finished(2)`: the jobs, newest first, when so many are done."""

    def wait(count: int) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            jobs: list[dict[str, Any]] = httpx.get(f"{checker.url}/jobs").json()["jobs"]
            assert not [job for job in jobs if job["state"] == "failed"], jobs
            if len([job for job in jobs if job["state"] == "done"]) >= count:
                return jobs
            time.sleep(0.5)
        raise AssertionError((checker.folder / "backend.log").read_text(errors="replace")[-3000:])

    return wait


def columns(label_studio: LocalLabelStudio, project: dict[str, Any]) -> dict[int, float]:
    """The scores in the Data Manager, by task."""
    tasks = iterate_tasks(label_studio.client, project["id"])
    return {task["id"]: float(task["data"]["qc_score"]) for task in tasks if "qc_score" in task["data"]}


def test_what_is_submitted_is_checked(
    label_studio: LocalLabelStudio, project: dict[str, Any], finished: Callable[..., Any]
) -> None:
    client, tasks = label_studio.client, project["tasks"]
    for number in range(3):
        client.call("POST", f"/api/tasks/{tasks[number]}/annotations/", {"result": result(number, number == 1)})
    [job] = finished(1)
    assert job["kind"] == "qc" and job["result"] == {
        "annotations": 3, "inspected": 3, "flagged_tasks": job["result"]["flagged_tasks"], "failures": 0,
    }  # fmt: skip
    scores = [columns(label_studio, project)[task] for task in tasks[:3]]
    assert scores[1] < 0.7 < min(scores[0], scores[2])
    # The next one is read by itself.
    client.call("POST", f"/api/tasks/{tasks[3]}/annotations/", {"result": result(3)})
    job = finished(2)[0]
    assert (job["result"]["annotations"], job["result"]["inspected"]) == (1, 1) and job["after"] > 0
    assert set(columns(label_studio, project)) == set(tasks[:4])  # nothing was taken from the others
    assert label_studio.predictions(project["id"]) == []  # and Label Studio was not made to ask for predictions


def test_the_page_checks_everything_and_links_a_report(
    checker: Backend, project: dict[str, Any], finished: Callable[..., Any]
) -> None:
    html = {"Accept": "text/html"}
    assert f'name="project" value="{project["id"]}"' in httpx.get(checker.url, headers=html).text
    form = {"kind": "qc", "project": str(project["id"])}
    assert httpx.post(f"{checker.url}/jobs", data=form).status_code == 403
    own = {"Origin": checker.url}
    assert httpx.post(f"{checker.url}/jobs", data=form, headers=own).status_code == 303
    job = finished(3)[0]
    assert (job["result"]["annotations"], job["result"]["inspected"]) == (4, 0) and job["why"] == "the status page"
    page = httpx.get(checker.url, headers=html).text
    link = f"reports/{project['id']}/quality.html"
    assert f'href="{link}"' in page and "4 annotations, 0 inspected now" in page
    report = httpx.get(f"{checker.url}/{link}").text
    assert "quality of 4 regions" in report and "data:image/jpeg;base64" in report
    assert httpx.post(f"{checker.url}/jobs", data={**form, "kind": "refine"}, headers=own).status_code == 303
    done = finished(4)[0]["result"]
    assert (done["regions"], done["changed"], done["tasks"]) == (4, 1, 1) and done["report"] == "refined.jpg"
    picture = httpx.get(f"{checker.url}/reports/{project['id']}/refined.jpg")
    assert picture.status_code == 200 and picture.headers["content-type"] == "image/jpeg"


def test_retrieved_predictions_start_from_the_masks_that_are_there(
    label_studio: LocalLabelStudio, checker: Backend, project: dict[str, Any]
) -> None:
    """Of an annotation, of another model, and of nobody."""
    client, (_, annotated, *_, imported, empty) = label_studio.client, project["tasks"]
    body = {"task": imported, "result": result(4, spoilt=True), "score": 0.5, "model_version": "another model"}
    client.call("POST", "/api/predictions/", body)
    before = client.call("GET", f"/api/tasks/{annotated}/annotations/")
    label_studio.retrieve_predictions(project["id"], [annotated, imported, empty])
    made = {p["task"]: p for p in label_studio.predictions(project["id"]) if p["model_version"] == checker.version}
    assert checker.version.endswith("-refining") and set(made) == {annotated, imported, empty}
    for task, number in ((annotated, 1), (imported, 4), (empty, 5)):
        true = draw(number)[1]
        [region] = read_regions(made[task]["result"])
        assert region.labels == ("object",) and iou(region.mask(*true.shape), true) > 0.9
        started = read_regions(result(number, spoilt=True))[0].mask(*true.shape)
        assert iou(started, true) < 0.7
    # They keep their place: what is there is refined, not drawn anew.
    assert read_regions(made[annotated]["result"])[0].id == before[0]["result"][0]["id"]
    assert client.call("GET", f"/api/tasks/{annotated}/annotations/") == before
    label_studio.retrieve_predictions(project["id"], [annotated, imported, empty])  # again: nothing is duplicated
    again = [p for p in label_studio.predictions(project["id"]) if p["model_version"] == checker.version]
    assert len(again) == 3
