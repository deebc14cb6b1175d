"""From events to training jobs: which project has enough news, and has been quiet long enough.

Events stay pending until a job that took them into account is done. Whatever dies in between, the news is still there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Sequence

from ..errors import SegAgentError
from ..training.trainer import trainable
from .inbox import BUTTON, NEWS, SUBMITTED, Event, Inbox, open_inbox
from .jobs import Job, JobQueue, open_queue
from .settings import Settings
from .worker import WorkerKeeper

__all__ = ["Dispatcher", "due", "start_background"]

log = logging.getLogger(__name__)
_INTERVAL = 1.0
_IMPATIENCE = 10.0
"""People who never pause are waited for so many quiet periods, not longer."""
_AGAIN = 60.0
"""Seconds until a job that failed in passing is tried again; doubled each time, up to an hour."""
_QC_QUIET = 5.0
"""Seconds without a new annotation after which those that came are checked."""
_KEPT = 24 * 3600.0
"""Seconds that an event stays in the inbox when nobody needs it any more."""
_TIDY = 3600.0


def due(news: Sequence[Event], after: int, quiet: float, now: float) -> str:
    """Why a project should be trained now, or "".

    Args:
        news: Events of the project since its last training, oldest first; bodies are not needed.
        after: So many new, changed or deleted annotations start it; 0 leaves that to the button.
        quiet: Seconds without an event that must pass.
        now: Unix time in seconds.
    """
    if any(event.action == BUTTON for event in news):
        return "the Start Training button"
    count = sum(event.annotations for event in news)
    if not after or count < after:
        return ""
    calm, longest = now - news[-1].received, now - news[0].received
    return f"{count} new annotations" if calm >= quiet or longest >= _IMPATIENCE * quiet else ""


def start_background(settings: Settings) -> None:
    """Watch the inbox from this process on, and keep a worker running beside it if the settings say so.

    Raises:
        ConfigError: The inbox or the queue cannot be opened.
    """
    queue = open_queue(settings.queue_url.get_secret_value(), settings.data_dir)
    Dispatcher(settings, open_inbox(settings.data_dir), queue).start()
    if settings.worker:
        WorkerKeeper(queue).start()


def _patience(failures: int) -> float:
    """Seconds to wait after so many failures in passing, one after the other."""
    return float(min(_AGAIN * 2 ** min(failures - 1, 9), 3600.0))


class Dispatcher:
    """Looks into the inbox every second, in a thread of the process that owns it.

    Args:
        settings: When to train.
        inbox: Where events arrive.
        queue: Where jobs go.
    """

    def __init__(self, settings: Settings, inbox: Inbox, queue: JobQueue) -> None:
        self._settings, self._inbox, self._queue = settings, inbox, queue
        # The button says why a model cannot be trained; annotations need not say it again and again.
        self._after = settings.train_after if trainable(settings.policy) else 0
        self._tidied = 0.0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look."""
        self._thread = threading.Thread(target=self._watch, name="dispatcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def look(self, now: float | None = None) -> list[Job]:
        """Look once: finish events whose job is done, revive lost jobs, enqueue what is due. Returns the new jobs."""
        now = time.time() if now is None else now
        self._queue.revive()
        every = self._queue.jobs()
        checks = [job for job in every if job.kind == "qc"]
        started = self._check(checks, now) if self._settings.qc_on_submit else []
        if now - self._tidied >= _TIDY:
            self._tidy(checks, now)
        pending = self._inbox.pending_heads()
        if not pending:
            return started
        jobs = [job for job in every if job.kind == "train"]
        news: dict[int, list[Event]] = defaultdict(list)
        wanted = (*NEWS, BUTTON) if self._after else (BUTTON,)
        self._inbox.mark_done(*(event.id for event in pending if event.project is None or event.action not in wanted))
        for event in pending:
            if event.project is not None and event.action in wanted:
                news[event.project].append(event)
        for project, events in news.items():
            if job := self._project(project, events, [job for job in jobs if job.project == project], now):
                started.append(job)
        return started

    def _tidy(self, checks: list[Job], now: float) -> None:
        """Forget events that nobody needs any more; `checks` are the jobs of quality control so far."""
        self._tidied = now
        checked: dict[int, int] = {}
        for job in checks:
            if job.state == "done":
                checked[job.project] = max(job.upto, checked.get(job.project, 0))
        self._inbox.forget(now - _KEPT, checked if self._settings.qc_on_submit else None)

    def _check(self, jobs: list[Job], now: float) -> list[Job]:
        """Enqueue quality control of what was submitted after the last one; `jobs` are those so far."""
        started = []
        for project, (newest, received) in self._inbox.latest(SUBMITTED).items():
            mine = [job for job in jobs if job.project == project]
            after = max((job.upto for job in mine if job.state == "done"), default=0)
            failed = [job for job in mine if job.state == "failed" and job.upto > after]
            known = max((job.upto for job in failed), default=after)
            again = bool(failed) and failed[0].passing and now >= failed[0].finished + _patience(len(failed))
            if any(job.open for job in mine) or after >= newest or (known >= newest and not again):
                continue
            if now - received >= _QC_QUIET:
                why = "annotations were submitted"
                started.append(self._queue.enqueue("qc", project, why, upto=newest, after=after))
        return started

    def _project(self, project: int, events: list[Event], jobs: list[Job], now: float) -> Job | None:
        """Enqueue a job for a project's pending events where it is time; `jobs` are its earlier ones, newest first."""
        if any(job.open for job in jobs):
            return None  # what came meanwhile is for the next one
        done = max((job.upto for job in jobs if job.state == "done"), default=0)
        self._inbox.mark_done(*(event.id for event in events if event.id <= done))
        events = [event for event in events if event.id > done]
        if not events:
            return None
        failed = [job for job in jobs if job.state == "failed" and job.upto > done]
        last = max((job.upto for job in failed), default=0)
        fresh = [event for event in events if event.id > last]
        seen = [event for event in events if event.id <= last and event.action != BUTTON]
        if len(seen) > 1:  # a project that cannot be trained must not fill the inbox
            self._inbox.fold(seen)
        if failed and failed[0].passing:
            why = failed[0].why if now >= failed[0].finished + _patience(len(failed)) else ""
        elif any(event.action == BUTTON for event in fresh) or not failed:
            why = due(fresh, self._after, self._settings.train_quiet, now)
        else:  # nobody presses the button twice for nothing; old news count together with the new
            quiet = [event for event in events if event.action != BUTTON]
            why = due(quiet, self._after, self._settings.train_quiet, now) if fresh else ""
        return self._queue.enqueue("train", project, why, upto=events[-1].id) if why else None

    def _watch(self) -> None:
        while not self._over.wait(_INTERVAL):
            try:
                for job in self.look():
                    log.info("%s of project %d is queued: %s", job.kind, job.project, job.why)
            except SegAgentError as error:
                log.error("events wait: %s", error)
            except Exception:
                log.exception("events wait")
        self._inbox.close()
