"""Work spread over processes that each load their models once, and work that one process at a time may do."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from .errors import BusyError, ConfigError

__all__ = ["alone", "spread"]

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 3
"""Tasks that wait for each process."""


def spread(
    tasks: Iterator[Task], prepare: Callable[[], Callable[[Task], Result]], jobs: int
) -> Iterator[tuple[Task, Result]]:
    """Each task with its result, in order.

    Processes are spawned and end with the one that asked; Ctrl+C is left to that one. A script that asks for several
    needs `if __name__ == "__main__":`.

    Args:
        tasks: What is to be done; drawn a little ahead.
        prepare: Called once in each process: loads models and gives what does a task. To be pickled when `jobs` > 1.
        jobs: Processes; 1 is this one.

    Raises:
        ConfigError: `jobs` is below 1, or a process died.
    """
    if jobs < 1:
        raise ConfigError(f"{jobs} processes: it must be 1 or more")
    if jobs == 1:
        do = prepare()
        for task in tasks:
            yield task, do(task)
        return
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start, (prepare, jobs))
    waiting: deque[tuple[Task, Future[Result]]] = deque()
    try:
        for task in tasks:
            waiting.append((task, pool.submit(_work, task)))
            if len(waiting) >= _AHEAD * jobs:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    except BrokenProcessPool as error:
        raise ConfigError(
            "a process died, perhaps for want of memory; what was made is kept: run it again, with fewer jobs"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_do: Callable[[Any], Any] | None = None


def _start(prepare: Callable[[], Callable[[Any], Any]], jobs: int) -> None:
    """Prepare a process of the pool."""
    global _do
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked decides what Ctrl+C means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _do = prepare()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: Any) -> Any:
    assert _do is not None
    return _do(task)


@contextmanager
def alone(path: Path, doing: str = "") -> Iterator[None]:
    """Keep other processes, and other threads of this one, out; the lock goes with the process, however that ends.

    Args:
        path: The file of the lock; made with its folder when missing, and left there.
        doing: What another process would be doing, such as "training project 3"; without it that is waited for.

    Raises:
        BusyError: Another process is doing it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if doing else 0))
        except BlockingIOError:
            raise BusyError(f"another process is {doing}; try again when it has ended") from None
        yield
