"""What needs a Label Studio is in tests/e2e/test_qc.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from label_studio_segagent.errors import BusyError
from label_studio_segagent.quality.project import WrittenLog
from label_studio_segagent.server import checking
from label_studio_segagent.server.checking import (
    _left,
    _named,
    _submitted,
    check_project,
    clear_project,
    export_project,
)
from label_studio_segagent.server.inbox import SUBMITTED, Inbox
from label_studio_segagent.server.jobs import Job
from label_studio_segagent.server.models import build_predictor, project_folder
from label_studio_segagent.server.settings import Settings


def test_the_tasks_that_events_name() -> None:
    def named(event: Any) -> set[int]:
        return _named(json.dumps(event).encode())

    assert named({"annotation": {"id": 5, "task": 7}, "task": {"id": 7}}) == {7}
    assert named({"annotation": [{"task": 7}, {"task": 8}], "task": [{"id": 7}, {"id": 9}]}) == {7, 8, 9}
    odd: Any
    for odd in (7, None, [], {}, {"annotation": 7}, {"annotation": [7, {"task": "7"}, {"task": True}, {"task": -1}]}):
        assert named(odd) == set()
    assert _named(b"{broken") == set() and _named(b"[" * 100_000) == set() and _named(b"\xff") == set()


def test_tasks_without_annotations_are_left_without_findings(
    settings: Callable[..., Settings], web: Any, config: str
) -> None:
    """Task 5 had one, which was deleted; 6 was never checked; 7 has been deleted itself."""
    given = settings(label_studio_url=web.url, label_studio_api_key="0" * 40)
    stored: dict[str, Any] = {"image": "a.jpg", "qc_score": 0.1, "qc_issues": "duplicate", "mine": 1}
    predictions = [{"id": 1, "model_version": "qc-1"}, {"id": 2, "model_version": "segagent-1"}]

    def tasks(request: Any) -> Any:
        chosen = json.loads(parse_qs(request.query)["query"][0]).get("selectedItems", {}).get("included", [])
        return {"tasks": [{"id": 5, "data": dict(stored)}] if 5 in chosen else []}

    def patch(request: Any) -> Any:
        stored.clear()
        stored.update(request.json["data"])
        return {}

    web.routes.update({
        "/api/projects/3/": {"id": 3, "label_config": config}, "/api/tasks": tasks, "/api/tasks/5/": patch,
        "/api/predictions/": predictions, "/api/predictions/1/": b"",
        "/api/dm/views/": lambda request: {"id": 1} if request.method == "POST" else [],
    })  # fmt: skip
    folder = project_folder(given, 3)
    folder.mkdir(parents=True)
    log = WrittenLog(folder / "written.jsonl")
    log.add(5, "digest")
    log.add(7, "digest")
    done = check_project(given, 3, lambda share, step: None)
    assert stored == {"image": "a.jpg", "mine": 1} and done.failures == []
    deleted = [request.path for request in web.asked if request.method == "DELETE"]
    assert deleted == ["/api/predictions/1/"] and log.read() == {5: "", 7: ""}
    web.asked.clear()
    check_project(given, 3, lambda share, step: None)
    assert "/api/predictions/" not in web.paths()  # once is enough


def test_an_export_reads_the_project_and_loads_the_models_once(
    settings: Callable[..., Settings], web: Any, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is what was scored, whatever annotators do meanwhile."""
    given = settings(label_studio_url=web.url, label_studio_api_key="0" * 40)
    web.routes.update({
        "/api/projects/3/": {"id": 3, "label_config": config, "title": "Cats"}, "/api/tasks": {"tasks": []},
        "/api/dm/views/": lambda request: {"id": 1} if request.method == "POST" else [],
    })  # fmt: skip
    loaded: list[None] = []
    monkeypatch.setattr(checking, "build_predictor", lambda s: loaded.append(None) or build_predictor(s))
    assert export_project(given, 3, tmp_path / "out", "coco", 0.8, lambda share, step: None) == (0, 0)
    assert len(loaded) == 1 and web.paths().count("/api/tasks") == 1
    assert "Cats" in (tmp_path / "out" / "report.html").read_text()


def test_two_checks_of_a_project_do_not_mix(settings: Callable[..., Settings], web: Any, tmp_path: Path) -> None:
    given = settings(label_studio_url=web.url, label_studio_api_key="0" * 40)
    refused = pytest.raises(BusyError, match="another process is checking the masks of project 3; try again")
    with checking._alone(given, 3):
        with refused:
            check_project(given, 3, lambda share, step: None)
        with refused:
            export_project(given, 3, tmp_path / "out", "coco", 0.8, lambda share, step: None)
        with refused:
            clear_project(given, 3)
        with checking._alone(given, 4):  # another project is another matter
            pass
    assert web.asked == []


def test_what_could_not_be_looked_at_keeps_its_findings() -> None:
    written = {1: "a", 2: "b", 3: "", 4: "d", 5: "e"}
    assert _left(written, {1}, [(2, "no image")], None) == [4, 5] and _left(written, {1}, [], {1, 4}) == [4]


def test_the_tasks_of_a_jobs_events(settings: Callable[..., Settings]) -> None:
    inbox = Inbox(settings().data_dir / "inbox.sqlite3")
    for task, action, project in (
        (1, SUBMITTED[0], 4), (2, SUBMITTED[1], 4), (3, "TASKS_CREATED", 4), (4, SUBMITTED[2], 4), (5, SUBMITTED[0], 9),
        (6, SUBMITTED[0], 4), (7, SUBMITTED[0], 4),
    ):  # fmt: skip
        inbox.put(action, project, json.dumps({"annotation": {"task": task}}).encode())
    assert _submitted(settings(), Job("x", "qc", 4, "", upto=6, after=1), 1) == {2, 4, 6}
    assert _submitted(settings(), Job("x", "qc", 4, "", upto=7, after=0), 0) == {1, 2, 4, 6, 7}
    assert _submitted(settings(), Job("x", "qc", 5, "", upto=7, after=0), 0) == set()
