"""A project that learns, through a real Label Studio, its webhooks and our server: mIoU over annotated images.

python benchmarks/learning.py --data /data/pennfudan --label zorblax --counts 10,25,60,125 --out results.json

Every image of train.json is a task; so many of them are annotated with the true masks, the training that follows is
waited for, and the model that then serves is measured on val.json.
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

import cv2
import httpx
import numpy as np
import torch
from pycocotools import mask as rle_codec
from rich.console import Console
from rich.table import Table

from label_studio_segagent.agent.agent import SegAgent
from label_studio_segagent.hlmat.arrays import Image
from label_studio_segagent.hlmat.trajectory import encode_mask
from label_studio_segagent.labelstudio.config import LabelConfig
from label_studio_segagent.labelstudio.local import LocalLabelStudio, find_label_studio
from label_studio_segagent.labelstudio.regions import write_region
from label_studio_segagent.live_demo import start_backend
from label_studio_segagent.server.models import build_agent
from label_studio_segagent.server.settings import load_settings
from label_studio_segagent.training.evaluation import LabelledImage, measure
from label_studio_segagent.training.versions import VersionStore

REPOSITORY = Path(__file__).parents[1]


def read(path: str) -> Image:
    """RGB uint8 (H, W, 3)."""
    return np.asarray(cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB), np.uint8)


def load(root: Path, split: str, label: str, limit: int = 0) -> list[LabelledImage]:
    """All images of a COCO-format file as one label."""
    data = json.loads((root / f"{split}.json").read_text())
    masks: dict[Any, list[Any]] = {}
    for annotation in data["annotations"]:
        if not annotation.get("iscrowd"):
            mask = rle_codec.decode(annotation["segmentation"]).astype(bool)
            masks.setdefault(annotation["image_id"], []).append(encode_mask(mask))
    images = data["images"][: limit or None]
    return [
        LabelledImage(str(root / "images" / i["file_name"]), label, tuple(masks.get(i["id"], ())), str(i["id"]))
        for i in images
    ]


class Clock:
    """Latencies of /predict for one task, again and again, in a thread."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        self._url, self._body, self._over = url, body, threading.Event()
        self.seconds: list[float] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            started = time.perf_counter()
            httpx.post(f"{self._url}/predict", json=self._body, timeout=120)
            self.seconds.append(time.perf_counter() - started)
            time.sleep(0.5)

    def stop(self) -> float:
        """The 95th percentile."""
        self._over.set()
        self._thread.join()
        return float(np.quantile(self.seconds, 0.95)) if self.seconds else float("nan")


def annotate(studio: LocalLabelStudio, config: LabelConfig, task: int, item: LabelledImage) -> float:
    """Submit the true masks of an image; returns the seconds that Label Studio took, our webhook included."""
    control, label = config.outputs("image", {})[0]
    result = [r for mask in item.decoded() for r in write_region(mask, control, label, 1.0)]
    started = time.perf_counter()
    studio.client.call("POST", f"/api/tasks/{task}/annotations/", {"result": result})
    return time.perf_counter() - started


def run(
    studio: LocalLabelStudio, folder: Path, data: Path, label: str, counts: Sequence[int], limit: int, seconds: float
) -> list[dict[str, Any]]:
    """The learning curve."""
    xml = f"""<View><Image name="image" value="$image"/>
      <BrushLabels name="brush" toName="image"><Label value="{label}"/></BrushLabels></View>"""
    config = LabelConfig.parse(xml)
    process, url = start_backend(studio, folder, SEGAGENT_TRAIN_AFTER="0", SEGAGENT_TRAIN_SECONDS=str(seconds))
    try:
        train, val = load(data, "train", label), load(data, "val", label, limit)
        train = [train[int(i)] for i in np.random.default_rng(0).permutation(len(train))]
        project = studio.create_project(f"Learning {label}", xml)
        tasks = studio.import_files(project, [Path(item.image) for item in train])
        backend = studio.connect_backend(project, url, "learner")
        settings, store = load_settings(data_dir=folder), VersionStore(folder / "models")
        base = build_agent(settings)
        one = studio.client.call("GET", f"/api/tasks/{tasks[-1]}/")
        body = {"tasks": [one], "project": f"{project}.1", "label_config": xml, "params": {"context": None}}
        clock = Clock(url, body)
        time.sleep(20)
        idle = clock.stop()
        first = measure(base, val, read)
        rows: list[dict[str, Any]] = [{"images": 0, "miou": first.matched, "miou_with_extra": first.miou}]
        done = 0
        for count in counts:
            waits = [annotate(studio, config, tasks[n], train[n]) for n in range(done, count)]
            done = count
            studio.client.call("POST", f"/api/ml/{backend}/train", {"use_ground_truth": False})
            clock, job = Clock(url, body), {}
            before = len(httpx.get(f"{url}/jobs").json()["jobs"])
            while job.get("state") not in ("done", "failed"):
                time.sleep(0.5)
                jobs = httpx.get(f"{url}/jobs", timeout=30).json()["jobs"]
                job = jobs[0] if jobs and len(jobs) >= max(before, len(rows)) else {}
            busy = clock.stop()
            if job["state"] == "failed":
                raise SystemExit(f"training failed: {job['reason']}")
            agent = base
            if name := store.current(project):
                version = next(v for v in store.versions(project) if v.name == name)
                agent = build_agent(settings, store.policy_of(project, version), base.segmenter, base.cache)
            found = measure(agent, val, read)
            rows.append({
                "images": count, "miou": found.matched, "miou_with_extra": found.miou,
                "promoted": job["result"]["promoted"], "held_out_before": job["result"]["miou_before"],
                "held_out_after": job["result"]["miou"], "fit_seconds": job["result"]["seconds"],
                "job_seconds": job["finished"] - job["started"], "predict_p95_idle": idle, "predict_p95_training": busy,
                "submit_p95": float(np.quantile(waits, 0.95)),
            })  # fmt: skip
            Console().print(rows[-1])
        return rows
    finally:
        process.terminate()
        process.wait(60)


def forgetting(folder: Path, coco: Path, limit: int) -> dict[str, float]:
    """MIoU of shipped labels on COCO, with the shipped policy and with the last version."""
    settings, store = load_settings(data_dir=folder), VersionStore(folder / "models")
    base = build_agent(settings)
    [project] = store.projects()
    version = store.versions(project)[-1]
    tuned: SegAgent = build_agent(settings, store.policy_of(project, version), base.segmenter, base.cache)
    data = json.loads((coco / "val.json").read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    files = {i["id"]: str(coco / "images" / i["file_name"]) for i in data["images"]}
    items: dict[tuple[str, str], list[Any]] = {}
    for a in data["annotations"]:
        if not a.get("iscrowd"):
            key = (files[a["image_id"]], names[a["category_id"]])
            items.setdefault(key, []).append(encode_mask(rle_codec.decode(a["segmentation"]).astype(bool)))
    images = [LabelledImage(path, name, tuple(masks)) for (path, name), masks in items.items()][:limit]
    return {"shipped": measure(base, images, read).matched, "tuned": measure(tuned, images, read).matched}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--coco", type=Path, help="to measure forgetting on")
    parser.add_argument("--label", default="pedestrian")
    parser.add_argument("--counts", default="10,25,60,125")
    parser.add_argument("--limit", type=int, default=0, help="images of val, 0 for all")
    parser.add_argument("--seconds", type=float, default=300.0, help="time budget of one training")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    program = find_label_studio(REPOSITORY / ".venv-label-studio")
    if program is None:
        raise SystemExit("no Label Studio; `make e2e` installs it")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with LocalLabelStudio(program, folder / "studio") as studio:
            counts = [int(c) for c in arguments.counts.split(",")]
            rows = run(
                studio, folder / "backend", arguments.data, arguments.label, counts, arguments.limit, arguments.seconds
            )
        kept = forgetting(folder / "backend", arguments.coco, 60) if arguments.coco else {}
    table = Table("images", "mIoU", "with extra", "promoted", "fit s", "p95 idle", "p95 training", "submit p95")
    for r in rows:
        values = [r.get(k) for k in ("fit_seconds", "predict_p95_idle", "predict_p95_training", "submit_p95")]
        table.add_row(
            str(r["images"]), f"{r['miou']:.3f}", f"{r['miou_with_extra']:.3f}", str(r.get("promoted", "")),
            *("" if v is None else f"{v:.2f}" for v in values),
        )  # fmt: skip
    Console(width=140).print(table, kept)
    if arguments.out:
        content = {"label": arguments.label, "rows": rows, "forgetting": kept}
        arguments.out.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
