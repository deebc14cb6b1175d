from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from typer.testing import CliRunner

from label_studio_segagent.cli import app as command_line
from label_studio_segagent.server.inbox import Inbox
from label_studio_segagent.server.jobs import JobQueue
from label_studio_segagent.server.models import project_folder, version_store
from label_studio_segagent.server.predictor import Predictor
from label_studio_segagent.server.settings import Settings
from label_studio_segagent.server.worker import job_functions
from label_studio_segagent.training.versions import Version

HERE = {"Origin": "http://localhost"}
AWAY = {"REMOTE_ADDR": "10.0.0.9"}
FORM = {"kind": "qc", "project": "7"}


@pytest.fixture
def queue(settings: Callable[..., Settings]) -> JobQueue:
    return JobQueue("", settings().data_dir)


def page(client: FlaskClient, **options: Any) -> str:
    return client.get("/", headers={"Accept": "text/html"}, **options).get_data(as_text=True)


def test_projects_are_listed_whatever_told_of_them(client: FlaskClient, body: Callable[..., dict[str, Any]]) -> None:
    client.post("/webhook", json={"action": "ANNOTATION_CREATED", "project": {"id": 31}})
    client.post("/setup", json={"project": "32.5"})
    client.post("/predict", json=body() | {"project": "33.5"})
    seen = page(client)
    assert all(f"<h2>Project {number}</h2>" in seen for number in (31, 32, 33)) and "Project 34" not in seen
    assert seen.count("Check the masks</button>") == seen.count("Refine the masks</button>") == 3


def test_versions_that_cannot_serve(
    client: FlaskClient, settings: Callable[..., Settings], predictor: Predictor
) -> None:
    store, agent = version_store(settings()), predictor.agent
    odd = {"miou": "0.5", "trained_on": [3], "miou_before": None, "promoted": "<b>"}
    for project, start in ((7, (agent.policy.version, agent.segmenter.version)), (8, ("of", "others"))):
        store.workplace(project)
        store.promote(project, store.add(project, Version(f"own-{project}", "saliency", start, report=odd)).name)
    seen = page(client)
    assert "Served by <code>own-7<" in seen and "Served by <code>own-8<" not in seen and "own-8" in seen
    assert seen.count("<td>serving</td>") == 1 and "<b>" not in seen
    (store.folder / "7" / "current.json").write_text("{")
    assert page(client).count(f"Served by <code>{predictor.model_version}<") == 2
    environment = {"SEGAGENT_DATA_DIR": str(settings().data_dir)}
    result = CliRunner().invoke(command_line, ["models", "list"], env=environment)
    assert result.exit_code == 1 and "delete it" in " ".join(result.output.split())


def test_a_button_starts_one_job(client: FlaskClient, queue: JobQueue) -> None:
    answer = client.post("/jobs", data=FORM, headers=HERE)
    assert (answer.status_code, answer.headers["Location"]) == (303, ".")
    client.post("/jobs", data=FORM, headers=HERE)  # pressed twice
    [job] = queue.jobs()
    assert (job.kind, job.project, job.state, job.after) == ("qc", 7, "queued", None)
    client.post("/jobs", data={**FORM, "kind": "refine"}, headers=HERE)
    client.post("/jobs", data={**FORM, "project": "8"}, headers=HERE)
    assert len(queue.jobs()) == 3 and "<h2>Project 8</h2>" in page(client)


def test_what_was_submitted_before_is_not_checked_again(
    client: FlaskClient, queue: JobQueue, settings: Callable[..., Settings]
) -> None:
    event = Inbox(settings().data_dir / "inbox.sqlite3").put("ANNOTATION_CREATED", 7, b"{}", 1)
    client.post("/jobs", data=FORM, headers=HERE)
    assert queue.jobs()[0].upto == event


@pytest.mark.parametrize(
    ("headers", "environment"),
    [
        ({}, {}),
        ({"Origin": "null"}, {}),
        ({"Origin": "http://evil.example"}, {}),
        ({"Origin": "http://localhost.evil.example"}, {}),
        ({"Origin": "http://localhost:9999"}, {}),
        ({"Origin": "http://evil.example", "Host": "evil.example"}, {}),  # a name that was bound to this machine
        (HERE, AWAY),
    ],
)
def test_other_sites_and_machines_start_none(
    client: FlaskClient, queue: JobQueue, headers: dict[str, str], environment: dict[str, str]
) -> None:
    answer = client.post("/jobs", data=FORM, headers=headers, environ_base=environment)
    assert answer.status_code == 403 and answer.get_json()["error"] and queue.jobs() == []


def test_with_a_password_other_machines_start_jobs(make_app: Callable[..., Flask], queue: JobQueue) -> None:
    client = make_app(basic_auth_user="me", basic_auth_password="secret").test_client()
    login = {"Authorization": "Basic " + base64.b64encode(b"me:secret").decode(), "Host": "box.example:9090"}
    own = {"Origin": "https://box.example:9090"}
    for headers, status in ((own, 401), ({**login, "Origin": "https://evil.example"}, 403), ({**login, **own}, 303)):
        assert client.post("/jobs", data=FORM, headers=headers, environ_base=AWAY).status_code == status
    assert len(queue.jobs()) == 1


@pytest.mark.parametrize(
    "form", [{}, {**FORM, "kind": "train"}, *({**FORM, "project": p} for p in ("", "-1", "x", "²", "9" * 30))]
)
def test_odd_forms_are_refused(client: FlaskClient, queue: JobQueue, form: dict[str, str]) -> None:
    answer = client.post("/jobs", data=form, headers=HERE)
    assert answer.status_code == 400 and "'kind' must be one of qc, refine" in answer.get_json()["error"]
    assert queue.jobs() == []


def test_a_job_that_cannot_be_done_says_why(
    client: FlaskClient, queue: JobQueue, settings: Callable[..., Settings]
) -> None:
    for kind in ("qc", "refine"):
        client.post("/jobs", data={**FORM, "kind": kind}, headers=HERE)
        assert queue.do_next(job_functions(settings()))
    assert page(client).count("LABEL_STUDIO_URL is not set") == 2


def test_results_and_reports(client: FlaskClient, queue: JobQueue, settings: Callable[..., Settings]) -> None:
    results = {
        "qc": {"annotations": 30, "inspected": 4, "flagged_tasks": 3, "failures": 2, "report": "quality.html"},
        "refine": {"version": "refine-1", "tasks": 2, "regions": 9, "changed": 2, "failures": 0},
    }
    for kind, result in results.items():
        queue._put(replace(queue.enqueue(kind, 7, "the status page"), state="done", result=result))
    seen, from_away = page(client), page(client, environ_base=AWAY)
    for text in (
        "30 annotations, 4 inspected now; 3 tasks have issues; 2 failed",
        "2 of 9 regions changed, in 2 tasks",
    ):
        assert text in seen and text in from_away
    # Reports hold pictures of the project.
    assert 'href="reports/7/quality.html"' in seen and "reports/" not in from_away and "<form" not in from_away
    assert client.get("/reports/7/quality.html").status_code == 404  # not yet written
    folder = project_folder(settings(), 7)
    folder.mkdir(parents=True)
    for name in ("quality.html", "quality.jsonl"):
        (folder / name).write_text("the report")
    with client.get("/reports/7/quality.html") as answer:
        assert answer.get_data() == b"the report" and answer.mimetype == "text/html"
    assert client.get("/reports/7/quality.html", environ_base=AWAY).status_code == 404
    assert client.get("/reports/7/quality.html", headers={"Host": "evil.example"}).status_code == 404
    assert client.get("/reports/7/quality.jsonl").status_code == 404
