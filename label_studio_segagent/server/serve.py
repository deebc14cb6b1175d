"""Gunicorn around the app: one process, so that models are loaded once, and threads; and a worker beside it."""

from __future__ import annotations

import logging
import os
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import AppImportError
from typing_extensions import override

from ..errors import SegAgentError
from .app import create_app
from .dispatcher import start_background
from .settings import Settings

__all__ = ["run"]


class _Gunicorn(BaseApplication):
    """Gunicorn configured from our settings instead of its command line."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    @override
    def load_config(self) -> None:
        options: dict[str, Any] = {
            "bind": f"{self._settings.host}:{self._settings.port}",
            "workers": 1,
            "worker_class": "gthread",
            "threads": self._settings.threads,
            # A long prediction is not a dead worker: with threads the heartbeat goes on.
            "timeout": 120,
            "graceful_timeout": 30,
            "keepalive": 75,
            "loglevel": self._settings.log_level.lower(),
            "proc_name": "segagent",
            "control_socket_disable": True,
        }
        for name, value in options.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    @override
    def load(self) -> Any:
        try:
            app = create_app(self._settings)
            start_background(self._settings)
            return app
        except SegAgentError as error:  # gunicorn prints the message of this one, without a traceback
            raise AppImportError(f"Error: {error}") from error


def run(settings: Settings) -> None:
    """Serve until stopped.

    Raises:
        SystemExit: When gunicorn stops, with its exit code; 1 when the app cannot be built.
    """
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=settings.log_level, format=form, force=True)  # the command line has set up its own
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log every image URL
    # OpenMP's threads spin while they wait, which makes concurrent predictions ten times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parent = os.getpid()
    try:
        _Gunicorn(settings).run()
    except SystemExit as stop:  # in a worker too: it is a fork of this process, and its code tells gunicorn what failed
        if stop.code == Arbiter.APP_LOAD_ERROR and os.getpid() == parent:
            raise SystemExit(1) from None
        raise
