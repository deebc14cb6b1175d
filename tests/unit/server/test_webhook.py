from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from label_studio_segagent.errors import ConfigError
from label_studio_segagent.server.inbox import Inbox

ACTIONS = [
    "ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED", "TASKS_CREATED",
    "TASKS_DELETED", "PROJECT_UPDATED", "START_TRAINING", "SOMETHING_NEW", "",
]  # fmt: skip


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Inbox]:
    inbox = Inbox(tmp_path / "data" / "inbox.sqlite3")
    yield inbox
    inbox.close()


# /webhook


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_is_stored_before_the_answer(client: FlaskClient, inbox: Inbox, action: str) -> None:
    body = {"action": action, "project": {"id": 3}, "annotation": {"id": 1, "result": [{"value": {"rle": [1, 2]}}]}}
    response = client.post("/webhook", json=body)
    name = action or "UNKNOWN"
    assert (response.status_code, response.json) == (201, {"status": "stored", "action": name})
    (event,) = inbox.pending()
    assert (event.action, event.project, json.loads(event.body)) == (name, 3, body)
    assert abs(event.received - time.time()) < 60


@pytest.mark.parametrize(
    "body",
    [{"action": "ANNOTATION_CREATED"}, {"action": "ANNOTATION_UPDATED", "project": {"id": 3}},
     {"action": "ANNOTATIONS_DELETED"}, {"action": "START_TRAINING", "project": 3}],
)  # fmt: skip
def test_a_call_without_payload_is_warned_of(
    client: FlaskClient, inbox: Inbox, caplog: pytest.LogCaptureFixture, body: dict[str, Any]
) -> None:
    """As Label Studio sends it where "Send payload" is off."""
    full = {"action": "ANNOTATION_CREATED", "project": {"id": 3}, "annotation": {"id": 1}}
    for fine in (full, {"action": "START_TRAINING", "project": {"id": 3}}, {"action": "PROJECT_UPDATED"}):
        assert client.post("/webhook", json=fine).status_code == 201
    page = client.get("/", headers={"Accept": "text/html"}).text
    assert not caplog.records and inbox.bare(0) == 0 and "Send payload" not in page
    assert client.post("/webhook", json=body).status_code == 201
    assert body["action"] in caplog.text and "turn on Send payload" in caplog.text
    assert inbox.bare(0) == 1 and inbox.bare(time.time() + 9) == 0
    inbox.mark_done(*(event.id for event in inbox.pending_heads()))
    page = client.get("/", headers={"Accept": "text/html"}).text
    assert "1 call of webhooks" in page and "turn on Send payload" in page


def test_the_body_is_kept_as_it_came(client: FlaskClient, inbox: Inbox) -> None:
    raw = '{"action":"X",  "text": "日本語 ✂ \\ud83d\\ude00", "number": 1e400, "nan": NaN}'.encode()
    assert client.post("/webhook", data=raw, content_type="application/json").status_code == 201
    assert inbox.pending()[0].body == raw


def test_a_big_body(client: FlaskClient, inbox: Inbox) -> None:
    body = {"action": "ANNOTATION_CREATED", "annotation": {"result": [{"rle": list(range(256)) * 20_000}]}}
    assert client.post("/webhook", json=body).status_code == 201
    assert json.loads(inbox.pending()[0].body) == body


@pytest.mark.parametrize(
    ("project", "stored"),
    [({"id": 5}, 5), ({}, None), (None, None), ("5", None), ([5], None), ({"id": "5"}, None), ({"id": True}, None),
     ({"id": 2**70}, None), ({"id": -1}, None), ({"id": 1.5}, None)],
)  # fmt: skip
def test_odd_projects(client: FlaskClient, inbox: Inbox, project: Any, stored: int | None) -> None:
    assert client.post("/webhook", json={"action": "X", "project": project}).status_code == 201
    assert inbox.pending()[0].project == stored


@pytest.mark.parametrize(
    ("action", "stored"),
    [(None, "UNKNOWN"), (5, "5"), (["A"], "['A']"), ("x" * 5000, "x" * 100), ("\ud800", "?"), ("a\x00b", "a\x00b")],
)
def test_odd_actions(client: FlaskClient, inbox: Inbox, action: Any, stored: str) -> None:
    assert client.post("/webhook", json={"action": action}).status_code == 201
    assert inbox.pending()[0].action == stored


def test_broken_json_is_not_stored(client: FlaskClient, inbox: Inbox) -> None:
    assert client.post("/webhook", data=b"{broken").status_code == 400
    assert inbox.pending() == []


def test_what_is_refused_is_not_stored(make_app: Any, inbox: Inbox) -> None:
    client = make_app(webhook_secret="hush").test_client()
    assert client.post("/webhook", json={"action": "X"}).status_code == 401
    assert inbox.pending() == []


def test_what_cannot_be_stored_is_an_error(client: FlaskClient, inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    """Label Studio must not be told that an event is safe when it is not."""
    inbox.put("X", None, b"{}")
    db = sqlite3.connect(inbox._path)
    with db:
        db.execute("DROP TABLE events")
    db.close()
    response = client.post("/webhook", json={"action": "X"})
    assert response.status_code == 500
    assert response.json == {"error": "internal error (OperationalError); see the server's log"}
    assert "no such table" in caplog.text


def test_events_survive_a_restart_of_the_server(make_app: Callable[..., Any], tmp_path: Path) -> None:
    make_app().test_client().post("/webhook", json={"action": "X"})
    make_app().test_client().post("/webhook", json={"action": "Y"})
    db = sqlite3.connect(tmp_path / "data" / "inbox.sqlite3")
    assert db.execute("SELECT action FROM events ORDER BY id").fetchall() == [("X",), ("Y",)]
    db.close()


# Inbox


def test_pending_and_done(inbox: Inbox) -> None:
    ids = [inbox.put("A", 1, b"1"), inbox.put("B", None, b"2"), inbox.put("A", 2, b"3")]
    assert ids == sorted(set(ids))
    assert [(e.id, e.action, e.project, e.body) for e in inbox.pending()] == [
        (ids[0], "A", 1, b"1"),
        (ids[1], "B", None, b"2"),
        (ids[2], "A", 2, b"3"),
    ]
    inbox.mark_done(ids[1])
    assert [event.id for event in inbox.pending()] == [ids[0], ids[2]]
    assert [event.id for event in inbox.pending(limit=1)] == [ids[0]]
    assert inbox.counts() == {"A": 2, "B": 1}  # what is done stays in the file
    inbox.mark_done(12345)
    assert len(inbox.pending()) == 2


def test_much_is_forgotten_in_small_steps_and_the_newest_of_each_project_stays(inbox: Inbox) -> None:
    for project in (1, 2, None):
        ids = [inbox.put("X", project, b"body") for _ in range(120)]
        inbox.mark_done(*ids)
    inbox.forget(time.time() + 1)
    assert inbox.counts() == {"X": 3} and inbox.projects() == [1, 2]
    assert inbox.put("X", 1, b"") == 361  # ids go on


def test_reopening_finds_everything(inbox: Inbox, tmp_path: Path) -> None:
    first, second = inbox.put("A", 1, b"\x00\xff"), inbox.put("B", 1, b"")
    inbox.mark_done(first)
    inbox.close()
    again = Inbox(tmp_path / "data" / "inbox.sqlite3")
    assert [(event.id, event.body) for event in again.pending()] == [(second, b"")]
    assert again.put("C", 1, b"") > second
    again.close()


def test_an_event_is_on_disk_when_put_returns(inbox: Inbox) -> None:
    inbox.put("A", 1, b"body")
    other = sqlite3.connect(inbox._path)  # another process would see the same
    assert other.execute("SELECT body FROM events").fetchall() == [(b"body",)]
    other.close()
    with inbox._connection() as db:
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: it survives a power cut


def test_many_writers_at_once(inbox: Inbox) -> None:
    ids: list[int] = []
    errors: list[Exception] = []

    def write(writer: int) -> None:
        try:
            for i in range(50):
                ids.append(inbox.put("A", writer, f"{writer}-{i}".encode()))
                if i % 10 == 0:
                    inbox.mark_done(inbox.pending(limit=1)[0].id)
        except Exception as error:
            errors.append(error)
        finally:
            inbox.close()

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(ids)) == 400 and inbox.counts() == {"A": 400}
    bodies = [event.body.decode() for event in inbox.pending()]
    assert 360 <= len(bodies) <= 399
    for writer in range(8):  # the order of each writer is kept
        numbers = [int(body.split("-")[1]) for body in bodies if body.startswith(f"{writer}-")]
        assert numbers == sorted(numbers)


def test_two_inboxes_on_one_file(inbox: Inbox, tmp_path: Path) -> None:
    other = Inbox(tmp_path / "data" / "inbox.sqlite3")
    for i in range(10):
        (inbox if i % 2 else other).put("A", i, b"")
    assert [event.project for event in inbox.pending()] == list(range(10))
    other.close()


def test_closing_twice_and_going_on(inbox: Inbox) -> None:
    inbox.close()
    inbox.close()
    assert inbox.put("A", 1, b"") == 1


def test_a_file_that_is_no_inbox(tmp_path: Path) -> None:
    (tmp_path / "inbox.sqlite3").write_bytes(b"this is no database at all, but long enough to look at" * 20)
    with pytest.raises(ConfigError, match="inbox.sqlite3 is damaged.*restart the server"):
        Inbox(tmp_path / "inbox.sqlite3")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="SEGAGENT_DATA_DIR"):
        Inbox(tmp_path / "file" / "inbox.sqlite3")
