"""Encoding the images of new tasks before anybody opens them, while the server has nothing else to do.

The first click on an image then costs what the others cost. That matters where encoding takes seconds: the SAM family.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import SegAgentError
from .predictor import Predictor

__all__ = ["Prewarmer"]

_LOOK_AGAIN = 0.2
"""Seconds between two looks whether the server is idle."""
_NICENESS = 10

log = logging.getLogger(__name__)


class Prewarmer:
    """A thread of low priority with a short queue of tasks; it starts with the first one.

    Args:
        predictor: Loads and encodes.
        idle: Whether no prediction is running; asked before each task. A request that comes while one is being encoded
            shares the machine with that one encoding.
        limit: Tasks that may wait; of more, the first are taken. 0 turns it off.
    """

    def __init__(self, predictor: Predictor, idle: Callable[[], bool], limit: int) -> None:
        self._predictor, self._idle, self._limit = predictor, idle, limit
        self._waiting: deque[tuple[Any, str]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def offer(self, tasks: Sequence[Any], label_config: str) -> None:
        """Take tasks as Label Studio sends them with TASKS_CREATED; returns at once."""
        with self._changed:
            room = self._limit - len(self._waiting)
            self._waiting.extend((task, label_config) for task in tasks[: max(room, 0)])
            if self._waiting and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="prewarm", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _work(self) -> None:
        if sys.platform == "linux":  # there, threads have priorities of their own, and torch's helpers inherit them
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                task, label_config = self._waiting.popleft()
            while not self._idle():
                time.sleep(_LOOK_AGAIN)
            try:
                self._predictor.prewarm(task, label_config)
            except SegAgentError as error:
                log.info("a new task is not encoded ahead: %s", error)  # it will be said again when it matters
            except Exception:
                log.exception("a new task is not encoded ahead")
