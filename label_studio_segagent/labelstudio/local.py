"""A real Label Studio on this machine, headless: for the demo, for trying things out, and for end-to-end tests."""

from __future__ import annotations

import mimetypes
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from ..errors import ApiError, ConfigError
from .client import LabelStudioClient

__all__ = ["LABEL_STUDIO_VERSION", "LocalLabelStudio", "find_label_studio", "free_port", "install_label_studio"]

LABEL_STUDIO_VERSION = "1.23.2"
_LOCK = Path(__file__).with_name("label-studio.txt")
"""Exact versions of what comes with it, as tested; Python 3.10 cannot have all of them."""


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_label_studio(venv: Path) -> Path | None:
    """The `label-studio` program that SEGAGENT_LABEL_STUDIO_BIN names, or the one in `venv`, or None.

    Raises:
        ConfigError: SEGAGENT_LABEL_STUDIO_BIN names a file that does not exist.
    """
    named = os.environ.get("SEGAGENT_LABEL_STUDIO_BIN")
    if named and not Path(named).exists():
        raise ConfigError(f"SEGAGENT_LABEL_STUDIO_BIN is {named!r}, which does not exist")
    path = Path(named) if named else venv / "bin" / "label-studio"
    return path if path.exists() else None


def install_label_studio(venv: Path) -> Path:
    """Install Label Studio (about 1 GB) into a virtual environment of its own and return the program.

    Raises:
        ConfigError: pip failed; the message has its last lines.
    """
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    pip += ["-c", str(_LOCK)] if sys.version_info >= (3, 11) else []
    pip += [f"label-studio=={LABEL_STUDIO_VERSION}"]
    for command in ([sys.executable, "-m", "venv", str(venv)], pip):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ConfigError(f"{' '.join(command)} failed:\n{done.stderr[-1500:]}")
    return venv / "bin" / "label-studio"


_FILES = 50
"""Files in one upload; Label Studio refuses more than a hundred."""


class LocalLabelStudio:
    """Starts Label Studio on the loopback interface with a user, a token and local ML backends allowed.

    Use as a context manager. Its data stays in `data_dir`, so that a later start finds its projects again.

    Args:
        program: The `label-studio` program.
        data_dir: Folder for database, uploads and log; made when missing.
        port: A free one by default.
        legacy_token: Whether the legacy API token works (off in a default Label Studio 1.23).
        environment: Further environment variables.

    Attributes:
        url: Where it answers.
        user: Login e-mail.
        password: Login password.
        token: The user's legacy API token.
        client: API client with that token.
    """

    user = "demo@example.com"

    def __init__(
        self,
        program: Path,
        data_dir: Path,
        port: int | None = None,
        *,
        legacy_token: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        # It is started in its data folder. Not resolved: a link into a virtual environment must stay one.
        self._program, self._data = program.absolute(), data_dir.absolute()
        data_dir.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.password, self.token = self._credentials()
        self.client = LabelStudioClient(self.url, self.token, timeout=300)
        self._legacy, self._environment = legacy_token, dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """Label Studio's log file."""
        return self._data / "label-studio.log"

    def _credentials(self) -> tuple[str, str]:
        """Password and token, made once for a data folder."""
        file = self._data / "credentials"
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(f"{secrets.token_urlsafe(9)}\n{secrets.token_hex(20)}\n")
        password, token = file.read_text().split()
        return password, token

    def start(self, timeout: float = 240.0, waiting: Callable[[], None] = lambda: None) -> LocalLabelStudio:
        """Start and wait until it answers; the very first start migrates a database, which takes about a minute.

        Args:
            timeout: Seconds to wait.
            waiting: Called about three times a second meanwhile.

        Raises:
            ConfigError: It stopped or did not answer in time; the message has the end of its log.
        """
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("LABEL_STUDIO_", "SEGAGENT_"))}
        environment |= {
            "LABEL_STUDIO_BASE_DATA_DIR": str(self._data),
            "LABEL_STUDIO_HOST": self.url,
            "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
            "COLLECT_ANALYTICS": "false",
            "LATEST_VERSION_CHECK": "false",
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
            # 1.23 refuses ML backends and webhooks on private addresses unless both are off.
            "ML_BLOCK_LOCAL_IP": "false",
            "SSRF_PROTECTION_ENABLED": "false",
        }
        command = [
            str(self._program), "start", "--no-browser", "--port", str(self.port), "--internal-host", "127.0.0.1",
            "--username", self.user, "--password", self.password, "--user-token", self.token,
        ]  # fmt: skip
        if self._legacy:
            command.append("--enable-legacy-api-token")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=environment | self._environment,
                cwd=self._data,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                if httpx.get(self.url + "/health", timeout=2).status_code == 200:
                    return self
            except httpx.HTTPError:
                pass
            waiting()
            time.sleep(0.3)
        self.stop()
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        raise ConfigError(f"Label Studio did not start within {timeout:g} seconds; the end of {self.log}:\n{tail}")

    def stop(self) -> None:
        """Stop it; only the process started here and its children are signalled."""
        process, self._process = self._process, None
        self.client.close()
        if process is None:
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(8)
                return
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                return

    def wait(self) -> None:
        """Wait until it stops."""
        if self._process is not None:
            self._process.wait()

    def __enter__(self) -> LocalLabelStudio:
        """Start it."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def create_project(self, title: str, label_config: str, **fields: Any) -> int:
        """Create a project and return its id."""
        body = {"title": title, "label_config": label_config, **fields}
        return int(self.client.call("POST", "/api/projects/", body)["id"])

    def import_files(self, project: int, paths: Sequence[Path]) -> list[int]:
        """Upload image files, one task each, and return the task ids in order."""
        url, tasks = f"{self.url}/api/projects/{project}/import", []
        for start in range(0, len(paths), _FILES):
            opened = [
                (f"file{i}", (path.name, path.read_bytes(), mimetypes.guess_type(path.name)[0] or "image/jpeg"))
                for i, path in enumerate(paths[start : start + _FILES])
            ]
            try:
                response = self.client.http.post(url, files=opened, params={"return_task_ids": "true"}, timeout=300)
            except httpx.HTTPError as error:
                raise ApiError(f"Label Studio did not take the images: {error}") from error
            if response.status_code >= 400:
                raise ApiError(f"Label Studio did not take the images: {response.text[:300]}", response.status_code)
            tasks += [int(task) for task in response.json()["task_ids"]]
        return tasks

    def connect_backend(self, project: int, url: str, title: str, auth: tuple[str, str] | None = None) -> int:
        """Add an ML backend to a project and return its id.

        Label Studio makes its title the project's model version: give the backend's version, so that the score column
        of the Data Manager is filled.
        """
        body: dict[str, Any] = {"project": project, "url": url, "title": title, "is_interactive": True}
        if auth:
            body |= {"auth_method": "BASIC_AUTH", "basic_auth_user": auth[0], "basic_auth_pass": auth[1]}
        return int(self.client.call("POST", "/api/ml", body)["id"])

    def retrieve_predictions(self, project: int, tasks: Sequence[int] | None = None) -> None:
        """The Data Manager's action "Retrieve Predictions", for some tasks or all."""
        selected = {"all": True, "excluded": []} if tasks is None else {"all": False, "included": list(tasks)}
        body = {"selectedItems": selected, "project": str(project), "ordering": []}
        body["filters"] = {"conjunction": "and", "items": []}
        self.client.call("POST", "/api/dm/actions", body, id="retrieve_tasks_predictions", project=project)

    def predictions(self, project: int) -> list[dict[str, Any]]:
        """All predictions of a project."""
        return list(self.client.call("GET", "/api/predictions/", project=project))

    def create_personal_access_token(self) -> str:
        """A new personal access token of the user, made in a logged-in session as a person would."""
        with httpx.Client(base_url=self.url, timeout=60, follow_redirects=True) as session:
            page = session.get("/user/login/").text
            found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
            form = {"csrfmiddlewaretoken": found[1] if found else "", "email": self.user, "password": self.password}
            session.post("/user/login/", data=form, headers={"Referer": self.url + "/user/login/"})
            headers = {"X-CSRFToken": session.cookies.get("csrftoken") or "", "Referer": self.url}
            response = session.post("/api/token/", json={}, headers=headers)
            response.raise_for_status()
            return str(response.json()["token"])


if __name__ == "__main__":
    install_label_studio(Path(sys.argv[1]))
