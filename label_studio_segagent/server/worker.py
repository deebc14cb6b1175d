"""The worker: does jobs beside the web server, at low priority; and what keeps one running."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import partial

from .checking import check_job
from .jobs import JobFunction, JobQueue, worker_name
from .learning import learn
from .refining import refine_job
from .settings import Settings

__all__ = ["WorkerKeeper", "job_functions", "run_worker"]

log = logging.getLogger(__name__)
_NICENESS = 15
_ORPHAN_CHECK = 2.0
_RESTART = 5.0


def job_functions(settings: Settings) -> Mapping[str, JobFunction]:
    """What a worker can do, by the kind of job."""
    work = {"train": learn, "qc": check_job, "refine": refine_job}
    return {kind: partial(function, settings) for kind, function in work.items()}


def run_worker(settings: Settings, parent: int | None = None) -> None:
    """Do jobs until stopped.

    Args:
        settings: Of the server.
        parent: Process that this one must not outlive.

    Raises:
        ConfigError: The queue cannot be opened.
    """
    queue = JobQueue(settings.queue_url.get_secret_value(), settings.data_dir)
    os.nice(_NICENESS)
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), name="orphan-check", daemon=True).start()
    import torch

    # Half of the cores: annotators who click now come first.
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    log.info("worker %d waits for jobs", os.getpid())
    queue.work(job_functions(settings))


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_ORPHAN_CHECK)
    # The job at hand goes on from its checkpoint in the next worker.
    os._exit(0)


class WorkerKeeper:
    """Keeps a worker process running beside this one.

    Args:
        queue: Whose jobs it does.
    """

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the worker, and again whenever it ends."""
        threading.Thread(target=self._keep, name="worker-keeper", daemon=True).start()

    def stop(self) -> None:
        """End the worker; its job goes on from a checkpoint next time."""
        self._over.set()
        if self._process is not None:
            self._process.terminate()

    def _keep(self) -> None:
        while not self._over.is_set():
            command = [sys.executable, "-m", "label_studio_segagent.cli", "worker", "--parent", str(os.getpid())]
            self._process = subprocess.Popen(command)
            code = self._process.wait()
            if not self._over.is_set():
                log.warning("the worker ended with code %s; another one starts in %g s", code, _RESTART)
                self._queue.revive(worker_name(self._process.pid))
            self._over.wait(_RESTART)
