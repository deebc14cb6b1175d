"""The inbox of webhook events: written before the answer, worked on later, never lost.

Label Studio calls webhooks once, inside the annotator's own request, and waits one second.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .databases import complaint, is_damaged, open_soundly

__all__ = ["BARE_REMEDY", "BUTTON", "NEWS", "SUBMITTED", "Event", "Inbox", "count_annotations", "open_inbox"]

SUBMITTED = ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED")
"""Actions that bring an annotation, new or changed."""
NEWS = (*SUBMITTED, "ANNOTATIONS_DELETED", "TASKS_DELETED")
"""Actions after which there is something else to learn from."""
BUTTON = "START_TRAINING"
"""The action of Label Studio's button for it."""
log = logging.getLogger(__name__)
BARE_REMEDY = "in Label Studio, under Settings > Webhooks, turn on Send payload for the webhook of this backend"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    received REAL NOT NULL,
    action TEXT NOT NULL,
    project INTEGER,
    body BLOB NOT NULL,
    done REAL,
    annotations INTEGER NOT NULL DEFAULT 0
);
-- Heads are read from it alone: in the table, what follows a body is behind all its pages.
CREATE INDEX IF NOT EXISTS heads ON events (id, received, action, project, annotations, done) WHERE done IS NULL;
CREATE INDEX IF NOT EXISTS by_project ON events (project, action, id, received);
"""
_BATCH = 50
"""Events changed at once; webhooks wait meanwhile."""


@dataclass(frozen=True, slots=True)
class Event:
    """One webhook call.

    Attributes:
        id: Ever increasing.
        received: Unix time in seconds.
        action: For example "ANNOTATION_CREATED"; whatever Label Studio sent.
        project: Project id, or None when the call named none.
        body: The request's body, JSON in UTF-8; empty where it was not asked for.
        annotations: How many annotations it is about.
    """

    id: int
    received: float
    action: str
    project: int | None
    body: bytes = b""
    annotations: int = 0


def count_annotations(event: Mapping[str, Any]) -> int:
    """How many annotations an event is about: one, a list of new ones, or a list of deleted ones."""
    about = event.get("annotation") or event.get("annotations")
    return len(about) if isinstance(about, list) else int(isinstance(about, dict))


def _is_bare(action: str, project: object, annotations: int) -> bool:
    """Whether an event tells of news and not what they are about, so that nothing can follow from it.

    Args:
        action: What happened.
        project: Id, or None.
        annotations: How many annotations it names.
    """
    return (action in (*NEWS, BUTTON) and project is None) or (action in SUBMITTED and not annotations)


def open_inbox(folder: Path) -> Inbox:
    """The inbox in a folder, for the process that is its server: a damaged file is put aside.

    Raises:
        ConfigError: It cannot be made.
    """
    path = folder / "inbox.sqlite3"
    return open_soundly(path, lambda: Inbox(path))


class Inbox:
    """Events in an SQLite file. Safe under threads and processes.

    Args:
        path: The file; made with its folder when missing.

    Raises:
        ConfigError: The file cannot be made or is not an inbox.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._local = path, threading.local()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._connection() as db:
                db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(complaint("the inbox", path, error)) from error

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection, inside a transaction.

        Raises:
            ConfigError: The file is damaged.
        """
        try:
            db: sqlite3.Connection | None = getattr(self._local, "db", None)
            if db is None:
                db = self._local.db = sqlite3.connect(self._path, timeout=30.0)
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=FULL")  # an acknowledged event survives a power cut
            with db:
                yield db
        except sqlite3.DatabaseError as error:
            self.close()
            if is_damaged(error):
                raise ConfigError(complaint("the inbox", self._path, error)) from error
            raise

    def close(self) -> None:
        """Close this thread's connection; each thread has its own, closed when the thread ends."""
        db: sqlite3.Connection | None = self._local.__dict__.pop("db", None)
        if db is not None:
            db.close()

    def put(self, action: str, project: object, body: bytes, annotations: int = 0) -> int:
        """Store an event durably and return its id; of one that says too little there is a warning.

        Args:
            action: What happened, as the sender calls it.
            project: Project id; what cannot be one is not kept.
            body: The request's body.
            annotations: How many annotations it is about.
        """
        action = action.encode(errors="replace").decode()  # half a surrogate pair cannot be stored
        if not isinstance(project, int) or isinstance(project, bool) or not 0 <= project < 2**63:
            project = None
        if _is_bare(action, project, annotations):
            log.warning("a webhook says %s and not what that is about; nothing comes of it: %s", action, BARE_REMEDY)
        with self._connection() as db:
            cursor = db.execute(
                "INSERT INTO events (received, action, project, body, annotations) VALUES (?, ?, ?, ?, ?)",
                (time.time(), action, project, body, annotations),
            )
            return int(cursor.lastrowid or 0)

    def pending(self, limit: int = 1000) -> list[Event]:
        """The oldest events that are not done."""
        with self._connection() as db:
            rows = db.execute(
                "SELECT id, received, action, project, body, annotations FROM events "
                "WHERE done IS NULL ORDER BY id LIMIT ?",
                (limit,),
            ).fetchall()
        return [Event(*row) for row in rows]

    def pending_heads(self) -> list[Event]:
        """All events that are not done, oldest first, without their bodies."""
        with self._connection() as db:
            rows = db.execute(
                "SELECT id, received, action, project, x'', annotations FROM events WHERE done IS NULL ORDER BY id"
            ).fetchall()
        return [Event(*row) for row in rows]

    def latest(self, actions: Sequence[str]) -> dict[int, tuple[int, float]]:
        """For each project the newest event of some actions, done or not: its id, and when it was received."""
        marks = ",".join("?" * len(actions))
        with self._connection() as db:
            rows = db.execute(
                f"SELECT project, MAX(id), MAX(received) FROM events WHERE project IS NOT NULL AND action IN ({marks}) "
                "GROUP BY project",
                tuple(actions),
            ).fetchall()
        return {project: (number, received) for project, number, received in rows}

    def bodies(self, project: int, actions: Sequence[str], after: int, upto: int) -> Iterator[bytes]:
        """Bodies of the events of a project, of some actions, with ids above `after` up to `upto`; oldest first."""
        marks = ",".join("?" * len(actions))
        query = f"SELECT MIN(id) FROM events WHERE project = ? AND action IN ({marks}) AND id > ? AND id <= ?"
        while True:  # one at a time: with their masks they are large
            with self._connection() as db:
                (number,) = db.execute(query, (project, *actions, after, upto)).fetchone()
                if number is None:
                    return
                row = db.execute("SELECT body FROM events WHERE id = ?", (number,)).fetchone()
            if row is not None:
                yield row[0]
            after = number

    def bare(self, since: float) -> int:
        """The number of events received since a time, Unix seconds, that do not say what they are about."""
        with self._connection() as db:
            rows = db.execute(
                "SELECT action, project, annotations FROM events WHERE received >= ? "
                "AND (project IS NULL OR annotations = 0)",
                (since,),
            ).fetchall()
        return sum(_is_bare(*row) for row in rows)

    def projects(self) -> list[int]:
        """All projects that events were about."""
        with self._connection() as db:
            rows = db.execute("SELECT DISTINCT project FROM events WHERE project IS NOT NULL ORDER BY project")
            return [number for (number,) in rows.fetchall()]

    def mark_done(self, *event_ids: int) -> None:
        """Note that events have been worked on; they stay in the file until `forget`."""
        for start in range(0, len(event_ids), _BATCH):
            rows = [(time.time(), number) for number in event_ids[start : start + _BATCH]]
            with self._connection() as db:
                db.executemany("UPDATE events SET done = ? WHERE id = ?", rows)

    def fold(self, events: Sequence[Event]) -> None:
        """Let the last of some pending events stand for all of them: it counts their annotations, the others are done.

        Args:
            events: Of one project, oldest first.
        """
        *others, last = events
        with self._connection() as db:  # all or nothing
            count = sum(event.annotations for event in events)
            db.execute("UPDATE events SET annotations = ? WHERE id = ?", (count, last.id))
            db.executemany("UPDATE events SET done = ? WHERE id = ?", [(time.time(), event.id) for event in others])

    def forget(self, before: float, checked: Mapping[int, int] | None = None) -> None:
        """Delete old events that are done, and the bodies of old ones that are not; the newest of a project stays.

        Args:
            before: Unix time in seconds; what was received since is not old.
            checked: For each project the newest event up to which somebody has read the bodies of what was submitted;
                those of later ones stay. None where nobody reads them.
        """
        with self._connection() as db:
            newest = db.execute("SELECT project, MAX(id) FROM events GROUP BY project").fetchall()
        marks = ",".join("?" * len(SUBMITTED))
        old = f"project IS ? AND received < ? AND id < ? AND (id <= ? OR action NOT IN ({marks}))"
        for project, last in newest:
            upto = last if checked is None else checked.get(project, 0)
            for change, state in (
                ("DELETE FROM events", "done IS NOT NULL"),
                ("UPDATE events SET body = x''", "done IS NULL AND length(body) > 0"),
            ):
                query = f"{change} WHERE id IN (SELECT id FROM events WHERE {old} AND {state} LIMIT {_BATCH})"
                changed = _BATCH
                while changed == _BATCH:
                    with self._connection() as db:
                        changed = db.execute(query, (project, before, last, upto, *SUBMITTED)).rowcount

    def counts(self) -> dict[str, int]:
        """Number of events by action."""
        with self._connection() as db:
            return dict(db.execute("SELECT action, COUNT(*) FROM events GROUP BY action").fetchall())
