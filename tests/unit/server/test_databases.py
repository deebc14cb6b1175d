from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from typer.testing import CliRunner

from label_studio_segagent.cli import app
from label_studio_segagent.errors import ConfigError
from label_studio_segagent.server.inbox import Inbox, open_inbox
from label_studio_segagent.server.jobs import JobQueue, open_queue

RUBBISH = b"this is no database at all, but long enough to look at" * 20


@pytest.mark.parametrize("name", ["inbox.sqlite3", "jobs.sqlite3"])
def test_the_server_starts_and_serves_with_a_damaged_file(
    make_app: Callable[..., Flask], tmp_path: Path, body: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / name).write_bytes(RUBBISH)
    client = make_app().test_client()
    assert client.post("/predict", json=body()).get_json()["results"][0]["result"]
    assert client.post("/webhook", json={"action": "X"}).status_code == 201
    assert client.get("/jobs").get_json() == {"jobs": []}
    assert client.get("/", headers={"Accept": "text/html"}).status_code == 200
    [aside] = folder.glob(f"{name}.damaged-*")
    assert aside.read_bytes() == RUBBISH and f"{name} was damaged" in caplog.text and aside.name in caplog.text


def test_a_sound_file_is_not_put_aside(tmp_path: Path) -> None:
    for _ in range(2):
        open_inbox(tmp_path).put("A", 1, b"")
        open_queue("", tmp_path).enqueue("qc", 1, "why")
    assert len(open_inbox(tmp_path).pending()) == 2 and len(open_queue("", tmp_path).jobs()) == 2
    assert not list(tmp_path.glob("*damaged*"))


def test_a_folder_that_cannot_be_written_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "inbox.sqlite3").mkdir()
    with pytest.raises(ConfigError, match=r"inbox.sqlite3 cannot be used.*SEGAGENT_DATA_DIR"):
        open_inbox(tmp_path)
    assert not list(tmp_path.glob("*damaged*"))


def test_others_than_the_server_leave_the_file_and_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs.sqlite3").write_bytes(RUBBISH)
    with pytest.raises(ConfigError, match=r"jobs.sqlite3 is damaged .file is not a database.; restart the server"):
        JobQueue("", tmp_path)
    monkeypatch.setenv("SEGAGENT_DATA_DIR", str(tmp_path))
    result = CliRunner().invoke(app, ["jobs"])
    assert result.exit_code == 1 and "is damaged" in result.output and "Traceback" not in result.output
    assert (tmp_path / "jobs.sqlite3").read_bytes() == RUBBISH


def test_a_file_that_is_damaged_later_is_named(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "inbox.sqlite3")
    for _ in range(50):
        inbox.put("A", 1, b"x" * 3000)
    inbox.close()
    with sqlite3.connect(tmp_path / "inbox.sqlite3") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    content = (tmp_path / "inbox.sqlite3").read_bytes()
    (tmp_path / "inbox.sqlite3").write_bytes(content[:8192] + b"\xaa" * (len(content) - 8192))
    with pytest.raises(ConfigError, match=r"inbox.sqlite3 is damaged .*malformed"):
        inbox.pending()
