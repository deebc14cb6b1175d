"""What the unit tests of server, client and command line share: small real HTTP servers, and a clean environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import certifi
import pytest


@dataclass
class Asked:
    """A request that reached a server."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization")

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """What a server answers: a body, or pieces that are sent one by one."""

    body: bytes | Iterator[bytes] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Web:
    """A real HTTP server on the loopback interface. `routes` maps paths to answers or to functions of the request."""

    port: int
    routes: dict[str, Any] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def paths(self) -> list[str]:
        return [request.path for request in self.asked]

    def answer(self, request: Asked) -> Answer:
        self.asked.append(request)
        found = self.routes.get(request.path, Answer(b"not found", 404))
        found = found(request) if callable(found) else found
        if isinstance(found, Answer):
            return found
        if isinstance(found, bytes):
            return Answer(found)
        return Answer(json.dumps(found).encode(), headers={"Content-Type": "application/json"})


def _handler(web: Web) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, _, query = self.path.partition("?")
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = web.answer(Asked(self.command, path, query, headers, body))
            try:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                for piece in [answer.body] if isinstance(answer.body, bytes) else answer.body:
                    self.wfile.write(piece)
                    self.wfile.flush()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client had enough

        do_GET = do_HEAD = do_POST = do_PATCH = do_DELETE = _handle

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@pytest.fixture
def serve_web() -> Iterator[Callable[..., Web]]:
    """Starts HTTP servers: `serve_web({"/path": answer, …})`, where an answer is JSON data, bytes, or `web_answer`."""
    servers: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(routes: dict[str, Any] | None = None) -> Web:
        web = Web(0)
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(web))
        web.port = server.server_port
        web.routes.update(routes or {})
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        servers.append((server, thread))
        return web

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def web(serve_web: Callable[..., Web]) -> Web:
    """One HTTP server without routes."""
    return serve_web()


@pytest.fixture
def web_answer() -> type[Answer]:
    """`web_answer(body, status, headers)`."""
    return Answer


@pytest.fixture(scope="session", autouse=True)
def _one_certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Reading all certificates for every HTTP client takes longer than most of these tests; none of them uses TLS."""
    end = "-----END CERTIFICATE-----\n"
    file = tmp_path_factory.mktemp("tls") / "one.pem"
    file.write_text(Path(certifi.where()).read_text("utf-8").partition(end)[0] + end, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(file))
        yield


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings from this machine: no variables of ours, and an empty working directory without `.env`."""
    for name in os.environ:
        if name.startswith(("SEGAGENT_", "LABEL_STUDIO_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def start_command() -> Callable[[Sequence[str]], subprocess.Popen[str]]:
    """`start_command([program, …])`: a process that Ctrl+C (SIGINT) stops, as it would at a terminal.

    Tests in the background of a script inherit that SIGINT is ignored.
    """

    def start(command: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    return start
