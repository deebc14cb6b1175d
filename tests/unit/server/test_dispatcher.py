from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from label_studio_segagent.errors import ApiError, InputError
from label_studio_segagent.server.dispatcher import Dispatcher, due
from label_studio_segagent.server.inbox import Event, Inbox
from label_studio_segagent.server.jobs import JobQueue
from label_studio_segagent.server.settings import Settings


class Office:
    """An inbox, a queue and the dispatcher between them."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.inbox, self.queue = Inbox(folder / "inbox.sqlite3"), JobQueue("", folder)
        self.dispatcher = Dispatcher(settings, self.inbox, self.queue)

    def annotate(self, count: int, project: int = 1) -> None:
        for _ in range(count):
            self.inbox.put("ANNOTATION_CREATED", project, b"{}", 1)

    def look(self, later: float = 0.0) -> list[str]:
        return [f"{job.project}: {job.why}" for job in self.dispatcher.look(time.time() + later)]

    def work(self, error: Exception | None = None) -> None:
        def do(job: Any, report: Any) -> dict[str, Any]:
            if error:
                raise error
            return {}

        assert self.queue.do_next({"train": do})


def events(folder: Path) -> list[Event]:
    """All that is in the inbox, done or not."""
    with sqlite3.connect(folder / "inbox.sqlite3") as db:
        rows = db.execute("SELECT id, received, action, project, body, annotations FROM events ORDER BY id").fetchall()
    db.close()
    return [Event(*row) for row in rows]


@pytest.fixture
def office(settings: Callable[..., Settings], tmp_path: Path) -> Office:
    return Office(settings(policy="embedded", train_after=3, train_quiet=30.0), tmp_path)


def test_enough_annotations_and_then_quiet(office: Office) -> None:
    office.annotate(2)
    assert office.look(100) == []
    office.annotate(1)
    assert office.look(0) == []  # they may still be at work
    assert office.look(31) == ["1: 3 new annotations"] and office.look(100) == []


def test_who_never_pauses_is_not_waited_for_for_ever() -> None:
    events = [Event(i, 1000.0 + 10 * i, "ANNOTATION_CREATED", 1, annotations=1) for i in range(40)]
    assert due(events[:30], 3, 30.0, 1291.0) == ""
    assert due(events, 3, 30.0, 1391.0) == "40 new annotations"
    assert due(events, 0, 30.0, 9999.0) == ""


def test_the_button_starts_at_once(office: Office) -> None:
    office.inbox.put("START_TRAINING", 1, b"{}")
    assert office.look() == ["1: the Start Training button"]


def test_models_that_cannot_be_trained_are_left_alone(settings: Callable[..., Settings], tmp_path: Path) -> None:
    office = Office(settings(policy="saliency", train_after=3), tmp_path)
    office.annotate(9)
    assert office.look(999) == []
    office.inbox.put("START_TRAINING", 1, b"{}")
    assert office.look() == ["1: the Start Training button"]


def test_projects_are_trained_for_themselves_and_one_at_a_time(office: Office) -> None:
    office.annotate(3, 1)
    office.annotate(3, 2)
    assert sorted(office.look(40)) == ["1: 3 new annotations", "2: 3 new annotations"]
    office.annotate(3, 1)
    assert office.look(80) == []  # both wait for a worker
    office.work()
    office.work()
    assert office.look(80) == ["1: 3 new annotations"]


def test_events_stay_until_their_training_is_done(office: Office) -> None:
    office.annotate(3)
    office.look(40)
    office.annotate(1)
    assert len(office.inbox.pending_heads()) == 4
    office.work()
    office.look(40)
    assert len(office.inbox.pending_heads()) == 1  # what came during the training is for the next one


def test_without_learning_no_annotation_waits(settings: Callable[..., Settings], tmp_path: Path) -> None:
    office = Office(settings(policy="embedded", train_after=0), tmp_path)
    office.annotate(60)
    assert office.look(99) == [] and office.inbox.pending_heads() == []
    office.inbox.put("START_TRAINING", 1, b"{}")
    office.annotate(1)
    assert office.look() == ["1: the Start Training button"]
    office.work(ApiError("no answer"))
    assert office.look(99) == ["1: the Start Training button"]  # it is not forgotten
    office.work()
    assert office.look() == [] and office.inbox.pending_heads() == []


def test_what_was_learned_from_is_forgotten_after_a_day_and_nothing_else(office: Office) -> None:
    day = 24 * 3600.0
    office.annotate(3)
    office.look(40)
    office.work()
    office.look(40)
    office.annotate(2)
    office.look(day / 2)
    assert office.inbox.counts() == {"ANNOTATION_CREATED": 5}
    office.look(day + 9)
    assert office.inbox.counts() == {"ANNOTATION_CREATED": 2} and len(office.inbox.pending_heads()) == 2
    assert [event.body for event in office.inbox.pending()] == [b"", b"{}"]  # the newest stays as it is
    office.annotate(1)
    assert office.look(2 * day) == ["1: 3 new annotations"]


def test_what_no_check_has_read_is_not_forgotten(settings: Callable[..., Settings], tmp_path: Path) -> None:
    office = Office(settings(policy="embedded", train_after=0, qc_on_submit=True), tmp_path)
    office.annotate(2)
    office.look(6)
    assert office.queue.do_next({"qc": lambda job, report: {}})
    office.annotate(2)
    office.inbox.put("ANNOTATIONS_DELETED", 1, b"{}", 1)
    office.annotate(1)
    office.look(0)
    office.look(24 * 3600.0 + 9)
    assert [event.action for event in events(tmp_path)] == ["ANNOTATION_CREATED"] * 3
    assert list(office.inbox.bodies(1, ["ANNOTATION_CREATED"], 2, 99)) == [b"{}"] * 3


def test_a_project_that_cannot_be_trained_does_not_fill_the_inbox(office: Office) -> None:
    for _ in range(4):
        office.annotate(3)
        assert office.look(40)[0].endswith("new annotations")
        office.work(InputError("too little"))
        office.look(0)
        [head] = office.inbox.pending_heads()
    assert head.annotations == 12
    office.annotate(1)
    assert office.look(40) == ["1: 13 new annotations"]
    office.work()
    assert office.look(40) == [] and office.inbox.pending_heads() == []


def test_heads_are_read_without_the_bodies(office: Office) -> None:
    office.annotate(3)
    queries: list[str] = []
    with office.inbox._connection() as db:
        db.set_trace_callback(queries.append)
        office.inbox.pending_heads()
        db.set_trace_callback(None)
        [query] = [query for query in queries if query.startswith("SELECT")]
        [plan] = db.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
    assert "COVERING INDEX heads" in plan[3]


def test_other_events_are_not_kept_waiting(office: Office) -> None:
    office.inbox.put("TASKS_CREATED", 1, b"{}")
    office.inbox.put("ANNOTATION_CREATED", None, b"{}", 1)
    assert office.look(40) == [] and office.inbox.pending_heads() == []


def test_too_little_waits_for_more(office: Office) -> None:
    office.inbox.put("START_TRAINING", 1, b"{}")
    office.look()
    office.work(InputError("too little"))
    assert office.look(9999) == []  # the same news would fail again
    office.inbox.put("START_TRAINING", 1, b"{}")
    assert office.look(9999) == ["1: the Start Training button"]
    office.work(InputError("too little"))
    office.annotate(2)
    assert office.look(9999) == []
    office.annotate(1)
    assert office.look(9999) == ["1: 3 new annotations"]


def test_passing_failures_are_tried_again_later_and_later(office: Office) -> None:
    office.annotate(3)
    office.look(40)
    office.work(ApiError("no answer"))
    assert office.look(30) == [] and office.look(70) == ["1: 3 new annotations"]
    office.work(ApiError("no answer"))
    assert office.look(70) == [] and office.look(130) == ["1: 3 new annotations"]
    office.work()
    office.look(130)
    assert office.inbox.pending_heads() == []


def test_submitted_annotations_are_checked_when_that_is_wanted(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    office = Office(settings(policy="embedded", train_after=0, qc_on_submit=True), tmp_path)
    office.annotate(1)
    assert office.look(0) == [] and office.look(6) == ["1: annotations were submitted"] and office.look(99) == []
    assert office.queue.do_next({"qc": lambda job, report: {}})
    assert office.look(99) == []
    office.annotate(1)
    assert office.look(6) == ["1: annotations were submitted"]


def test_a_check_that_failed_in_passing_is_tried_again(settings: Callable[..., Settings], tmp_path: Path) -> None:
    office = Office(settings(policy="embedded", train_after=0, qc_on_submit=True), tmp_path)

    def check(error: Exception | None = None) -> None:
        def do(job: Any, report: Any) -> dict[str, Any]:
            if error:
                raise error
            return {}

        assert office.queue.do_next({"qc": do})

    office.annotate(1)
    office.look(6)
    check(ApiError("no answer"))
    assert office.look(30) == [] and office.look(70) == ["1: annotations were submitted"]
    check(ApiError("no answer"))
    assert office.look(70) == [] and office.look(130) == ["1: annotations were submitted"]
    check(InputError("no such project"))
    assert office.look(9999) == []
    office.annotate(1)
    office.look(6)
    check()
    assert office.look(9999) == [] and office.queue.jobs()[0].after == 0


def test_checked_projects_stay_checked_however_much_others_do(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    office = Office(settings(policy="embedded", train_after=0, qc_on_submit=True), tmp_path)
    for project in range(120):
        office.annotate(1, project)
    assert len(office.look(6)) == 120
    while office.queue.do_next({"qc": lambda job, report: {}}):
        pass
    office.annotate(1, 3)
    assert office.look(6) == ["3: annotations were submitted"] and office.look(99) == []


def test_a_check_is_about_what_was_submitted_since_the_last_good_one(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    office = Office(settings(policy="embedded", train_after=0, qc_on_submit=True), tmp_path)

    def check(error: Exception | None = None) -> tuple[int | None, int]:
        office.annotate(2)
        office.look(6)
        seen: list[tuple[int | None, int]] = []

        def do(job: Any, report: Any) -> dict[str, Any]:
            seen.append((job.after, job.upto))
            if error:
                raise error
            return {}

        assert office.queue.do_next({"qc": do})
        return seen[0]

    assert check() == (0, 2) and check(ApiError("no answer")) == (2, 4) and check() == (2, 6) and check() == (6, 8)


def test_lost_jobs_are_revived(office: Office) -> None:
    office.annotate(3)
    office.look(40)
    office.queue.huey.dequeue()
    [job] = office.queue.jobs()
    office.queue._put(replace(job, state="running", beat=1.0, attempts=1))
    assert office.look(40) == []
    office.work()
    assert office.queue.jobs()[0].state == "done"


def test_the_thread_looks_and_stops(office: Office) -> None:
    office.inbox.put("START_TRAINING", 1, b"{}")
    office.dispatcher.start()
    deadline = time.monotonic() + 10
    while not office.queue.jobs() and time.monotonic() < deadline:
        time.sleep(0.05)
    office.dispatcher.stop()
    assert [job.why for job in office.queue.jobs()] == ["the Start Training button"]
