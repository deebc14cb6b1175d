"""How fast /health, /setup and /webhook answer, idle and while predictions run: `python benchmarks/server.py`.

Starts a real `segagent serve` process. Label Studio calls these inside the annotator's own requests, and gives up on
/health and /webhook after one second, so the goal is 50 ms, with the event written to the inbox, whatever else runs.

Every request opens a connection of its own, as Label Studio's webhooks do. Figures from a busy machine are noisy: the
load average is printed and written beside them.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import platform
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from label_studio_segagent.demo import demo_config, demo_photos
from label_studio_segagent.errors import ConfigError
from label_studio_segagent.labelstudio.local import free_port

GOAL_MS = 50.0
console = Console()


def call(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes, float]:
    """Status, body and milliseconds of one request on a new connection."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request(method, path, body or None, {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        return response.status, data, (time.perf_counter() - start) * 1000
    finally:
        connection.close()


def annotation_event(size: int) -> bytes:
    """An ANNOTATION_CREATED webhook with a brush mask, of about `size` bytes."""
    values = random.Random(0)
    rle = [values.randrange(256) for _ in range(size * 100 // 457)]  # a number and ", " take 4.57 bytes on average
    region = {"id": "r1", "type": "brushlabels", "value": {"format": "rle", "rle": rle, "brushlabels": ["cat"]}}
    annotation = {"id": 1, "task": 1, "project": 1, "result": [region], "was_cancelled": False}
    event = {"action": "ANNOTATION_CREATED", "annotation": annotation, "task": {"id": 1}, "project": {"id": 1}}
    return json.dumps(event).encode()


def prediction_request(photos: int) -> bytes:
    """A /predict batch with demo photographs as data: URIs."""
    chosen = demo_photos()[:photos]
    labels = list(dict.fromkeys(label for photo in chosen for label in photo.masks))
    uris = [f"data:image/jpeg;base64,{base64.b64encode(photo.path.read_bytes()).decode()}" for photo in chosen]
    tasks = [{"id": i, "data": {"image": uri}} for i, uri in enumerate(uris, 1)]
    return json.dumps({"tasks": tasks, "label_config": demo_config(labels), "params": {"context": None}}).encode()


class Load:
    """Clients that predict without a pause, until the block ends.

    Args:
        port: Of the server.
        clients: How many.
        body: The request each sends again and again.
    """

    def __init__(self, port: int, clients: int, body: bytes) -> None:
        self._port, self._body, self._stop = port, body, threading.Event()
        self._threads = [threading.Thread(target=self._predict) for _ in range(clients)]
        self.statuses: list[int] = []

    def _predict(self) -> None:
        while not self._stop.is_set():
            self.statuses.append(call(self._port, "POST", "/predict", self._body)[0])

    def __enter__(self) -> Load:
        """Start, and wait until predictions run."""
        for thread in self._threads:
            thread.start()
        time.sleep(1 if self._threads else 0)
        return self

    def __exit__(self, *_: object) -> None:
        """Let the predictions that run come to their end."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


def measure(port: int, requests: int, event: bytes, pause: float) -> dict[str, dict[str, float]]:
    """Milliseconds for each endpoint; the three take turns, so that all meet the same load."""
    times: dict[str, list[float]] = {"/health": [], "/setup": [], "/webhook": []}
    setup = json.dumps({"project": "1.1795382579", "schema": "<View/>", "hostname": "", "access_token": ""}).encode()
    bodies = {"/health": ("GET", b"", 200), "/setup": ("POST", setup, 200), "/webhook": ("POST", event, 201)}
    for _ in range(requests):
        for path, (method, body, expected) in bodies.items():
            status, answer, milliseconds = call(port, method, path, body)
            if status != expected:
                raise SystemExit(f"{path} answered {status}: {answer[:200]!r}")
            times[path].append(milliseconds)
            time.sleep(pause)
    return {path: summary(values) for path, values in times.items()}


def summary(values: list[float]) -> dict[str, float]:
    """p50, p95 and the largest of some milliseconds."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49], 2), "p95": round(cuts[94], 2), "max": round(max(values), 2)}


def start_server(folder: Path, **settings: str) -> tuple[subprocess.Popen[bytes], int]:
    """`segagent serve` on a free port, answering; settings as environment variables."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LABEL_STUDIO_")}
    environment |= {"SEGAGENT_HOST": "127.0.0.1", "SEGAGENT_PORT": str(port), "SEGAGENT_DATA_DIR": str(folder)}
    environment |= settings
    log = folder / "server.log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "label_studio_segagent.cli", "serve"]
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=file, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if call(port, "GET", "/health")[0] == 200:
                return process, port
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise ConfigError(f"the server did not start:\n{log.read_text(errors='replace')[-1500:]}")


def run(requests: int, clients: int, photos: int, pause: float) -> dict[str, Any]:
    """Measure idle and under load."""
    event, body = annotation_event(200_000), prediction_request(photos)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process, port = start_server(folder)
        try:
            load_before = os.getloadavg()[0]
            measure(port, 5, event, pause)  # the first requests of a process are slower
            idle = measure(port, requests, event, pause)
            with Load(port, clients, body) as load:
                started = time.perf_counter()
                busy = measure(port, requests, event, pause)
                seconds = time.perf_counter() - started
            version = json.loads(call(port, "POST", "/setup", b"{}")[1])["model_version"]
        finally:
            process.terminate()
            process.wait(60)
        with sqlite3.connect(folder / "inbox.sqlite3") as database:
            (stored,) = database.execute("SELECT COUNT(*) FROM events WHERE length(body) = ?", (len(event),)).fetchone()
        database.close()
    if stored != 5 + 2 * requests:
        raise SystemExit(f"{5 + 2 * requests} webhooks were acknowledged, but the inbox has {stored}")
    if clients and set(load.statuses) != {200}:
        raise SystemExit(f"predictions answered {sorted(set(load.statuses))}")
    return {
        "model_version": version,
        "requests": requests,
        "webhook_bytes": len(event),
        "prediction_clients": clients,
        "tasks_per_prediction": photos,
        "predictions": len(load.statuses),
        "seconds_under_load": round(seconds, 1),
        "milliseconds": {"idle": idle, "predicting": busy},
        "goal_ms": GOAL_MS,
        "cpus": os.cpu_count(),
        "load_average_before": round(load_before, 2),
        "python": platform.python_version(),
    }


def show(result: dict[str, Any]) -> None:
    table = Table("endpoint", "state", "p50 ms", "p95 ms", "max ms", f"under {GOAL_MS:g} ms", title="Server latency")
    for state, paths in result["milliseconds"].items():
        for path, times in paths.items():
            met = "all" if times["max"] < GOAL_MS else "p95" if times["p95"] < GOAL_MS else "[red]no[/]"
            table.add_row(path, state, *(f"{times[key]:.1f}" for key in ("p50", "p95", "max")), met)
    console.print(table)
    console.print(
        f"{result['requests']} requests each; webhooks of {result['webhook_bytes']} bytes, all found in the inbox; "
        f"{result['predictions']} predictions by {result['prediction_clients']} clients meanwhile. "
        f"{result['cpus']} CPUs, load average {result['load_average_before']} before: other work makes this noisy."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--requests", type=int, default=200, help="requests to each endpoint in each state")
    parser.add_argument("--clients", type=int, default=2, help="clients that predict meanwhile")
    parser.add_argument("--photos", type=int, default=4, help="photographs in each prediction")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between two requests")
    options = parser.parse_args()
    try:
        result = run(options.requests, options.clients, options.photos, options.pause)
    except ConfigError as error:
        raise SystemExit(f"Error: {error}") from error
    show(result)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
        console.print(f"Written to {options.json}.")


if __name__ == "__main__":
    main()
