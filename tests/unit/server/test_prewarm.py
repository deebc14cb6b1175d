"""New tasks are loaded and encoded ahead, when nothing else is to be done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from label_studio_segagent.errors import InputError
from label_studio_segagent.server.predictor import Predictor
from label_studio_segagent.server.prewarm import Prewarmer

from .conftest import CONFIG


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def created(*tasks: Any, config: Any = CONFIG) -> dict[str, Any]:
    return {"action": "TASKS_CREATED", "tasks": list(tasks), "project": {"id": 1, "label_config": config}}


def sample(client: FlaskClient, name: str) -> float:
    [line] = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name + " ")]
    return float(line.rpartition(" ")[2])


def prewarming() -> int:
    """Threads that encode ahead; those of earlier tests wait for ever."""
    return sum(thread.name == "prewarm" for thread in threading.enumerate())


MISSES = 'segagent_embedding_requests_total{found="nowhere"}'
HITS = 'segagent_embedding_requests_total{found="memory"}'


def test_a_new_task_is_encoded_before_anybody_asks(
    client: FlaskClient, predictor: Predictor, body: Callable[..., dict[str, Any]], task: Callable[..., Any]
) -> None:
    assert (sample(client, MISSES), sample(client, "segagent_embedding_bytes")) == (0, 0)
    broken = [{"id": 8}, "?", {"id": 9, "data": {"image": "file:///x"}}]  # cost a line in the log
    assert client.post("/webhook", json=created(*broken, task(1))).status_code == 201
    wait_until(lambda: predictor.cache.stats.misses == 1)
    wait_until(lambda: predictor.cache.stats.entries == 1)
    assert client.post("/predict", json=body([task(1)])).status_code == 200
    assert sample(client, MISSES) == 1 and sample(client, HITS) >= 1
    assert sample(client, "segagent_embedding_images") == 1 and sample(client, "segagent_embedding_bytes") > 50_000
    assert 0 < sample(client, "segagent_embedding_hit_rate") < 1


PASSWORD = {"basic_auth_user": "studio", "basic_auth_password": "word"}


@pytest.mark.parametrize(
    ("given", "works"),
    [
        ({}, True),
        ({"prewarm_tasks": 0}, False),
        (PASSWORD, False),  # anyone may call /webhook, but not /predict
        ({**PASSWORD, "webhook_secret": "secret"}, True),
    ],
)
def test_when_it_works(
    given: dict[str, Any], works: bool, make_app: Callable[..., Flask], predictor: Predictor, task: Any
) -> None:
    before = prewarming()
    client = make_app(**given).test_client()
    client.post("/webhook", json=created(task(1)), headers={"X-SegAgent-Secret": "secret"})
    if works:
        wait_until(lambda: predictor.cache.stats.misses == 1)
    assert prewarming() - before == works


@pytest.mark.parametrize(
    "event",
    [
        {"action": "TASKS_CREATED"},
        {"action": "TASKS_CREATED", "tasks": 5, "project": []},
        {"action": "TASKS_CREATED", "tasks": [{"id": 1}], "project": {"label_config": None}},
        created(config="<broken"),
        created({"id": 1, "data": {}}, config="<broken"),
    ],
)
def test_odd_events_are_only_stored(event: dict[str, Any], client: FlaskClient) -> None:
    assert client.post("/webhook", json=event).status_code == 201


class Recorder:
    """A predictor that notes what it is to encode, and fails on some."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def prewarm(self, task: Any, label_config: str) -> None:
        self.seen.append(task)
        if task == "bad":
            raise InputError("no image")
        if task == "bug":
            raise ZeroDivisionError


def test_it_waits_for_idleness_and_takes_only_so_many() -> None:
    recorder, idle = Recorder(), threading.Event()
    prewarmer = Prewarmer(recorder, idle.is_set, 3)  # type: ignore[arg-type]
    prewarmer.offer(["bad", "bug", "third", "too many"], "")
    time.sleep(0.3)
    assert recorder.seen == []
    idle.set()
    wait_until(lambda: recorder.seen == ["bad", "bug", "third"])
    prewarmer.offer(["later"], "")  # neither failure ended the thread
    wait_until(lambda: recorder.seen[3:] == ["later"])


def test_predictions_come_first(
    make_app: Callable[..., Flask], predictor: Predictor, task: Any, body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a prediction runs, no new image is encoded."""
    running, go = threading.Event(), threading.Event()
    real = predictor.agent.segment_all_batch

    def slow(*args: Any, **kwargs: Any) -> Any:
        running.set()
        assert go.wait(20)
        return real(*args, **kwargs)

    monkeypatch.setattr(predictor.agent, "segment_all_batch", slow)
    app = make_app()
    request = threading.Thread(target=lambda: app.test_client().post("/predict", json=body([task(1)])))
    request.start()
    assert running.wait(20)
    app.test_client().post("/webhook", json=created(task(1)))
    time.sleep(0.3)
    assert predictor.cache.stats.misses == 0
    go.set()
    request.join()
    wait_until(lambda: predictor.cache.stats.hits + predictor.cache.stats.misses >= 2)
