"""Kill -9 at random moments of webhooks and training, again and again: is anything lost, half done, or stuck?

SEGAGENT_LABEL_STUDIO_BIN=… python benchmarks/kills.py --kills 20 --out results.json

A real Label Studio, whose webhooks pass a door that notes which ones our server acknowledged; `segagent serve` with its
worker. While annotations are submitted and trainings run, the worker, the web process, or the whole server is killed.
After each restart: every acknowledged annotation is in the inbox; what is served is what the store says; every version
loads and is what its name, a content address, says; nothing that was killed lives on. In the end a training must see
all annotations there are. The exit code is 1 where one of these is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import torch
from PIL import Image as PilImage
from rich.console import Console
from rich.table import Table

from label_studio_segagent.errors import ApiError
from label_studio_segagent.hlmat.arrays import Image, Mask
from label_studio_segagent.labelstudio.config import LabelConfig
from label_studio_segagent.labelstudio.local import LocalLabelStudio, find_label_studio
from label_studio_segagent.labelstudio.regions import write_region
from label_studio_segagent.live_demo import start_backend
from label_studio_segagent.server.models import build_agent, version_store
from label_studio_segagent.server.settings import load_settings

REPOSITORY = Path(__file__).parents[1]
CONFIG = """<View><Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Gizmo"/></BrushLabels></View>"""
TARGETS = ("worker", "web process", "server")
console = Console(width=140)


def draw(number: int) -> tuple[Image, Mask]:
    """Discs on noise: the yellow one is a gizmo, the larger blue ones are not."""
    rng = np.random.default_rng(number)
    image, mask = rng.integers(0, 90, (120, 240, 3)).astype(np.uint8), np.zeros((120, 240), np.uint8)
    gizmo = int(rng.integers(4))
    for place in range(4):
        centre = (30 + 60 * place + int(rng.integers(-3, 4)), int(rng.integers(45, 75)))
        radius = int(rng.integers(12, 16)) if place == gizmo else int(rng.integers(18, 24))
        cv2.circle(image, centre, radius, (240, 200, 30) if place == gizmo else (40, 90, 240), -1)
        if place == gizmo:
            cv2.circle(mask, centre, radius, 1, -1)
    return image, mask > 0


def about(body: bytes) -> list[tuple[str, int]]:
    """(action, annotation id) of everything that a webhook call is about."""
    event = json.loads(body)
    found = event.get("annotation") or event.get("annotations") or []
    return [(str(event.get("action")), int(a["id"])) for a in (found if isinstance(found, list) else [found])]


class Door:
    """One address for Label Studio, wherever the server is just now; notes what was acknowledged."""

    def __init__(self) -> None:
        self.target = ""
        self.acknowledged: Counter[tuple[str, int]] = Counter()
        self.refused = 0
        door = self

        class Handler(BaseHTTPRequestHandler):
            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
                try:
                    answer = httpx.request(
                        self.command, door.target + self.path, content=body, headers=headers, timeout=120
                    )
                    status, content = answer.status_code, answer.content
                except httpx.HTTPError:
                    status, content = 502, b"{}"
                if self.path == "/webhook":
                    if status == 201:
                        door.acknowledged.update(about(body))
                    else:
                        door.refused += 1
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    self.close_connection = True  # Label Studio waits a second, no longer

            do_GET = do_POST = _pass

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def children(pid: int) -> list[int]:
    """The children of a process that live."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    return [found for child in children(pid) for found in (child, *descendants(child))]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait(good: Callable[[], bool], seconds: float) -> bool:
    """Whether it became so in time."""
    deadline = time.monotonic() + seconds
    while not good():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


class Trial:
    """The server under test, and what is known about it."""

    def __init__(self, studio: LocalLabelStudio, folder: Path, tasks: int, seconds: float, seed: int) -> None:
        self.studio, self.folder, self.seconds = studio, folder, seconds
        self.rng = np.random.default_rng(seed)
        self.door, self.faults = Door(), list[str]()
        self.config = LabelConfig.parse(CONFIG)
        self.submitted: dict[int, int] = {}
        self.known: set[str] = set()
        self.start()
        paths = []
        for number in range(tasks):
            paths.append(folder / f"{number}.png")
            PilImage.fromarray(draw(number)[0]).save(paths[-1])
        self.project = studio.create_project("Gizmos", CONFIG)
        self.tasks = studio.import_files(self.project, paths)
        self.backend = studio.connect_backend(self.project, self.door.url, "kills")
        self.settings = load_settings(data_dir=folder)
        self.base, self.store = build_agent(self.settings), version_store(self.settings)

    def start(self) -> None:
        self.process, self.door.target = start_backend(
            self.studio, self.folder, SEGAGENT_TRAIN_AFTER="2", SEGAGENT_TRAIN_QUIET="0.5",
            SEGAGENT_TRAIN_SECONDS=str(self.seconds),
        )  # fmt: skip

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.door.close()

    def processes(self) -> dict[str, int]:
        """Process ids by what they are."""
        found = {"server": self.process.pid}
        for pid in descendants(self.process.pid):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            found["worker" if b"--parent" in command else "web process"] = pid
        return found

    def ask(self, path: str, body: Any = None) -> Any:
        url = self.door.target + path
        return (httpx.get(url, timeout=60) if body is None else httpx.post(url, json=body, timeout=120)).json()

    def jobs(self) -> list[dict[str, Any]]:
        return list(self.ask("/jobs")["jobs"])

    def submit(self, count: int, pause: float) -> None:
        """Annotate some tasks, one after the other; now and then change an earlier annotation."""
        control, label = self.config.outputs("image", {})[0]
        for _ in range(count):
            number = len(self.submitted)
            result = write_region(draw(number)[1], control, label, 1.0)
            made = self.studio.client.call("POST", f"/api/tasks/{self.tasks[number]}/annotations/", {"result": result})
            self.submitted[number] = int(made["id"])
            if number % 5 == 4:
                self.studio.client.call("PATCH", f"/api/annotations/{made['id']}/", {"result": result})
            time.sleep(pause)

    def kill(self) -> dict[str, Any]:
        """Submit, kill at a random moment, wait for the restart, check."""
        target, delay = str(self.rng.choice(TARGETS)), float(self.rng.uniform(0, 10))
        person = threading.Thread(target=self.submit, args=(2, float(self.rng.uniform(0, 4))))
        person.start()
        time.sleep(delay)
        wait(lambda: target in self.processes(), 30)
        job = next((j for j in self.jobs() if j["state"] in ("running", "queued")), {})
        doing = f"{job['state']}: {job['step']}".rstrip(": ") if job else "no job"
        processes, started = self.processes(), time.monotonic()
        mortal = [processes[target], *descendants(processes[target])]
        os.kill(processes[target], signal.SIGKILL)
        if target == "server":
            self.process.wait()
        if not wait(lambda: not any(map(lives, mortal)), 30):
            self.faults.append(f"killed with its {target}, but alive: {[p for p in mortal if lives(p)]}")
        if target == "server":
            self.start()
        if not wait(lambda: self.answers() and "worker" in self.processes(), 90):
            self.faults.append(f"no restart within 90 s after the {target} was killed")
        seconds = time.monotonic() - started
        person.join()
        self.check()
        return {"target": target, "delay": delay, "doing": doing, "restart_seconds": round(seconds, 1)}

    def answers(self) -> bool:
        try:
            return bool(self.ask("/health")["status"] == "UP")
        except (httpx.HTTPError, ValueError):
            return False

    def check(self) -> None:
        """Note what is not as it must be."""
        if lost := self.door.acknowledged - self.inbox():
            self.faults.append(f"acknowledged, but not in the inbox: {dict(lost)}")
        if not wait(self.agree, 30):
            self.faults.append(f"served: {self.served()}; stored: {self.stored()}")
        home = self.store.folder / str(self.project)
        for version in self.store.versions(self.project):
            if version.name not in self.known:
                agent = build_agent(
                    self.settings, self.store.policy_of(self.project, version), self.base.segmenter, self.base.cache
                )
                if agent.version != version.name:
                    self.faults.append(f"version {version.name} holds weights of {agent.version}")
                self.known.add(version.name)
        for folder in home.iterdir() if home.is_dir() else ():
            if folder.is_dir() and folder.name != ".training" and not (folder / "version.json").is_file():
                self.faults.append(f"half a version: {folder.name}")
        task = self.studio.client.call("GET", f"/api/tasks/{self.tasks[-1]}/")
        body = {"tasks": [task], "project": f"{self.project}.1", "label_config": CONFIG, "params": {"context": None}}
        [result] = self.ask("/predict", body)["results"]
        if result and result["model_version"] not in self.stored()[0]:
            self.faults.append(f"a prediction is of {result['model_version']}, which is no version")

    def inbox(self) -> Counter[tuple[str, int]]:
        """What the inbox holds, done or not."""
        with closing(sqlite3.connect(self.folder / "inbox.sqlite3", timeout=30)) as db:
            return Counter(pair for (body,) in db.execute("SELECT body FROM events") for pair in about(body))

    def served(self) -> tuple[list[str], str]:
        """Versions that the server lists, and the one it uses."""
        listed = self.ask(f"/versions?project={self.project}")["versions"]
        return listed, str(self.ask("/setup", {"project": f"{self.project}.1"})["model_version"])

    def stored(self) -> tuple[list[str], str]:
        """The same, as the files say."""
        names = [v.name for v in reversed(self.store.versions(self.project))]
        return [*names, self.base.version], self.store.current(self.project) or self.base.version

    def agree(self) -> bool:
        before = self.stored()
        return self.served() == before or before != self.stored()

    def finish(self) -> dict[str, Any]:
        """Press the button and let the last training see everything; its job."""
        wait(lambda: not any(j["state"] in ("running", "queued") for j in self.jobs()), 180)
        before = {j["id"] for j in self.jobs()}
        try:
            self.studio.client.call("POST", f"/api/ml/{self.backend}/train", {"use_ground_truth": False})
        except ApiError as error:
            self.faults.append(f"the button: {error}")

        def last() -> dict[str, Any]:
            return next((j for j in self.jobs() if j["id"] not in before and j["state"] in ("done", "failed")), {})

        wait(lambda: bool(last()), 180)
        job = last()
        if job.get("state") != "done":
            self.faults.append(f"the last training did not end well: {job.get('reason') or self.jobs()[:1]}")
        elif (seen := job["result"]["trained_on"] + job["result"]["held_out"]) != len(self.submitted):
            self.faults.append(f"the last training saw {seen} tasks of {len(self.submitted)}")
        if not self.store.versions(self.project):
            self.faults.append("no version was trained")

        def pending() -> int:
            with closing(sqlite3.connect(self.folder / "inbox.sqlite3", timeout=30)) as db:
                return int(db.execute("SELECT COUNT(*) FROM events WHERE done IS NULL").fetchone()[0])

        if not wait(lambda: not pending(), 20):
            self.faults.append(f"{pending()} events are still pending")
        self.check()
        return job


def run(studio: LocalLabelStudio, folder: Path, kills: int, seconds: float, seed: int) -> dict[str, Any]:
    trial = Trial(studio, folder, 2 * kills + 4, seconds, seed)
    began, rows = time.monotonic(), []
    try:
        trial.submit(3, 0)
        for number in range(kills):
            rows.append(trial.kill())
            console.print(number + 1, rows[-1], *trial.faults, highlight=False)
        trial.finish()
        jobs = trial.jobs()
        return {
            "kills": rows,
            "acknowledged": trial.door.acknowledged.total(),
            "refused": trial.door.refused,
            "annotated": len(trial.submitted),
            "versions": len(trial.store.versions(trial.project)),
            "jobs": dict(Counter(j["state"] for j in jobs)),
            "resumed_and_done": sum(j["state"] == "done" and j["attempts"] > 1 for j in jobs),
            "failed_because": [j["reason"] for j in jobs if j["state"] == "failed"],
            "seconds": round(time.monotonic() - began, 1),
            "faults": trial.faults,
        }
    finally:
        trial.close()


def show(result: dict[str, Any]) -> None:
    table = Table("killed", "times", "in training", "restart: median s", "longest s", title="kill -9")
    for target in TARGETS:
        rows = [r for r in result["kills"] if r["target"] == target]
        waits = [r["restart_seconds"] for r in rows]
        training = sum(r["doing"].startswith("running") for r in rows)
        times = (f"{np.median(waits):.1f}", f"{max(waits):.1f}") if waits else ("", "")
        table.add_row(target, str(len(rows)), str(training), *times)
    console.print(table)
    console.print(
        f"{result['acknowledged']} annotations acknowledged (and {result['refused']} calls that found no "
        f"server), {result['annotated']} annotated tasks; {result['versions']} versions; jobs: {result['jobs']}, "
        f"{result['resumed_and_done']} of them resumed and done; {result['seconds']:.0f} s"
    )
    console.print("[green]no fault" if not result["faults"] else "[red]" + "\n".join(result["faults"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=8.0, help="time budget of one training")
    parser.add_argument("--seed", type=int, default=0, help="decides what is killed, and when")
    parser.add_argument("--out", type=Path, help="write the figures here (JSON)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    program = find_label_studio(REPOSITORY / ".venv-label-studio")
    if program is None:
        raise SystemExit("no Label Studio; `make e2e` installs it, or name it in SEGAGENT_LABEL_STUDIO_BIN")
    with tempfile.TemporaryDirectory() as name, LocalLabelStudio(program, Path(name) / "studio") as studio:
        folder = Path(name) / "backend"
        folder.mkdir()
        result = run(studio, folder, options.kills, options.seconds, options.seed)
    show(result)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(1 if result["faults"] else 0)


if __name__ == "__main__":
    main()
