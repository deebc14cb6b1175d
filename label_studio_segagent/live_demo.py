"""The demo in a real Label Studio: installed, started, filled with the demo photographs, connected to our backend."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
from rich.console import Console

from .demo import demo_config, demo_photos
from .errors import ConfigError
from .labelstudio.client import LabelStudioClient
from .labelstudio.local import LocalLabelStudio, find_label_studio, free_port, install_label_studio
from .labelstudio.tasks import iterate_tasks
from .server.settings import Settings

__all__ = ["run_live_demo", "start_backend"]

_TITLE = "SegAgent demo"
_CONFIG = """<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="brush" toName="image" smart="true" value="$labels"/>
  <KeyPointLabels name="point" toName="image" smart="true" smartOnly="true" value="$labels"/>
  <RectangleLabels name="box" toName="image" smart="true" smartOnly="true" value="$labels"/>
</View>"""


def start_backend(label_studio: LocalLabelStudio, folder: Path, **settings: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start `segagent serve` for a Label Studio, in a process of its own, and wait until it answers.

    Args:
        label_studio: A started one.
        folder: For the backend's data and its log `backend.log`.
        **settings: Further environment variables.

    Returns:
        The process and its URL.

    Raises:
        ConfigError: It did not start; the message has the end of its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = os.environ | {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.token,
        "SEGAGENT_HOST": "127.0.0.1",
        "SEGAGENT_PORT": str(port),
        "SEGAGENT_DATA_DIR": str(folder.resolve()),
    }
    log = folder / "backend.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "label_studio_segagent.cli", "serve"],
            env=environment | settings,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return process, url
        except httpx.HTTPError:
            time.sleep(0.2)
    process.kill()
    raise ConfigError(f"the backend did not start; the end of {log}:\n{log.read_text(errors='replace')[-1500:]}")


def run_live_demo(out: Path, console: Console, settings: Settings) -> None:
    """Install and start Label Studio, fill a project, retrieve predictions, print where to look, and wait.

    Args:
        out: Folder for the virtual environment, Label Studio's data and the backend's data.
        settings: Which models the backend uses.
        console: Where to say what happens.

    Raises:
        ConfigError: Something could not be installed or started.
    """
    folder = out / "label-studio"
    program = find_label_studio(folder / "venv")
    if program is None:
        with console.status("Installing Label Studio (about 1 GB, a few minutes)…"):
            program = install_label_studio(folder / "venv")
    label_studio = LocalLabelStudio(program, folder / "data")
    with console.status("Starting Label Studio (the first time takes about a minute)…"):
        label_studio.start()
    backend = None
    try:
        with console.status("Starting the backend…"):
            # Nobody else reaches this backend, and the demo's Label Studio has no password for it.
            chosen = {"SEGAGENT_POLICY": settings.policy, "SEGAGENT_SEGMENTER": settings.segmenter}
            open_door = ("SEGAGENT_BASIC_AUTH_USER", "SEGAGENT_BASIC_AUTH_PASSWORD", "SEGAGENT_WEBHOOK_SECRET")
            backend, url = start_backend(label_studio, folder / "backend", **chosen, **dict.fromkeys(open_door, ""))
        project = _ready_project(label_studio, url, console)
        console.print(f"\n[bold green]Label Studio is ready:[/] {label_studio.url}/projects/{project}/data")
        console.print(f"  login     [b]{label_studio.user}[/]  password [b]{label_studio.password}[/]", highlight=False)
        console.print(f"  backend   {url} (log: {folder / 'backend' / 'backend.log'})", highlight=False)
        console.print(
            "  Open a task: the predictions are there. For smart tools turn on Auto-Annotation at the bottom."
        )
        console.print("Ctrl+C stops both.")
        label_studio.wait()
    finally:
        if backend is not None:
            backend.terminate()
            backend.wait(30)
        label_studio.stop()


def _ready_project(label_studio: LocalLabelStudio, url: str, console: Console) -> int:
    """The demo project, made on the first start, with its backend at `url` and all predictions there."""
    client = label_studio.client
    version = httpx.post(f"{url}/setup", json={}, timeout=120).json()["model_version"]
    found = client.call("GET", "/api/projects/", title=_TITLE)["results"]
    project = next((int(p["id"]) for p in found if p["title"] == _TITLE), 0) or _new_project(label_studio)
    for backend in client.call("GET", "/api/ml", project=project):  # an earlier start had another port
        client.call("DELETE", f"/api/ml/{backend['id']}")
    for hook in client.call("GET", "/api/webhooks/", project=project):  # Label Studio keeps those of deleted backends
        client.call("DELETE", f"/api/webhooks/{hook['id']}/")
    label_studio.connect_backend(project, url, version)
    client.call("PATCH", f"/api/projects/{project}/", {"model_version": version})
    missing = _without_prediction(client, project, version)
    with console.status("Retrieving predictions…"):
        while missing:
            label_studio.retrieve_predictions(project, missing)
            before, missing = missing, _without_prediction(client, project, version)
            if missing == before:  # nothing more to be had
                console.print(f"[yellow]No prediction for the tasks {missing}; the backend's log says why.[/]")
                break
    return project


def _new_project(label_studio: LocalLabelStudio) -> int:
    """A project with the demo photographs, each task with the labels of what is on it."""
    photos = demo_photos()
    # Label Studio takes no upload into an interface whose labels come from the task: that interface is set afterwards.
    project = label_studio.create_project(_TITLE, demo_config(["object"]))
    tasks = label_studio.import_files(project, [photo.path for photo in photos])
    for task, photo in zip(tasks, photos, strict=True):
        data = label_studio.client.call("GET", f"/api/tasks/{task}/")["data"]
        labels = [{"value": label} for label in photo.masks]
        label_studio.client.call("PATCH", f"/api/tasks/{task}/", {"data": {**data, "labels": labels}})
    label_studio.client.call("PATCH", f"/api/projects/{project}/", {"label_config": _CONFIG})
    return project


def _without_prediction(client: LabelStudioClient, project: int, version: str) -> list[int]:
    tasks = list(iterate_tasks(client, project))
    done = {
        p["task"] for p in client.call("GET", "/api/predictions/", project=project) if p["model_version"] == version
    }
    return [int(task["id"]) for task in tasks if task["id"] not in done]
