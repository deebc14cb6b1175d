"""What the agent reaches by itself, given a label only: mIoU, rating error and time on COCO-format sets.

python benchmarks/agent.py embedded+embedded saliency+grabcut --data /data --out results.json

`--data` holds the sets ecssd (prompt "object"), pennfudan ("pedestrian", all instances, matched to the true ones) and
coco (the largest instance of each image, by its label). An agent is named POLICY+SEGMENTER, each as `load_policy` and
`load_segmenter` take them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from label_studio_segagent import SegAgent, load_policy, load_segmenter
from label_studio_segagent.datasets import load_dataset
from label_studio_segagent.datasets.image_file import read_image
from label_studio_segagent.datasets.record import by_picture, mask_rle
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.hlmat.trajectory import decode_mask
from label_studio_segagent.policies import Observation, Policy
from label_studio_segagent.training.evaluation import match_masks
from label_studio_segagent.training.mask_corruption import corrupt_mask

SETS = ("ecssd", "pennfudan", "coco")


def make_agent(name: str) -> SegAgent:
    """The agent named POLICY+SEGMENTER."""
    policy, _, segmenter_name = name.partition("+")
    segmenter = load_segmenter(segmenter_name)
    return SegAgent(load_policy(policy, segmenter), segmenter)


def read_val(root: Path, limit: int, seed: int = 0) -> list[tuple[Path, list[tuple[str, Any]]]]:
    """(image path, [(label, mask), …]) of the val set, largest object first; a fixed random subset with `limit`."""
    items = []
    for records in by_picture(load_dataset(root, split="val")):
        objects = [(record.prompt, decode_mask(mask_rle(record.mask, record.size or (0, 0)))) for record in records]
        objects.sort(key=lambda o: -np.count_nonzero(o[1]))
        items.append((records[0].image, objects))
    if limit and limit < len(items):
        items = [items[i] for i in sorted(np.random.default_rng(seed).choice(len(items), limit, replace=False))]
    return items


def measure_masks(agent: SegAgent, root: Path, limit: int) -> dict[str, Any]:
    """The agent's masks on one set."""
    ious: list[float] = []
    predicted: list[float] = []
    times: list[float] = []
    clicks: list[int] = []
    surplus = 0
    for path, objects in track(read_val(root, limit), root.name):
        image = read_image(path)
        start = time.perf_counter()
        if root.name == "pennfudan":
            rollouts = agent.segment_all(image, "pedestrian")
            pairs, more = match_masks([r.mask for r in rollouts], [m for _, m in objects])
            ious += pairs
            surplus += more
        else:
            label, mask = objects[0]
            rollouts = [agent.segment(image, label)]
            # Any instance of the label would be an answer; the largest one is asked for.
            ious.append(iou(rollouts[0].mask, mask))
            predicted.append(rollouts[0].predicted_iou)
        times.append(time.perf_counter() - start)
        clicks += [len(r.trajectory.clicks) for r in rollouts]
    values = np.array(ious)
    figures: dict[str, Any] = {
        "objects": len(ious), "miou": float(values.mean()), "above_0.8": float((values > 0.8).mean()),
        "missed": float((values < 0.1).mean()), "surplus": surplus,
        "clicks": float(np.mean(clicks)) if clicks else 0.0, "seconds": float(np.median(times)),
    }  # fmt: skip
    if predicted:
        figures["rating_mae"] = float(np.abs(np.array(predicted) - values).mean())
    return figures


def measure_ratings(agent: SegAgent, root: Path, limit: int, per_object: int = 3, seed: int = 0) -> list[Any]:
    """(predicted, true) IoU of corrupted masks of one set; objects of at least 0.5 % of their image.

    The true IoU is with the instance of the label that the mask fits best: of several persons any may be meant.
    """
    policy: Policy = agent.policy
    rng = np.random.default_rng(seed)
    pairs = []
    for path, objects in track(read_val(root, limit), f"{root.name}, ratings"):
        image = read_image(path)
        state = agent.encode(image)
        large = [(label, m) for label, m in objects if m.mean() >= 0.005][:3]
        for label, mask in large:
            for _ in range(per_object):
                shown = corrupt_mask(mask, [m for _, m in objects if m is not mask][:4], rng)
                if not shown.any():
                    continue
                decision = policy.act([Observation(image, shown, label, state=state)])[0]
                if decision.predicted_iou is not None:
                    meant = [m for name, m in objects if name == label]
                    pairs.append((decision.predicted_iou, max(iou(shown, m) for m in meant)))
    return pairs


def measure_time(agent: SegAgent, root: Path, count: int = 24) -> dict[str, float]:
    """Seconds of `segment` on 640x480 photographs that the agent has not seen."""
    times = []
    for path, objects in read_val(root, 0)[:count]:
        image = cv2.resize(read_image(path), (640, 480))
        start = time.perf_counter()
        agent.segment(image, objects[0][0])
        times.append(time.perf_counter() - start)
    return {"seconds_640x480": float(np.median(times)), "longest_640x480": max(times)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agents", nargs="+", help="POLICY+SEGMENTER")
    parser.add_argument("--data", type=Path, required=True, help="the folder of the sets")
    parser.add_argument("--limit", type=int, default=0, help="images per set, 0 for all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: list[dict[str, Any]] = []
    for name in arguments.agents:
        agent = make_agent(name)
        pairs = []
        for part in SETS:
            results.append({"agent": name, "set": part, **measure_masks(agent, arguments.data / part, arguments.limit)})
            print(json.dumps(results[-1]), flush=True)
            pairs += measure_ratings(agent, arguments.data / part, arguments.limit)
        predicted, true = np.array(pairs).T
        results.append({
            "agent": name, "set": "corrupted masks", "objects": len(pairs),
            "rating_mae": float(np.abs(predicted - true).mean()), "rating_r": float(np.corrcoef(predicted, true)[0, 1]),
            **measure_time(agent, arguments.data / "coco"),
        })  # fmt: skip
        print(json.dumps(results[-1]), flush=True)
    columns = list(dict.fromkeys(key for row in results for key in row))
    table = Table(*columns)
    for row in results:
        cells = [row.get(c, "") for c in columns]
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in cells))
    Console(width=220).print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
