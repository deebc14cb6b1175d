"""SQLite files of the server: what to say of damaged ones, and how the server starts in spite of them."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..errors import ConfigError

__all__ = ["complaint", "is_damaged", "open_soundly"]

log = logging.getLogger(__name__)
T = TypeVar("T")


def is_damaged(error: BaseException | None) -> bool:
    """Whether an error of SQLite says that the file is damaged, or no database at all."""
    return type(error) is sqlite3.DatabaseError  # what is out of order around the file has classes of its own


def complaint(name: str, path: Path, error: BaseException) -> str:
    """Why a file cannot be used, and what to do about it."""
    if is_damaged(error):
        return (
            f"{name} {path} is damaged ({error}); restart the server, which puts it aside and makes a new one (all "
            "annotations are in Label Studio: the button Start Training learns from them)"
        )
    return f"{name} {path} cannot be used: {error}; make its folder writable, or set SEGAGENT_DATA_DIR"


def open_soundly(path: Path, opener: Callable[[], T]) -> T:
    """Open a file; one that is damaged is put aside first, and a new one is made.

    Args:
        path: The file.
        opener: Opens it, with a `ConfigError` caused by SQLite's error where it cannot.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        return opener()
    except ConfigError as error:
        if not is_damaged(error.__cause__):
            raise
        aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        for end in ("", "-wal", "-shm"):
            part = path.with_name(path.name + end)
            if part.exists():
                part.rename(aside.with_name(aside.name + end))
        log.error("%s was damaged (%s): it is %s now, and there is a new one", path, error.__cause__, aside.name)
        return opener()
