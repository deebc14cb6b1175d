"""Clicks to a good mask: NoC, mIoU per click, jittered clicks, score error and time of segmenters on COCO-format sets.

python benchmarks/segmenter.py embedded grabcut --data coco=/data/coco --data ecssd=/data/ecssd --out results.json
python benchmarks/segmenter.py embedded --sheet cases.jpg     # good and bad cases, on the demo's photographs
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PilImage
from pycocotools import mask as rle_codec
from rich.console import Console
from rich.table import Table

from label_studio_segagent.datasets import load_dataset
from label_studio_segagent.datasets.image_file import read_image
from label_studio_segagent.datasets.record import mask_rle
from label_studio_segagent.demo import demo_photos
from label_studio_segagent.hlmat.actions import Click
from label_studio_segagent.hlmat.annotator import SimulatedAnnotator
from label_studio_segagent.hlmat.metrics import iou, noc
from label_studio_segagent.pictures import draw_clicks, result_panel, sheet
from label_studio_segagent.segmenters import Segmenter, load_segmenter

CLICKS = 20
CURVE = (1, 3, 5)


def load_objects(root: Path, least: float, limit: int, seed: int = 0) -> list[tuple[Path, Any]]:
    """(image path, RLE) of every object of at least `least` of its image; a fixed random subset with `limit`."""
    objects = []
    for record in load_dataset(root, split="val"):
        assert record.size is not None
        rle = mask_rle(record.mask, record.size)
        if rle_codec.area(rle) >= least * record.size[0] * record.size[1]:
            objects.append((record.image, rle))
    if limit and limit < len(objects):
        chosen = sorted(np.random.default_rng(seed).choice(len(objects), limit, replace=False))
        objects = [objects[i] for i in chosen]
    return objects


def annotate(segmenter: Segmenter, state: Any, target: Any, jitter: float) -> dict[str, Any]:
    """Click one object until IoU 0.9, at least as far as the curve goes, at most 20 clicks."""
    mask, prior = np.zeros_like(target), None
    annotator = SimulatedAnnotator(stop_iou=1.0, jitter=jitter * float(np.sqrt(np.count_nonzero(target))))
    clicks: list[Click] = []
    ious: list[float] = []
    scores: list[float] = []
    times: list[float] = []
    while len(clicks) < CLICKS and (len(clicks) < max(CURVE) or max(ious) < 0.9):
        click = annotator.next_action(mask, target, clicks)
        if not isinstance(click, Click):
            break
        clicks.append(click)
        start = time.perf_counter()
        out = segmenter.predict(state, clicks, prior=prior)
        times.append(time.perf_counter() - start)
        mask, prior = out.mask, out.logits
        ious.append(iou(mask, target))
        scores.append(out.score)
    return {"ious": ious, "scores": scores, "times": times}


def measure(segmenter: Segmenter, objects: list[tuple[Path, Any]], jitter: float = 0.0) -> dict[str, Any]:
    """All figures of one segmenter on one set."""
    runs, encode, path, state = [], [], None, None
    for image_path, rle in objects:
        if path != image_path:
            image = read_image(image_path)
            start = time.perf_counter()
            state, path = segmenter.set_image(image), image_path
            encode.append(time.perf_counter() - start)
        runs.append(annotate(segmenter, state, rle_codec.decode(rle).astype(bool), jitter))

    curves = [r["ious"] for r in runs]
    predicted = np.concatenate([r["scores"] for r in runs])
    true = np.concatenate([r["ious"] for r in runs])
    later = np.concatenate([r["times"][1:] for r in runs])
    return {
        "objects": len(runs), "noc85": noc(curves, 0.85, CLICKS), "noc90": noc(curves, 0.90, CLICKS),
        "failed90": sum(max(r["ious"]) < 0.9 for r in runs),
        **{f"miou{k}": float(np.mean([r["ious"][min(k, len(r["ious"])) - 1] for r in runs])) for k in CURVE},
        "score_mae": float(np.abs(predicted - true).mean()), "score_r": float(np.corrcoef(predicted, true)[0, 1]),
        "set_image_ms": 1e3 * float(np.median(encode)),
        "first_ms": 1e3 * float(np.median([r["times"][0] for r in runs])),
        "click_ms": 1e3 * float(np.median(later)), "click_p90_ms": 1e3 * float(np.quantile(later, 0.9)),
    }  # fmt: skip


def draw_cases(segmenter: Segmenter, clicks: int = 3) -> Any:
    """What the segmenter makes of F_sim's first clicks on every object of the demo, best first: RGB uint8."""
    annotator, cases = SimulatedAnnotator(stop_iou=1.0), []
    for photo in demo_photos():
        state = segmenter.set_image(photo.image)
        for label, masks in photo.masks.items():
            for target in masks:
                mask, prior, made = np.zeros_like(target), None, []
                while len(made) < clicks and isinstance(click := annotator.next_action(mask, target, made), Click):
                    made.append(click)
                    out = segmenter.predict(segmenter.fresh(state), made, prior=prior)
                    mask, prior = out.mask, out.logits
                cases.append((iou(mask, target), label, draw_clicks(photo.image, made), mask))
    cases.sort(key=lambda case: -case[0])
    return sheet(
        [
            result_panel(image, [mask], label, f"{clicks} clicks: IoU {overlap:.2f}")
            for overlap, label, image, mask in cases
        ],
        6,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("segmenters", nargs="+", help="names as load_segmenter takes them")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--sheet", type=Path, help="draw what the first segmenter does, and stop")
    parser.add_argument("--limit", type=int, default=0, help="objects per set, 0 for all")
    parser.add_argument("--least", type=float, default=0.005, help="smallest object, as a share of its image")
    parser.add_argument(
        "--jitter", type=float, default=0.0, help="measure again with clicks this far off, relative to the object"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.sheet:
        PilImage.fromarray(draw_cases(load_segmenter(arguments.segmenters[0]))).save(arguments.sheet, quality=88)
        return
    if not arguments.data:
        parser.error("--data or --sheet is needed")
    results: list[dict[str, Any]] = []
    for name in arguments.segmenters:
        segmenter = load_segmenter(name)
        for item in arguments.data:
            label, _, folder = item.partition("=")
            objects = load_objects(Path(folder), arguments.least, arguments.limit)
            for jitter in dict.fromkeys((0.0, arguments.jitter)):
                figures = measure(segmenter, objects, jitter)
                results.append({"segmenter": name, "set": label, "jitter": jitter, **figures})
    table = Table(*results[0])
    for row in results:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else Path(str(v)).name for v in row.values()))
    Console(width=220).print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
