"""A project that learns, through a real Label Studio, its webhooks and our server: mIoU over annotated images.

python benchmarks/learning.py --data /data/pennfudan --label pedestrian --label zorblax --out results.json

For each label, every image of train.json is a task of a project; so many of them are annotated with the true masks, the
training that follows is waited for, and the model that then serves is measured on val.json. /predict is called before
the first training, during each one from beginning to end, and after it, and so is /webhook.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from label_studio_segagent.agent.agent import SegAgent
from label_studio_segagent.datasets import load_dataset
from label_studio_segagent.datasets.coco import read_coco_file
from label_studio_segagent.datasets.image_file import read_image
from label_studio_segagent.datasets.record import mask_rle
from label_studio_segagent.hlmat.arrays import Image
from label_studio_segagent.labelstudio.config import LabelConfig
from label_studio_segagent.labelstudio.local import LocalLabelStudio, find_label_studio
from label_studio_segagent.labelstudio.regions import write_region
from label_studio_segagent.live_demo import start_backend
from label_studio_segagent.server.models import build_agent
from label_studio_segagent.server.settings import load_settings
from label_studio_segagent.training.evaluation import LabelledImage, Measured, measure
from label_studio_segagent.training.versions import VersionStore

REPOSITORY = Path(__file__).parents[1]
_ASKED = 8
"""Tasks that /predict is asked for in turn."""
_PAUSE = 0.2
"""Seconds between two requests."""


def read(path: str) -> Image:
    """RGB uint8 (H, W, 3)."""
    return read_image(Path(path))


def load(root: Path, split: str, label: str, limit: int = 0) -> list[LabelledImage]:
    """All images of a COCO-format file as one label."""
    found = []
    for image in read_coco_file(root / f"{split}.json").images[: limit or None]:
        masks = tuple(mask_rle(record.mask, image.size or (0, 0)) for record in image.objects)
        found.append(LabelledImage(str(image.path), label, masks, str(image.row["id"])))
    return found


class Clock:
    """Latencies of /predict, task by task in turn, and of /webhook after each, in a thread; use it as a context.

    Args:
        url: Of the server.
        bodies: What is sent to /predict.
    """

    def __init__(self, url: str, bodies: Sequence[dict[str, Any]]) -> None:
        self._url, self._bodies, self._over = url, bodies, threading.Event()
        # The size of a submitted brush mask; an action that nobody knows starts no training.
        self._event = json.dumps({"action": "BENCHMARK", "annotation": {"id": 1, "result": "x" * 200_000}}).encode()
        self.predict: list[float] = []
        self.webhook: list[float] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=120) as client:
            while not self._over.is_set():
                body = self._bodies[len(self.predict) % len(self._bodies)]
                for path, times, content in (
                    ("/predict", self.predict, json.dumps(body).encode()), ("/webhook", self.webhook, self._event),
                ):  # fmt: skip
                    started = time.perf_counter()
                    client.post(path, content=content).raise_for_status()
                    times.append(time.perf_counter() - started)
                time.sleep(_PAUSE)

    def __enter__(self) -> Clock:
        """Begin to ask."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ask no more."""
        self._over.set()
        self._thread.join()


def listen(url: str, bodies: Sequence[dict[str, Any]], seconds: float) -> Clock:
    """Latencies of an idle server."""
    with Clock(url, bodies) as clock:
        time.sleep(seconds)
    return clock


def quantile(seconds: Sequence[float], q: float = 0.95) -> float:
    return float(np.quantile(seconds, q)) if seconds else float("nan")


def annotate(studio: LocalLabelStudio, config: LabelConfig, task: int, item: LabelledImage) -> float:
    """Submit the true masks of an image; returns the seconds that Label Studio took, our webhook included."""
    control, label = config.outputs("image", {})[0]
    result = [r for mask in item.decoded() for r in write_region(mask, control, label, 1.0)]
    started = time.perf_counter()
    studio.client.call("POST", f"/api/tasks/{task}/annotations/", {"result": result})
    return time.perf_counter() - started


def train(studio: LocalLabelStudio, url: str, backend: int, bodies: Sequence[dict[str, Any]]) -> tuple[Any, Clock]:
    """Press Start Training and wait; the finished job, and latencies while it ran."""
    before = {job["id"] for job in jobs(url)}
    studio.client.call("POST", f"/api/ml/{backend}/train", {"use_ground_truth": False})

    def find() -> dict[str, Any]:
        return next((job for job in jobs(url) if job["id"] not in before), {"state": "none"})

    while find()["state"] in ("none", "queued"):
        time.sleep(0.1)
    with Clock(url, bodies) as clock:
        while (job := find())["state"] == "running":
            time.sleep(0.5)
    if job["state"] == "failed":
        raise SystemExit(f"training failed: {job['reason']}")
    return job, clock


def jobs(url: str) -> list[dict[str, Any]]:
    return list(httpx.get(f"{url}/jobs", timeout=30).json()["jobs"])


def figures(found: Measured) -> dict[str, Any]:
    """What an agent reached on val.json; how good the masks of objects are that were found at all."""
    seen = found.objects - found.missed
    return {
        "miou": found.matched, "miou_with_extra": found.miou, "missed": found.missed / max(found.objects, 1),
        "miou_of_found": found.matched * found.objects / max(seen, 1), "extra": found.extra,
    }  # fmt: skip


def run(
    studio: LocalLabelStudio, url: str, folder: Path, data: Path, label: str, counts: Sequence[int], limit: int,
    seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """The learning curve of a project with one label, and latencies over all its trainings."""
    xml = f"""<View><Image name="image" value="$image"/>
      <BrushLabels name="brush" toName="image"><Label value="{label}"/></BrushLabels></View>"""
    config = LabelConfig.parse(xml)
    taught, val = load(data, "train", label), load(data, "val", label, limit)
    taught = [taught[int(i)] for i in np.random.default_rng(0).permutation(len(taught))]
    project = studio.create_project(f"Learning {label}", xml)
    tasks = studio.import_files(project, [Path(item.image) for item in taught])
    backend = studio.connect_backend(project, url, f"learner of {label}")
    settings, store = load_settings(data_dir=folder), VersionStore(folder / "models")
    base = build_agent(settings)
    bodies = [
        {"tasks": [studio.client.call("GET", f"/api/tasks/{task}/")], "project": f"{project}.1", "label_config": xml,
         "params": {"context": None}}
        for task in tasks[-_ASKED:]
    ]  # fmt: skip
    for body in bodies:  # the first sight of an image is slower, idle or not
        httpx.post(f"{url}/predict", json=body, timeout=120).raise_for_status()
    idle, busy = [listen(url, bodies, seconds)], list[Clock]()
    rows: list[dict[str, Any]] = [{"images": 0, **figures(measure(base, val, read))}]
    done = 0
    for count in counts:
        waits = [annotate(studio, config, tasks[n], taught[n]) for n in range(done, count)]
        done = count
        job, clock = train(studio, url, backend, bodies)
        busy.append(clock)
        idle.append(listen(url, bodies, seconds / 3))
        agent = base
        if name := store.current(project):
            version = next(v for v in store.versions(project) if v.name == name)
            agent = build_agent(settings, store.policy_of(project, version), base.segmenter, base.cache)
        rows.append({
            "images": count, **figures(measure(agent, val, read)),
            "promoted": job["result"]["promoted"], "held_out_before": job["result"]["miou_before"],
            "held_out_after": job["result"]["miou"], "fit_seconds": job["result"]["seconds"],
            "job_seconds": job["finished"] - job["started"], "predict_p95_idle": quantile(idle[-1].predict),
            "predict_p95_training": quantile(clock.predict), "submit_p95": quantile(waits),
        })  # fmt: skip
        Console().print(rows[-1])
    return {"rows": rows, "latency": latency(idle, busy)}


def latency(idle: Sequence[Clock], busy: Sequence[Clock]) -> dict[str, Any]:
    """All latencies of a project together, in seconds."""
    found: dict[str, Any] = {}
    for state, clocks in (("idle", idle), ("training", busy)):
        predict, webhook = ([t for c in clocks for t in getattr(c, name)] for name in ("predict", "webhook"))
        found[state] = {
            "requests": len(predict), "predict_p50": quantile(predict, 0.5), "predict_p95": quantile(predict),
            "webhook_p95": quantile(webhook), "webhook_max": max(webhook, default=float("nan")),
        }  # fmt: skip
    found["predict_p95_ratio"] = found["training"]["predict_p95"] / found["idle"]["predict_p95"]
    return found


def forgetting(folder: Path, coco: Path, limit: int) -> dict[str, float]:
    """MIoU of shipped labels on COCO, with the shipped policy and with the last version."""
    settings, store = load_settings(data_dir=folder), VersionStore(folder / "models")
    base = build_agent(settings)
    project = store.projects()[-1]
    version = store.versions(project)[-1]
    tuned: SegAgent = build_agent(settings, store.policy_of(project, version), base.segmenter, base.cache)
    items: dict[tuple[str, str], list[Any]] = {}
    for record in load_dataset(coco, split="val"):
        items.setdefault((str(record.image), record.prompt), []).append(mask_rle(record.mask, record.size or (0, 0)))
    images = [LabelledImage(path, name, tuple(masks)) for (path, name), masks in items.items()][:limit]
    return {"shipped": measure(base, images, read).matched, "tuned": measure(tuned, images, read).matched}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--coco", type=Path, help="to measure forgetting on")
    parser.add_argument(
        "--label", action="append", help='what the objects are called, a made-up word for example; may be repeated; '
        'by default "pedestrian"',
    )  # fmt: skip
    parser.add_argument("--counts", default="10,25,60,125")
    parser.add_argument("--limit", type=int, default=0, help="images of val, 0 for all")
    parser.add_argument("--seconds", type=float, default=300.0, help="time budget of one training")
    parser.add_argument("--idle", type=float, default=90.0, help="seconds of requests to the idle server")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    program = find_label_studio(REPOSITORY / ".venv-label-studio")
    if program is None:
        raise SystemExit("no Label Studio; `make e2e` installs it")
    counts = [int(c) for c in arguments.counts.split(",")]
    labels = arguments.label or ["pedestrian"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with LocalLabelStudio(program, folder / "studio") as studio:
            process, url = start_backend(
                studio, folder / "backend", SEGAGENT_TRAIN_AFTER="0", SEGAGENT_TRAIN_SECONDS=str(arguments.seconds)
            )
            try:
                found = {
                    label: run(
                        studio, url, folder / "backend", arguments.data, label, counts, arguments.limit, arguments.idle
                    )
                    for label in labels
                }
            finally:
                process.terminate()
                process.wait(60)
        kept = forgetting(folder / "backend", arguments.coco, 60) if arguments.coco else {}
    show(found, kept)
    if arguments.out:
        arguments.out.write_text(json.dumps({"labels": found, "forgetting": kept}, indent=1) + "\n")


def show(found: dict[str, dict[str, Any]], kept: dict[str, float]) -> None:
    console = Console(width=150)
    table = Table("label", "images", "mIoU", "with extra", "missed", "mIoU of found", "promoted", "fit s", "submit p95")
    for label, one in found.items():
        for r in one["rows"]:
            numbers = [f"{r[k]:.3f}" for k in ("miou", "miou_with_extra", "missed", "miou_of_found")]
            times = [f"{r[k]:.2f}" if k in r else "" for k in ("fit_seconds", "submit_p95")]
            table.add_row(label, str(r["images"]), *numbers, str(r.get("promoted", "")), *times)
    console.print(table)
    table = Table("label", "state", "requests", "/predict p50 s", "p95 s", "/webhook p95 s", "longest s")
    for label, one in found.items():
        for state in ("idle", "training"):
            times = one["latency"][state]
            table.add_row(label, state, str(times["requests"]), *(f"{v:.3f}" for v in list(times.values())[1:]))
    console.print(table)
    for label, one in found.items():
        console.print(f"{label}: /predict p95 in training is {one['latency']['predict_p95_ratio']:.2f} times idle")
    if kept:
        console.print(f"COCO's labels: {kept}")


if __name__ == "__main__":
    main()
