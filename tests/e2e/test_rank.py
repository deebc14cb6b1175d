"""Active learning in a real Label Studio: the order, the column, the tab, and what the next task is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import CONFIG
from typer.testing import CliRunner

from label_studio_segagent.cli import app
from label_studio_segagent.labelstudio.local import LocalLabelStudio
from label_studio_segagent.labelstudio.tasks import iterate_tasks, merge_data


@pytest.fixture(scope="module")
def project(label_studio: LocalLabelStudio, photo_paths: list[Path]) -> dict[str, Any]:
    pid = label_studio.create_project("Which one next", CONFIG)
    return {"id": pid, "tasks": label_studio.import_files(pid, photo_paths[:4])}


@pytest.fixture
def segagent(label_studio: LocalLabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setenv("LABEL_STUDIO_URL", label_studio.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", label_studio.token)
    monkeypatch.setenv("SEGAGENT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SEGAGENT_POLICY", "saliency")
    monkeypatch.setenv("SEGAGENT_MAX_CLICKS", "1")

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, result.output
        return result.output

    return run


@pytest.mark.parametrize("conjunction", ["and", "or"])
def test_the_tasks_of_a_tab_are_those_that_label_studio_lists(
    label_studio: LocalLabelStudio, project: dict[str, Any], conjunction: str
) -> None:
    client, pid, tasks = label_studio.client, project["id"], project["tasks"]
    items = [
        {"filter": "filter:tasks:id", "operator": operator, "type": "Number", "value": value}
        for operator, value in (("less", tasks[2]), ("greater", tasks[0]))
    ]
    data = {"title": conjunction, "filters": {"conjunction": conjunction, "items": items}, "ordering": ["-tasks:id"]}
    view = client.call("POST", "/api/dm/views/", {"project": pid, "data": data})["id"]
    listed = client.call("GET", "/api/tasks", project=pid, view=view, page_size=10)["tasks"]
    found = [task["id"] for task in iterate_tasks(client, pid, view=view)]
    assert found == sorted(task["id"] for task in listed) == (tasks if conjunction == "or" else [tasks[1]])
    client.call("DELETE", f"/api/dm/views/{view}/")


def test_tasks_are_ranked_where_label_studio_sees_it(
    label_studio: LocalLabelStudio, project: dict[str, Any], segagent: Callable[..., str]
) -> None:
    client, pid = label_studio.client, project["id"]
    done = project["tasks"][0]
    client.call("POST", f"/api/tasks/{done}/annotations/", {"result": []})
    output = segagent("rank", "--project", str(pid), "--uncertainty-sampling")
    assert "3 tasks in order" in output
    tasks = {task["id"]: task for task in iterate_tasks(client, pid)}
    places = {tid: task["data"].get("label_next") for tid, task in tasks.items()}
    assert places.pop(done) is None and sorted(places.values()) == [1, 2, 3]
    order = sorted(places, key=lambda tid: places[tid])
    scores = {p["task"]: p["score"] for p in label_studio.predictions(pid)}
    assert [scores[tid] for tid in order] == [0.0, 0.5, 1.0]
    assert all("image" in task["data"] for task in tasks.values())
    # The tab shows them in this order, and Label Studio's own sampling hands out the first one.
    [view] = [v for v in client.call("GET", "/api/dm/views/", project=pid) if v["data"]["title"] == "Label next"]
    listed = client.call("GET", "/api/tasks", project=pid, view=view["id"], page_size=10)["tasks"]
    assert [task["id"] for task in listed] == order
    assert client.call("GET", f"/api/projects/{pid}/next")["id"] == order[0]
    by_score = client.call(
        "GET", "/api/tasks", project=pid, page_size=10, query='{"ordering": ["tasks:predictions_score"]}'
    )["tasks"]
    assert [task["id"] for task in by_score if task["id"] != done] == order


def test_ranking_again_replaces_and_clearing_removes(
    label_studio: LocalLabelStudio, project: dict[str, Any], segagent: Callable[..., str]
) -> None:
    client, pid = label_studio.client, project["id"]
    before = {p["id"] for p in label_studio.predictions(pid)}
    segagent("rank", "--project", str(pid))
    assert {p["id"] for p in label_studio.predictions(pid)} == before
    views = client.call("GET", "/api/dm/views/", project=pid)
    assert [v["data"]["title"] for v in views].count("Label next") == 1
    merge_data(client, project["id"], project["tasks"][1], {"mine": "stays"})
    assert "Cleared 3 tasks" in segagent("rank", "--project", str(pid), "--clear")
    tasks = list(iterate_tasks(client, pid))
    assert not any("label_next" in task["data"] for task in tasks)
    assert [task["data"].get("mine") for task in tasks if task["id"] == project["tasks"][1]] == ["stays"]
