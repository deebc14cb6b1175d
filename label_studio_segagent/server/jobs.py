"""Background jobs: a queue (huey, on SQLite or Redis), records that people can read, and the worker that does them.

The web process only enqueues. A record says what becomes of a job; while it runs, its worker writes a sign of life
every few seconds, so that the jobs of a worker that died are found and started again.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from huey import Huey, SqliteHuey
from huey.registry import Message
from huey.serializer import Serializer
from huey.storage import RedisStorage
from typing_extensions import override

from ..errors import ApiError, BusyError, ConfigError, SegAgentError
from .databases import complaint, open_soundly

__all__ = ["Job", "JobFunction", "JobQueue", "open_queue", "worker_name"]

log = logging.getLogger(__name__)

_PREFIX = "segagent-job:"
_BEAT = 5.0
_DEAD = 45.0
"""Seconds without a sign of life after which a running job's worker is taken for dead."""
_ATTEMPTS = 5
_KEPT = 100
_OPEN = ("queued", "running")


@dataclass(frozen=True, slots=True)
class Job:
    """What is known of a job.

    Attributes:
        id: Unique.
        kind: What it does, for example "train".
        project: Label Studio project id.
        why: What started it, in words.
        state: "queued", "running", "done" or "failed".
        upto: The newest event of the inbox that it takes into account.
        after: The newest event before those that it is about; None when it is about the whole project.
        created: Unix time in seconds, like `started`, `beat` (last sign of life) and `finished`.
        started: 0 before it.
        beat: 0 before it.
        finished: 0 before it.
        share: How much is done, in [0, 1].
        step: What it does now, in words.
        attempts: How often a worker took it up.
        worker: Which one, as host:process.
        reason: Why it failed.
        passing: The failure may pass by itself (Label Studio did not answer, another process was at it): it is worth
            another try.
        result: What it found.
    """

    id: str
    kind: str
    project: int
    why: str
    state: str = "queued"
    upto: int = 0
    after: int | None = None
    created: float = 0.0
    started: float = 0.0
    beat: float = 0.0
    finished: float = 0.0
    share: float = 0.0
    step: str = ""
    attempts: int = 0
    worker: str = ""
    reason: str = ""
    passing: bool = False
    result: Mapping[str, Any] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """Whether it is queued or running."""
        return self.state in _OPEN

    @property
    def eta(self) -> float | None:
        """Seconds that it will still take, as it looks; None when nobody can say."""
        if self.state != "running" or self.share <= 0:
            return None
        return (time.time() - self.started) * (1 - self.share) / self.share


JobFunction = Callable[[Job, Callable[[float, str], None]], Mapping[str, Any]]
"""Does a job: told which, and a function to report progress (share, words) to; returns its result."""


class _Plain(Serializer):  # type: ignore[misc]  # huey has no types
    """Queues hold JSON and not huey's pickles: who can write to them cannot run code in server and workers."""

    @override
    def _serialize(self, data: Any) -> bytes:
        # Ours are the id and the name of a task, and the id of its job; nothing else says anything.
        return json.dumps([data.id, data.name, data.args] if isinstance(data, Message) else None).encode()

    @override
    def _deserialize(self, data: bytes) -> Any:
        number, name, args = json.loads(data)
        return Message(str(number), str(name), None, 0, 0, None, tuple(args), {})


def open_queue(url: str, folder: Path) -> JobQueue:
    """The queue, for the process that is its server: a damaged file is put aside.

    Raises:
        ConfigError: It cannot be opened.
    """
    return open_soundly(folder / "jobs.sqlite3", lambda: JobQueue(url, folder))


class JobQueue:
    """The queue and the records of its jobs. Safe under threads and processes.

    Args:
        url: "redis://…" for several machines; by default an SQLite file.
        folder: Where that file is.

    Raises:
        ConfigError: The queue cannot be opened.
    """

    def __init__(self, url: str, folder: Path) -> None:
        path = folder / "jobs.sqlite3"
        try:
            if url:
                self.huey: Huey = Huey("segagent", storage_class=RedisStorage, serializer=_Plain(), url=url, utc=True)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                self.huey = SqliteHuey("segagent", serializer=_Plain(), filename=str(path), fsync=True, timeout=30)
            self.jobs()
        except Exception as error:  # of sqlite3 and redis, which need not be installed
            if not url:
                raise ConfigError(complaint("the job queue", path, error)) from error
            raise ConfigError(
                f"the job queue {_shown(url)} cannot be used ({type(error).__name__}); set SEGAGENT_QUEUE_URL to a "
                "Redis server that answers (and pip install redis), or leave it empty"
            ) from error
        self._functions: Mapping[str, JobFunction] = {}
        self._task = self.huey.task(name="segagent-job")(self._work)

    def enqueue(self, kind: str, project: int, why: str, upto: int = 0, after: int | None = None) -> Job:
        """Put a job at the end of the queue."""
        now = time.time()
        job = Job(uuid.uuid4().hex[:12], kind, project, why, upto=upto, after=after, created=now, beat=now)
        self._put(job)
        self._task(job.id)
        self._forget_old()
        return job

    def jobs(self) -> list[Job]:
        """All known jobs, newest first."""
        items = self.huey.storage.result_items()
        found = [_parse(value) for key, value in items.items() if _text(key).startswith(_PREFIX)]
        return sorted((job for job in found if job is not None), key=lambda job: -job.created)

    def get(self, job_id: str) -> Job | None:
        """A job by its id."""
        value = self.huey.storage.peek_data(_PREFIX + job_id)
        return _parse(value) if isinstance(value, bytes) else None

    def revive(self, dead: str | None = None) -> list[Job]:
        """Put the jobs back into the queue whose workers died; returns them. After some attempts they fail.

        Args:
            dead: A worker that is known to have died. Others count as dead after a while without a sign of life.
        """
        now, revived = time.time(), []
        waiting = {str(task.args[0]) for task in self.huey.pending() if task.args}
        for job in self.jobs():
            gone = now - job.beat >= _DEAD or (job.state == "running" and job.worker == dead)
            if not job.open or not gone or (job.state == "queued" and job.id in waiting):
                continue
            if job.attempts >= _ATTEMPTS:
                reason = f"its worker died {job.attempts} times; the worker's log says more"
                self._put(replace(job, state="failed", finished=now, reason=reason))
                continue
            log.warning("job %s (%s, project %d) lost its worker; starting it again", job.id, job.kind, job.project)
            revived.append(replace(job, state="queued", beat=now, share=0.0, step=""))
            self._put(revived[-1])
            self._task(job.id)
        return revived

    def work(self, functions: Mapping[str, JobFunction], workers: int = 1) -> None:
        """Do jobs until stopped by a signal.

        Args:
            functions: What to do, by the kind of job.
            workers: Jobs done at once, in threads.
        """
        self._functions = functions
        self.huey.create_consumer(workers=workers, periodic=False, max_delay=2.0).run()

    def do_next(self, functions: Mapping[str, JobFunction]) -> bool:
        """Do one waiting job here and now; False when there is none."""
        self._functions = functions
        task = self.huey.dequeue()
        if task is None:
            return False
        self.huey.execute(task)
        return True

    def _work(self, job_id: str) -> None:
        job = self.get(job_id)
        if job is None or job.state != "queued":  # done meanwhile, or taken up by another worker
            return
        now = time.time()
        job = replace(
            job, state="running", started=now, beat=now, attempts=job.attempts + 1, worker=worker_name(os.getpid())
        )
        self._put(job)
        with self._alive(job) as report:
            try:
                if job.kind not in self._functions:
                    raise ConfigError(
                        f"this worker does not know jobs of the kind {job.kind!r}; is it an older version?"
                    )
                result = self._functions[job.kind](job, report)
                job = replace(job, state="done", share=1.0, step="", result=result)
            except SegAgentError as error:
                log.warning("job %s (%s, project %d) failed: %s", job.id, job.kind, job.project, error)
                passing = isinstance(error, BusyError) or (
                    isinstance(error, ApiError) and (error.status is None or error.status >= 500)
                )
                job = replace(job, state="failed", reason=str(error), passing=passing)
            except Exception as error:
                log.exception("job %s (%s, project %d) failed", job.id, job.kind, job.project)
                job = replace(job, state="failed", reason=f"internal error ({type(error).__name__}); see the log")
        self._put(replace(job, finished=time.time()))

    @contextmanager
    def _alive(self, job: Job) -> Iterator[Callable[[float, str], None]]:
        """Signs of life while a job runs; yields the function that reports progress."""
        now, over, lock = [job], threading.Event(), threading.Lock()

        def report(share: float, step: str) -> None:
            with lock:
                now[0] = replace(now[0], share=min(max(share, 0.0), 1.0), step=step)

        def beat() -> None:
            while not over.wait(_BEAT if now[0].share else 0.5):
                with lock:
                    self._put(replace(now[0], beat=time.time()))

        thread = threading.Thread(target=beat, name="job-beat", daemon=True)
        thread.start()
        try:
            yield report
        finally:
            over.set()
            thread.join()

    def _put(self, job: Job) -> None:
        # JSON, not huey's pickle: other programs may read it, and nothing in it can run.
        self.huey.storage.put_data(_PREFIX + job.id, json.dumps(asdict(job)).encode())

    def _forget_old(self) -> None:
        # What a project's last jobs of a kind saw decides about its next one, however long ago they were.
        last: set[tuple[str, int, str]] = set()
        for number, job in enumerate(self.jobs()):
            key = (job.kind, job.project, job.state)
            if number >= _KEPT and not job.open and key in last:
                self.huey.storage.delete_data(_PREFIX + job.id)
            last.add(key)


def worker_name(process: int) -> str:
    """How a worker of this machine is called, by its process id."""
    return f"{socket.gethostname()}:{process}"


def _shown(url: str) -> str:
    """A URL without its password."""
    return re.sub(r"//[^@/]*@", "//", url)


def _text(key: bytes | str) -> str:
    return key.decode(errors="replace") if isinstance(key, bytes) else key


def _parse(value: bytes) -> Job | None:
    try:
        return Job(**json.loads(bytes(value)))
    except (ValueError, TypeError):  # of a newer version
        return None
