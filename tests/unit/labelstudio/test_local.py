from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from label_studio_segagent.errors import ConfigError
from label_studio_segagent.labelstudio import local
from label_studio_segagent.labelstudio.local import (
    LocalLabelStudio,
    find_label_studio,
    free_port,
    install_label_studio,
)

# Stand-ins for the `label-studio` program; the real one is started by tests/e2e.
HEALTHY = """
import http.server, json, os, sys
with open("started.json", "w") as file:
    json.dump({"arguments": sys.argv[1:], "environment": dict(os.environ), "cwd": os.getcwd()}, file)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *a):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""
FAILING = "import sys; print('database is broken'); sys.exit(3)"
SILENT = "import time; print('thinking'); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + SILENT


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """`program(code)`: an executable that runs this Python code."""

    def make(code: str) -> Path:
        path = tmp_path / "label-studio"
        path.write_text(f"#!{sys.executable}\n{code}")
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def studio(web: Any, tmp_path: Path) -> Iterator[LocalLabelStudio]:
    """One that talks to a stand-in of Label Studio's API."""
    studio = LocalLabelStudio(Path("unused"), tmp_path / "data", web.port)
    yield studio
    studio.stop()


def test_free_port() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


def test_finding_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGAGENT_LABEL_STUDIO_BIN", raising=False)
    assert find_label_studio(tmp_path) is None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "label-studio").touch()
    assert find_label_studio(tmp_path) == tmp_path / "bin" / "label-studio"
    monkeypatch.setenv("SEGAGENT_LABEL_STUDIO_BIN", str(tmp_path / "elsewhere"))
    with pytest.raises(ConfigError, match="elsewhere"):  # what is named counts, and it is not there
        find_label_studio(tmp_path)
    (tmp_path / "elsewhere").touch()
    assert find_label_studio(tmp_path) == tmp_path / "elsewhere"


def test_an_install_that_fails_shows_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no matching distribution")

    monkeypatch.setattr(local.subprocess, "run", run)
    with pytest.raises(ConfigError, match="-m venv .* failed:\nERROR: no matching distribution"):
        install_label_studio(tmp_path)


def test_an_install_takes_the_tested_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(local.subprocess, "run", run)
    assert install_label_studio(tmp_path) == tmp_path / "bin" / "label-studio"
    assert commands[1][-1] == f"label-studio=={local.LABEL_STUDIO_VERSION}"
    assert commands[1][0] == str(tmp_path / "bin" / "python")
    lock = Path(local.__file__).with_name("label-studio.txt")
    if sys.version_info >= (3, 11):
        assert commands[1][commands[1].index("-c") + 1] == str(lock)
    assert f"label-studio=={local.LABEL_STUDIO_VERSION}\n" in lock.read_text("utf-8")


def test_start_and_stop(program: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "not for it")
    monkeypatch.setenv("SEGAGENT_PORT", "1")
    with LocalLabelStudio(program(HEALTHY), tmp_path / "data", environment={"EXTRA": "1"}) as studio:
        process = studio._process
        assert process is not None and process.poll() is None
        seen = json.loads((tmp_path / "data" / "started.json").read_text())
    assert process.poll() is not None
    arguments, environment = seen["arguments"], seen["environment"]
    assert arguments[:2] == ["start", "--no-browser"] and "--enable-legacy-api-token" in arguments
    assert arguments[arguments.index("--internal-host") + 1] == "127.0.0.1"  # never on the network
    assert environment["SSRF_PROTECTION_ENABLED"] == environment["ML_BLOCK_LOCAL_IP"] == "false"
    assert environment["COLLECT_ANALYTICS"] == environment["LATEST_VERSION_CHECK"] == "false"
    assert environment["EXTRA"] == "1" and environment["LABEL_STUDIO_HOST"] == studio.url
    assert "LABEL_STUDIO_API_KEY" not in environment and "SEGAGENT_PORT" not in environment


def test_the_legacy_token_can_stay_off(program: Callable[[str], Path], tmp_path: Path) -> None:
    import json

    with LocalLabelStudio(program(HEALTHY), tmp_path / "data", legacy_token=False):
        pass
    arguments = json.loads((tmp_path / "data" / "started.json").read_text())["arguments"]
    assert "--enable-legacy-api-token" not in arguments


def test_a_program_that_ends_shows_its_log(program: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did not start.*label-studio.log:\ndatabase is broken"):
        LocalLabelStudio(program(FAILING), tmp_path / "data").start()


def test_a_program_that_never_answers_is_stopped(program: Callable[[str], Path], tmp_path: Path) -> None:
    calls: list[None] = []
    studio = LocalLabelStudio(program(SILENT), tmp_path / "data")
    with pytest.raises(ConfigError, match="within 1 seconds.*(\n.*)?"):
        studio.start(timeout=1, waiting=lambda: calls.append(None))
    assert calls and studio._process is None


def test_a_program_that_ignores_the_first_signal_gets_the_next(
    program: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = LocalLabelStudio(program(STUBBORN), tmp_path / "data")
    monkeypatch.setattr(studio, "stop", lambda: None)
    with pytest.raises(ConfigError):
        studio.start(timeout=1.5)
    monkeypatch.undo()
    process = studio._process
    assert process is not None and process.poll() is None
    wait = process.wait
    monkeypatch.setattr(process, "wait", lambda timeout: wait(min(timeout, 0.5)))
    start = time.monotonic()
    studio.stop()
    assert process.poll() is not None and time.monotonic() - start < 5
    studio.stop()  # twice does no harm


def test_credentials_stay_with_the_data_and_are_private(tmp_path: Path) -> None:
    one, two = (LocalLabelStudio(Path("unused"), tmp_path / "data") for _ in range(2))
    other = LocalLabelStudio(Path("unused"), tmp_path / "other")
    assert (one.password, one.token) == (two.password, two.token) != (other.password, other.token)
    assert len(one.token) == 40 and len(one.password) >= 8
    assert os.stat(tmp_path / "data" / "credentials").st_mode & 0o077 == 0
    for studio in (one, two, other):
        studio.stop()


def test_a_project(studio: LocalLabelStudio, web: Any) -> None:
    web.routes["/api/projects/"] = {"id": 7}
    assert studio.create_project("Title", "<View/>", show_instruction=True) == 7
    assert web.asked[0].json == {"title": "Title", "label_config": "<View/>", "show_instruction": True}
    assert web.asked[0].token == f"Token {studio.token}"


def test_files_are_uploaded_with_names_and_types(studio: LocalLabelStudio, web: Any, tmp_path: Path) -> None:
    web.routes["/api/projects/7/import"] = {"task_ids": [3, 4]}
    for name in ("a.png", "b.unknown"):
        (tmp_path / name).write_bytes(name.encode() * 3)
    assert studio.import_files(7, [tmp_path / "a.png", tmp_path / "b.unknown"]) == [3, 4]
    (asked,) = web.asked
    assert asked.query == "return_task_ids=true"
    assert b'filename="a.png"\r\nContent-Type: image/png\r\n\r\na.pnga.pnga.png' in asked.body
    assert b'filename="b.unknown"\r\nContent-Type: image/jpeg' in asked.body


@pytest.mark.parametrize("auth", [None, ("user", "word")])
def test_a_backend(studio: LocalLabelStudio, web: Any, auth: tuple[str, str] | None) -> None:
    web.routes["/api/ml"] = {"id": 5}
    assert studio.connect_backend(7, "http://127.0.0.1:9090", "v1", auth) == 5
    expected: dict[str, Any] = {"project": 7, "url": "http://127.0.0.1:9090", "title": "v1", "is_interactive": True}
    if auth:
        expected |= {"auth_method": "BASIC_AUTH", "basic_auth_user": "user", "basic_auth_pass": "word"}
    assert web.asked[0].json == expected


def test_retrieving_predictions(studio: LocalLabelStudio, web: Any) -> None:
    web.routes["/api/dm/actions"] = {"processed_items": 2}
    studio.retrieve_predictions(7)
    studio.retrieve_predictions(7, [1, 2])
    assert [request.json["selectedItems"] for request in web.asked] == [
        {"all": True, "excluded": []},
        {"all": False, "included": [1, 2]},
    ]
    assert {request.query for request in web.asked} == {"id=retrieve_tasks_predictions&project=7"}


def test_predictions(studio: LocalLabelStudio, web: Any) -> None:
    web.routes["/api/predictions/"] = [{"id": 1}]
    assert studio.predictions(7) == [{"id": 1}] and web.asked[0].query == "project=7"


def test_a_personal_access_token_is_made_in_a_session(studio: LocalLabelStudio, web: Any, web_answer: Any) -> None:
    def login(request: Any) -> Any:
        page = b'<input name="csrfmiddlewaretoken" value="form-token">'
        return web_answer(page, 200, {"Set-Cookie": "csrftoken=cookie-token; Path=/"})

    web.routes |= {"/user/login/": login, "/api/token/": {"token": "a.b.c"}}
    assert studio.create_personal_access_token() == "a.b.c"
    assert b"csrfmiddlewaretoken=form-token" in web.asked[1].body and b"email=demo%40example.com" in web.asked[1].body
    assert web.asked[2].headers["x-csrftoken"] == "cookie-token" and web.asked[2].token is None
