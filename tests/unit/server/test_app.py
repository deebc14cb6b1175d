from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from label_studio_segagent.errors import ConfigError
from label_studio_segagent.segmenters import EmbeddingCache
from label_studio_segagent.server import app as module
from label_studio_segagent.server.predictor import BatchResult, Predictor

MakeApp = Callable[..., Flask]
Body = Callable[..., dict[str, Any]]
AUTH = {"basic_auth_user": "studio", "basic_auth_password": "pass:wörd"}


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


# /health, /setup, /versions, /metrics


@pytest.mark.parametrize("path", ["/health", "/"])
def test_health(client: FlaskClient, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.json) == (200, {"status": "UP", "model_class": "SegAgent"})


SETUP = {"project": "1.2", "schema": "<View/>", "hostname": "http://x", "access_token": "secret", "extra_params": None}


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (json.dumps(SETUP).encode(), "application/json"),
        (b"", "application/json"),
        (b"null", "application/json"),
        (b"{}", "application/json"),
        (b"[1]", "application/json"),
        (b"{broken", "application/json"),
        (b"\xff\xfe\x00", "application/octet-stream"),
        (b"a=b", "application/x-www-form-urlencoded"),
        (b'{"schema": "<not xml"}', "application/json"),
    ],
)
def test_setup_answers_the_version_whatever_it_is_sent(
    client: FlaskClient, predictor: Predictor, data: bytes, kind: str
) -> None:
    response = client.post("/setup", data=data, content_type=kind)
    assert (response.status_code, response.json) == (200, {"model_version": predictor.model_version})


def test_setup_without_body(client: FlaskClient, predictor: Predictor) -> None:
    assert client.post("/setup").json == {"model_version": predictor.model_version}


def test_versions(client: FlaskClient, predictor: Predictor) -> None:
    assert client.get("/versions").json == {"versions": [predictor.model_version]}


def sample(client: FlaskClient, name: str) -> float | None:
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(name + " "):
            return float(line.rpartition(" ")[2])
    return None


def test_metrics_count_what_happened(client: FlaskClient, predictor: Predictor, body: Body, task: Any) -> None:
    assert sample(client, f'segagent_model{{version="{predictor.model_version}"}}') == 1
    client.post("/predict", json=body([task(1), {"id": 2, "data": {"image": "file:///x"}}, task(3)]))
    client.post("/webhook", json={"action": "ANNOTATION_CREATED"})
    client.post("/webhook", json={"action": "ANNOTATION_CREATED"})
    assert sample(client, 'segagent_tasks_total{outcome="ok"}') == 2
    assert sample(client, 'segagent_tasks_total{outcome="failed"}') == 1
    assert sample(client, 'segagent_tasks_total{outcome="unfinished"}') == 0
    assert sample(client, 'segagent_events_total{action="ANNOTATION_CREATED"}') == 2
    assert sample(client, "segagent_predictions_running") == 0
    assert sample(client, 'segagent_request_seconds_count{endpoint="predict",status="200"}') == 1
    rollouts = [line for line in client.get("/metrics").text.splitlines() if line.startswith("segagent_rollouts_total")]
    assert sum(float(line.rpartition(" ")[2]) for line in rollouts) == 2
    assert client.get("/metrics").mimetype == "text/plain"


def test_any_action_shares_one_label_with_all_unknown_ones(client: FlaskClient) -> None:
    for action in ("A", "B" * 500, "\ud800", "new\nline", 'quo"te'):
        assert client.post("/webhook", json={"action": action}).status_code == 201
    assert sample(client, 'segagent_events_total{action="other"}') == 5
    assert client.get("/metrics").text.count("segagent_events_total{") == 1


def test_two_servers_in_one_process_count_apart(make_app: MakeApp) -> None:
    one, two = make_app().test_client(), make_app().test_client()
    one.post("/webhook", json={"action": "TASKS_CREATED"})
    assert sample(one, 'segagent_events_total{action="TASKS_CREATED"}') == 1
    assert sample(two, 'segagent_events_total{action="TASKS_CREATED"}') is None


# Auth


@pytest.fixture
def guarded(make_app: MakeApp) -> FlaskClient:
    return make_app(**AUTH).test_client()


ENDPOINTS = [("POST", "/setup"), ("GET", "/versions"), ("GET", "/metrics"), ("POST", "/predict"), ("GET", "/")]


@pytest.mark.parametrize(("method", "path"), ENDPOINTS + [("GET", "/nowhere")])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        basic("studio", "wrong"),
        basic("wrong", "pass:wörd"),
        basic("studio", ""),
        basic("", ""),
        basic("studio", "pass:wörd "),
        {"Authorization": "Basic"},
        {"Authorization": "Basic !!!!"},
        {"Authorization": "Basic " + base64.b64encode(b"studio").decode()},
        {"Authorization": "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode()},
        {"Authorization": "Bearer pass:wörd"},
        {"Authorization": "Digest username=studio"},
        {"Authorization": "basic=x, realm"},
        {"Authorization": ""},
    ],
)
def test_basic_auth_refuses(guarded: FlaskClient, method: str, path: str, headers: dict[str, str]) -> None:
    response = guarded.open(path, method=method, headers=headers, json={} if method == "POST" else None)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].startswith("Basic realm=")
    assert response.json == {"error": "user name or password is missing or wrong"}


@pytest.mark.parametrize(("method", "path"), ENDPOINTS[:3] + ENDPOINTS[4:])
def test_basic_auth_accepts(guarded: FlaskClient, method: str, path: str) -> None:
    response = guarded.open(path, method=method, headers=basic("studio", "pass:wörd"))
    assert response.status_code == 200


def test_health_needs_no_auth(guarded: FlaskClient) -> None:
    assert guarded.get("/health").status_code == 200
    assert guarded.get("/health/").status_code == 401  # not a way around


def test_webhooks_cannot_carry_basic_auth_and_need_none(guarded: FlaskClient) -> None:
    assert guarded.post("/webhook", json={"action": "ANNOTATION_CREATED"}).status_code == 201


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-SegAgent-Secret": ""}, 401),
        ({"X-SegAgent-Secret": "wrong"}, 401),
        ({"X-SegAgent-Secret": "hush hush"}, 401),
        ({"X-SegAgent-Secret": "hush"}, 201),
        ({"x-segagent-secret": "hush"}, 201),
        (basic("studio", "pass:wörd"), 201),  # the train button
        (basic("studio", "wrong"), 401),
    ],
)
def test_the_webhook_secret(make_app: MakeApp, headers: dict[str, str], status: int) -> None:
    client = make_app(**AUTH, webhook_secret="hush").test_client()
    response = client.post("/webhook", json={"action": "START_TRAINING"}, headers=headers)
    assert response.status_code == status
    assert status == 201 or "X-SegAgent-Secret" in response.json["error"]


def test_the_secret_guards_without_basic_auth_too(make_app: MakeApp) -> None:
    client = make_app(webhook_secret="hush").test_client()
    assert client.post("/webhook", json={"action": "A"}).status_code == 401
    assert client.post("/webhook", json={"action": "A"}, headers=basic("", "")).status_code == 401
    assert client.post("/setup").status_code == 200


# Errors


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/predict", 405), ("POST", "/health", 405)]
)
def test_unknown_paths_and_methods_answer_in_json(client: FlaskClient, method: str, path: str, status: int) -> None:
    response = client.open(path, method=method)
    assert response.status_code == status and response.json["error"]


@pytest.mark.parametrize("path", ["/predict", "/webhook"])
def test_too_large_a_body(make_app: MakeApp, path: str) -> None:
    client = make_app(max_request_bytes=1024).test_client()
    response = client.post(path, data=b'{"x": "' + b"x" * 2000 + b'"}', content_type="application/json")
    assert response.status_code == 413 and response.json["error"]
    assert sample(client, 'segagent_events_total{action="other"}') is None


class Broken:
    """A predictor with a bug."""

    model_version = "broken"
    cache = EmbeddingCache()

    def predict(self, tasks: Any, config: str, started: float) -> Any:
        raise RuntimeError("the password is swordfish")

    interact = predict


def test_a_bug_is_500_without_its_text_and_with_a_traceback_in_the_log(
    make_app: MakeApp, body: Body, caplog: pytest.LogCaptureFixture
) -> None:
    response = make_app(Broken()).test_client().post("/predict", json=body())
    assert response.status_code == 500
    assert response.json == {"error": "internal error (RuntimeError); see the server's log"}
    assert "swordfish" in caplog.text and "Traceback" in caplog.text


def test_secrets_are_in_no_answer_and_no_log(make_app: MakeApp, body: Body, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = ("pass:wörd", "hush", "legacytoken", "usertoken")
    client = make_app(**AUTH, webhook_secret="hush", label_studio_api_key="legacytoken").test_client()
    good = basic("studio", "pass:wörd")
    answers = [
        client.post("/setup", json={"access_token": "usertoken"}, headers=good),
        client.post("/setup", json={"access_token": "usertoken"}),
        client.post("/webhook", json={"action": "X", "project": {"token": "usertoken"}}),
        client.post("/webhook", json={"action": "X", "project": {"token": "usertoken"}}, headers=good),
        client.post("/predict", json={"tasks": "usertoken"}, headers=good),
        client.post("/predict", json=body(["broken"]), headers=good),
        client.get("/metrics", headers=good),
        client.get("/nowhere", headers=good),
    ]
    for text in [caplog.text, *(answer.text for answer in answers)]:
        assert not any(secret in text for secret in (*secrets, good["Authorization"]))
        assert "Traceback" not in text


def test_a_data_folder_that_cannot_be_used_is_a_config_error(make_app: MakeApp, tmp_path: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="SEGAGENT_DATA_DIR"):
        make_app(data_dir=tmp_path / "file")


def test_unknown_models_are_config_errors(settings: Any) -> None:
    for name, value in (("policy", "nope"), ("segmenter", "nope"), ("policy", "saliency:x")):
        with pytest.raises(ConfigError, match=value):
            module.create_app(settings(**{name: value}))


# Busy


class Blocked:
    """A predictor that holds every prediction until `go` is set."""

    model_version = "blocked"
    cache = EmbeddingCache()

    def __init__(self) -> None:
        self.go, self.started = threading.Event(), threading.Semaphore(0)

    def predict(self, tasks: Any, config: str, started: float) -> BatchResult:
        self.started.release()
        assert self.go.wait(20)
        return BatchResult([{} for _ in tasks])

    def interact(self, task: Any, config: str, context: Any) -> tuple[dict[str, Any], list[Any]]:
        return {"result": [], "score": 0.0, "model_version": self.model_version}, []


@contextmanager
def predictions(app: Flask, request: dict[str, Any], count: int) -> Iterator[list[Any]]:
    """`count` clients that predict at once; yields the list of their answers, complete at the end of the block."""
    answers: list[Any] = []

    def one() -> None:
        answers.append(app.test_client().post("/predict", json=request))

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    yield answers
    for thread in threads:
        thread.join(20)


def test_busy_is_an_answer(make_app: MakeApp, body: Body) -> None:
    blocked = Blocked()
    app = make_app(blocked, predict_concurrency=3, predict_queue=0)
    client = app.test_client()
    with predictions(app, body(), 4) as answers:  # two run, one waits, one is turned away
        for _ in range(2):
            assert blocked.started.acquire(timeout=10)
        deadline = time.monotonic() + 10
        while not answers and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [answer.status_code for answer in answers] == [503]
        assert answers[0].headers["Retry-After"] == "5"
        assert "too many predictions" in answers[0].json["error"]
        assert sample(client, "segagent_predictions_running") == 2
        assert sample(client, "segagent_busy_total") == 1
        start = time.monotonic()
        assert client.get("/health").status_code == client.post("/setup").status_code == 200
        assert client.post("/webhook", json={"action": "TASKS_CREATED"}).status_code == 201
        assert time.monotonic() - start < 5
        assert len(answers) == 1
        blocked.go.set()
    assert [answer.status_code for answer in answers] == [503, 200, 200, 200]
    assert client.post("/predict", json=body()).status_code == 200  # all places are free again


def test_batches_leave_a_place_to_smart_tools(make_app: MakeApp, body: Body) -> None:
    blocked = Blocked()
    app = make_app(blocked, predict_concurrency=2, predict_queue=2)
    with predictions(app, body(), 2) as answers:  # one runs, the other waits
        assert blocked.started.acquire(timeout=10)
        smart = app.test_client().post("/predict", json={**body(), "params": {"context": {"result": []}}})
        assert smart.status_code == 200 and not answers
        assert not blocked.started.acquire(timeout=0.2)
        blocked.go.set()
    assert [answer.status_code for answer in answers] == [200, 200]


def test_waiting_has_an_end(make_app: MakeApp, body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUSY_WAIT", 0.05)
    blocked = Blocked()
    app = make_app(blocked, predict_concurrency=1, predict_queue=5)
    with predictions(app, body(), 1) as answers:
        assert blocked.started.acquire(timeout=10)
        for _ in range(8):  # more than there are places: each gives its place back
            assert app.test_client().post("/predict", json=body()).status_code == 503
        blocked.go.set()
    assert [answer.status_code for answer in answers] == [200]


def test_a_failed_prediction_gives_its_place_back(make_app: MakeApp, body: Body) -> None:
    client = make_app(Broken(), predict_concurrency=1, predict_queue=0).test_client()
    for _ in range(3):
        assert client.post("/predict", json=body()).status_code == 500
        assert client.post("/predict", json=body(context={"result": []})).status_code == 500
