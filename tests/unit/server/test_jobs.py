from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from label_studio_segagent.errors import ApiError, BusyError, ConfigError, InputError
from label_studio_segagent.labelstudio.local import free_port
from label_studio_segagent.server.jobs import Job, JobQueue, worker_name


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis server."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server; as root, `make system` installs Debian's")
    port = free_port()
    command = [program, "--port", str(port), "--save", "", "--dir", str(tmp_path_factory.mktemp("redis"))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.05)
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait()


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def url(request: pytest.FixtureRequest) -> str:
    """Where the queue is; for Redis, emptied before each test."""
    if request.param == "sqlite":
        return ""
    found: str = request.getfixturevalue("redis_url")
    with redis.Redis.from_url(found) as client:
        client.flushall()
    return found


@pytest.fixture
def queue(tmp_path: Path, url: str) -> Iterator[JobQueue]:
    made = JobQueue(url, tmp_path)
    yield made
    if url:
        made.huey.storage.pool.disconnect()


def test_a_job_is_done_and_remembered(queue: JobQueue, tmp_path: Path, url: str) -> None:
    job = queue.enqueue("train", 4, "because", upto=9)
    assert job.state == "queued" and job.open and job.eta is None
    seen: list[Job | None] = []

    def work(given: Job, report: object) -> dict[str, object]:
        report(0.5, "halfway")  # type: ignore[operator]
        time.sleep(0.8)
        seen.append(JobQueue(url, tmp_path).get(given.id))
        return {"miou": 0.75}

    assert queue.do_next({"train": work})
    [running], [done] = seen, queue.jobs()
    assert running is not None and running.state == "running" and running.step == "halfway" and running.share == 0.5
    assert running.eta is not None and 0 < running.eta < 5
    assert done.state == "done" and done.result == {"miou": 0.75} and done.upto == 9 and done.share == 1
    assert not queue.do_next({"train": work}) and not done.open


@pytest.mark.parametrize(
    ("error", "passing", "reason"),
    [
        (InputError("too little"), False, "too little"),
        (ApiError("no answer"), True, "no answer"),
        (BusyError("another process"), True, "another process"),
        (ApiError("broken", 502), True, "broken"),
        (ApiError("forbidden", 403), False, "forbidden"),
        (ZeroDivisionError("secret /path"), False, "internal error (ZeroDivisionError); see the log"),
    ],
)
def test_a_job_fails_with_a_reason(queue: JobQueue, error: Exception, passing: bool, reason: str) -> None:
    queue.enqueue("train", 4, "because")

    def fail(job: Job, report: object) -> dict[str, object]:
        raise error

    queue.do_next({"train": fail})
    [job] = queue.jobs()
    assert (job.state, job.passing, job.reason) == ("failed", passing, reason) and job.finished > 0


def test_an_unknown_kind_fails(queue: JobQueue) -> None:
    queue.enqueue("dance", 4, "because")
    queue.do_next({})
    assert "dance" in queue.jobs()[0].reason


def test_a_killed_workers_job_is_started_again(queue: JobQueue, tmp_path: Path, url: str) -> None:
    job = queue.enqueue("train", 4, "because")
    code = f"""
import time
from pathlib import Path
from label_studio_segagent.labelstudio.local import free_port
from label_studio_segagent.server.jobs import JobQueue
def work(job, report):
    print("started", flush=True)
    time.sleep(60)
JobQueue({url!r}, Path({str(tmp_path)!r})).work({{"train": work}})
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"started\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    lost = queue.get(job.id)
    assert lost is not None and lost.state == "running" and lost.attempts == 1
    assert queue.revive() == []  # it may only be slow
    assert queue.revive("elsewhere:1") == [] and lost.worker == worker_name(process.pid)
    queue._put(replace(lost, beat=lost.beat - 100))
    [revived] = queue.revive()
    assert revived.state == "queued" and queue.revive() == []
    assert queue.do_next({"train": lambda job, report: {}})
    assert [j.state for j in queue.jobs()] == ["done"] and queue.jobs()[0].attempts == 2


def test_a_worker_known_to_be_dead_is_not_waited_for(queue: JobQueue) -> None:
    job = queue.enqueue("train", 4, "because")
    queue.huey.dequeue()
    queue._put(replace(job, state="running", beat=job.created, worker="here:5"))
    assert [j.id for j in queue.revive("here:5")] == [job.id]


def test_a_job_that_kills_its_workers_fails_in_the_end(queue: JobQueue) -> None:
    job = queue.enqueue("train", 4, "because")
    queue._put(replace(job, state="running", attempts=5, beat=1.0))
    assert queue.revive() == [] and "died 5 times" in queue.jobs()[0].reason


def test_a_job_taken_off_the_queue_but_not_begun_is_not_lost(queue: JobQueue) -> None:
    job = queue.enqueue("train", 4, "because")
    queue.huey.dequeue()  # what a worker does first; then it dies
    queue._put(replace(job, beat=1.0))
    assert [j.id for j in queue.revive()] == [job.id]
    assert queue.do_next({"train": lambda job, report: {}}) and queue.jobs()[0].state == "done"


def test_waiting_long_is_no_sign_of_death(queue: JobQueue) -> None:
    job = queue.enqueue("train", 4, "because")
    queue._put(replace(job, beat=1.0))
    assert queue.revive() == [] and queue.huey.pending_count() == 1


def test_a_job_in_the_queue_twice_is_done_once(queue: JobQueue) -> None:
    job = queue.enqueue("train", 4, "because")
    queue._task(job.id)
    done: list[str] = []
    for _ in range(2):
        queue.do_next({"train": lambda job, report: done.append(job.id) or {}})
    assert done == [job.id]


def test_old_jobs_are_forgotten_but_open_ones_kept(queue: JobQueue) -> None:
    first = queue.enqueue("train", 1, "old and open")
    for number in range(104):
        queue._put(Job(f"x{number}", "train", 1, "old", state="done", created=float(number)))
    queue.enqueue("train", 2, "new")
    kept = queue.jobs()
    assert len(kept) == 100 and first.id in {job.id for job in kept}


def test_what_a_project_was_last_told_is_not_forgotten(queue: JobQueue) -> None:
    queue._put(Job("a", "qc", 7, "long ago", state="done", upto=3, created=1.0))
    queue._put(Job("b", "qc", 7, "long ago", state="done", upto=5, created=2.0))
    queue._put(Job("c", "qc", 7, "long ago", state="failed", upto=4, created=1.5))
    queue._put(Job("d", "train", 7, "long ago", state="done", upto=5, created=2.0))
    for number in range(120):
        queue._put(Job(f"x{number}", "train", 1, "busy", state="done", created=3.0 + number))
    queue.enqueue("train", 1, "new")
    assert {job.id for job in queue.jobs() if job.project == 7} == {"b", "c", "d"} and len(queue.jobs()) == 103


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["BOMB"],)


def test_nothing_in_the_queue_can_run(queue: JobQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "bang"))
    job = queue.enqueue("train", 4, "because")
    [held] = queue.huey.storage.enqueued_items()
    assert b"\x80" not in held and json.loads(held)[2] == [job.id]
    for odd in (pickle.dumps(Bomb()), b"", b"{", b"[]", b'["x", "os.mkdir", ["y"]]', b"[[[1]], 2, 3]"):
        queue.huey.storage.flush_queue()
        queue.huey.storage.enqueue(odd)
        assert queue.revive() == []  # it may be read here, too
        with contextlib.suppress(Exception):  # huey's worker logs it and goes on
            queue.do_next({"train": lambda job, report: {}})
        assert queue.huey.pending_count() == 0
    assert not (tmp_path / "bang").exists()
    # The job whose message was lost is found again.
    queue._put(replace(job, beat=1.0))
    assert [j.id for j in queue.revive()] == [job.id]
    assert queue.do_next({"train": lambda job, report: {}}) and queue.jobs()[0].state == "done"


def test_foreign_records_are_passed_over(queue: JobQueue) -> None:
    queue.huey.storage.put_data("segagent-job:zzz", json.dumps({"from": "the future"}).encode())
    queue.huey.storage.put_data("other", b"\x80\x04K\x01.")
    assert queue.jobs() == []


def test_a_queue_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SEGAGENT_QUEUE_URL") as caught:
        JobQueue("redis://me:secret@127.0.0.1:1/0", tmp_path)
    assert "secret" not in str(caught.value)
    (tmp_path / "jobs.sqlite3").write_text("no database, but long enough to be taken for a broken one" * 20)
    with pytest.raises(ConfigError, match="jobs.sqlite3"):
        JobQueue("", tmp_path)
