"""What needs a Label Studio is in tests/e2e/test_qc.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from label_studio_segagent.server.checking import _named, _submitted
from label_studio_segagent.server.inbox import SUBMITTED, Inbox
from label_studio_segagent.server.jobs import Job
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
