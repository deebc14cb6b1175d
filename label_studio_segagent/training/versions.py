"""Model versions of projects: trained, promoted when they are no worse, rolled back when people say so.

    models/<project>/<version>/version.json     what it is and how good
                               …                its weights
    models/<project>/current.json               which version serves, and which ones did before

A version appears by the renaming of its finished folder and serves by the replacement of one small file: after a crash
there is never half a version.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, InputError
from ..processes import alone

__all__ = ["Version", "VersionStore"]

_HERE = "{folder}"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Version:
    """One trained model of a project.

    Attributes:
        name: The agent's version string, as Label Studio shows it.
        policy: As `load_policy` takes it; `{folder}` stands for the version's folder.
        start: The policy and the segmenter (their own version strings) that it was trained from and works with.
        created: Unix time in seconds.
        report: What training and the gate found, anything JSON can hold.
    """

    name: str
    policy: str
    start: tuple[str, str]
    created: float = 0.0
    report: Mapping[str, Any] = field(default_factory=dict)


class VersionStore:
    """The versions of all projects in a folder. Safe under processes: readers see the old or the new state.

    Those that change something wait for each other.

    Args:
        folder: Made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def projects(self) -> list[int]:
        """Projects that have versions."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(int(path.name) for path in found if path.name.isdecimal())

    def versions(self, project: int) -> list[Version]:
        """The trained versions of a project, oldest first; folders that are no version are passed over."""
        home = self._home(project)
        folders = [path for path in home.iterdir() if _NAME.fullmatch(path.name)] if home.is_dir() else []
        found = [_read(path / "version.json") for path in folders]
        return sorted((v for v in found if v is not None), key=lambda v: v.created)

    def folder_of(self, project: int, name: str) -> Path:
        """The folder of a version.

        Raises:
            InputError: There is no such version.
        """
        folder = self._home(project) / name
        if not _NAME.fullmatch(name) or not self._is_there(project, name):
            known = ", ".join(v.name for v in self.versions(project)) or "none"
            raise InputError(f"project {project} has no version {name!r}; it has: {known}")
        return folder

    def policy_of(self, project: int, version: Version) -> str:
        """A version's policy, as `load_policy` takes it."""
        return version.policy.replace(_HERE, str(self._home(project) / version.name))

    def current(self, project: int) -> str | None:
        """The name of the version that serves a project; None for the model that the settings name."""
        history = self._history(project)
        return history[-1] if history else None

    def stamp(self, project: int) -> int:
        """Changes whenever another version is made current. Costs one stat."""
        try:
            return (self._home(project) / "current.json").stat().st_mtime_ns
        except OSError:
            return 0

    def workplace(self, project: int) -> Path:
        """The folder in which the next version is made; what an interrupted training left is there."""
        folder = self._home(project) / ".training"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def add(self, project: int, version: Version, *, promote: bool = False) -> Version:
        """Turn the workplace into a version.

        Args:
            project: Project id.
            version: Its `policy` names files in the workplace, `created` is filled in.
            promote: Let it serve the project at once.

        Returns:
            The version as stored. One of the same name, which has the same weights, is replaced.
        """
        if not _NAME.fullmatch(version.name):
            raise InputError(f"{version.name!r} cannot be the name of a version")
        work, home = self.workplace(project), self._home(project)
        fields = asdict(version) | {
            "policy": version.policy.replace(str(work), _HERE), "created": version.created or time.time(),
        }  # fmt: skip
        _write(work / "version.json", fields)
        target = home / version.name
        with self._changing(project):
            if target.exists():
                _discard(target)
            work.rename(target)
            _sync(home)
            if promote:
                self._remember(project, [*self._history(project), version.name])
        stored = _read(target / "version.json")
        assert stored is not None
        return stored

    def promote(self, project: int, name: str | None) -> None:
        """Let a version serve a project; None for the model that the settings name.

        Raises:
            InputError: There is no such version.
        """
        with self._changing(project):
            if name is not None:
                self.folder_of(project, name)
            self._remember(project, [*self._history(project), name])

    def rollback(self, project: int) -> str | None:
        """Let the version serve that did before the current one; returns its name.

        Raises:
            InputError: None did.
        """
        with self._changing(project):
            history = self._history(project)
            if not history:
                raise InputError(f"project {project} has had no other version than the model that the settings name")
            before = history[:-1]
            while before and before[-1] is not None and not self._is_there(project, before[-1]):
                before.pop()  # pruned since
            self._remember(project, before)
            return before[-1] if before else None

    def prune(self, project: int, keep: int) -> list[str]:
        """Delete all versions but the newest `keep` and the current one; returns the names of the deleted ones."""
        with self._changing(project):
            current, versions = self.current(project), self.versions(project)
            doomed = [v.name for v in versions[: max(len(versions) - keep, 0)] if v.name != current]
            for name in doomed:
                _discard(self._home(project) / name)
            return doomed

    def _home(self, project: int) -> Path:
        return self.folder / str(int(project))

    def _is_there(self, project: int, name: str) -> bool:
        return (self._home(project) / name / "version.json").is_file()

    def _changing(self, project: int) -> AbstractContextManager[None]:
        return alone(self._home(project) / ".changing")

    def _history(self, project: int) -> list[str | None]:
        path = self._home(project) / "current.json"
        try:
            names = json.loads(path.read_text("utf-8"))["history"]
            if not isinstance(names, list):
                raise ValueError(f"its history is {str(names)[:40]!r}")
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{path} cannot be read ({type(error).__name__}: {error}); delete it: the settings' models serve "
                f"project {project} then, until segagent models promote names a version"
            ) from error
        return [name if name is None else str(name) for name in names]

    def _remember(self, project: int, history: Sequence[str | None]) -> None:
        _write(self._home(project) / "current.json", {"history": list(history[-50:])})


def _read(path: Path) -> Version | None:
    try:
        fields = json.loads(path.read_text("utf-8"))
        start = tuple(map(str, fields["start"]))
        created, report = float(fields["created"]), dict(fields["report"])
        return Version(path.parent.name, str(fields["policy"]), (start[0], start[1]), created, report)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _discard(folder: Path) -> None:
    """Delete a version; a crash on the way leaves none of it where versions are, but perhaps a hidden folder."""
    doomed = folder.with_name(f".gone-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _write(path: Path, fields: Mapping[str, Any]) -> None:
    """Replace a file, all or nothing, also across a power cut."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(fields, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
