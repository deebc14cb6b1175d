"""Quality control on corrupted true masks: scores, missing objects, refinement, throughput.

python benchmarks/quality.py --data /data --out results.json           # measure on val
python benchmarks/quality.py --data /data --fit combination.json       # fit what ships, on images kept back in training
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from label_studio_segagent import SegAgent, load_policy, load_segmenter
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.quality.calibration import fit_combination, shipped
from label_studio_segagent.quality.evidence import Evidence, gather
from label_studio_segagent.quality.inspection import inspect
from label_studio_segagent.quality.issues import Thresholds
from label_studio_segagent.training.mask_corruption import corrupt_mask
from label_studio_segagent.training.policy_data import Scene, is_development, read_scenes

_COPIES = 4
_GAIN = 0.2
_LEAST = 0.005
"""Share of the image that an object has at least."""


def corrupted(
    agent: SegAgent, scenes: Sequence[Scene], rng: np.random.Generator
) -> tuple[list[Evidence], list[float], list[tuple[float, float]], float]:
    """Evidence about true masks and corrupted copies, their true IoUs, (before, after) refinement, seconds a mask."""
    evidence, true, refined, seconds, count = [], [], [], 0.0, 0
    for scene in track(scenes, "corrupted masks"):
        image, items, wanted = scene.image(), [], []
        for instance in [i for i in scene.instances if i.share >= _LEAST][:3]:
            mask = instance.mask()
            others = [o.mask() for o in scene.instances if o is not instance][:4]
            same = [o.mask() for o in scene.instances if o.label == instance.label]
            for copy in [mask, *(corrupt_mask(mask, others, rng) for _ in range(_COPIES))]:
                if copy.any():
                    items.append((instance.label, copy))
                    wanted.append((mask, same))
        started = time.perf_counter()
        judged = gather(agent, image, items)
        seconds += time.perf_counter() - started
        count += len(items)
        for one, (mask, same) in zip(judged, wanted, strict=True):
            evidence.append(one.evidence)
            # A mask that has slipped to another instance of the label is a good mask of that one.
            true.append(max(iou(one.mask, other) for other in same))
            # As `segagent refine` does: only where the policy expects a gain.
            better = one.refined if one.refined_rating - one.evidence.rating >= _GAIN else one.mask
            refined.append((iou(one.mask, mask), iou(better, mask)))
    return evidence, true, refined, seconds / max(count, 1)


def missing(agent: SegAgent, scenes: Sequence[Scene], rng: np.random.Generator) -> list[tuple[float, bool]]:
    """(confidence, right) of every missing object reported when one instance of each image was deleted; 0 if none."""
    out: list[tuple[float, bool]] = []
    thresholds = Thresholds("missing_object=0")
    for scene in track(scenes, "missing objects"):
        if len(scene.instances) < 2:
            continue
        gone = int(rng.integers(len(scene.instances)))
        kept = [(str(n), i.label, i.mask()) for n, i in enumerate(scene.instances) if n != gone]
        issues = inspect(agent, scene.image(), kept, [scene.instances[gone].label], thresholds=thresholds).issues
        truth, hit = scene.instances[gone].mask(), False
        for issue in (i for i in issues if i.name == "missing_object"):
            box = np.zeros_like(truth)
            x0, y0, x1, y1 = (round(v) for v in issue.box)
            box[y0:y1, x0:x1] = True
            right = not hit and np.count_nonzero(box & truth) > 0.5 * np.count_nonzero(truth)
            hit |= right
            out.append((issue.confidence, right))
        if not hit:
            out.append((0.0, True))  # it was there to be found
    return out


def auroc(scores: np.ndarray[Any, Any], positive: np.ndarray[Any, Any]) -> float:
    """Chance that a positive has a higher score than a negative."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(len(scores))
    few, many = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - few * (few - 1) / 2) / max(few * many, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with coco/, pennfudan/ and, to fit, ecssd/")
    parser.add_argument("--policy", default="embedded")
    parser.add_argument("--limit", type=int, default=0, help="images of each set, 0 for all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fit", type=Path, help="fit the combination and write it here instead of measuring")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    segmenter = load_segmenter("embedded")
    agent = SegAgent(load_policy(arguments.policy, segmenter), segmenter)
    rng = np.random.default_rng(0)
    if arguments.fit:
        folders = [arguments.data / name for name in ("coco", "pennfudan", "ecssd")]
        scenes = [s for s in read_scenes(folders) if is_development(s) and s.instances]
        evidence, true, _, _ = corrupted(agent, scenes[: arguments.limit or None], rng)
        arguments.fit.write_text(json.dumps(asdict(fit_combination(evidence, true, 5.0))) + "\n")
        Console().print(f"{len(true)} masks of {len(scenes)} images")
        return
    results: dict[str, Any] = {}
    table = Table("set", "masks", "Pearson", "MAE", "rating alone", "AUROC < 0.7", "refined", "good made worse", "s")
    for name in ("coco", "pennfudan"):
        scenes = [s for s in read_scenes([arguments.data / name], "val.json") if s.instances]
        chosen = rng.permutation(len(scenes))[: arguments.limit or None]
        evidence, true, refined, seconds = corrupted(agent, [scenes[int(i)] for i in chosen], rng)
        expected, ious, pairs = shipped()(evidence), np.array(true), np.array(refined)
        rating = np.array([e.rating for e in evidence])
        good, bad = pairs[:, 0] > 0.9, (pairs[:, 0] < 0.9) & (pairs[:, 0] > 0)
        results[name] = {
            "masks": len(ious), "pearson": float(np.corrcoef(expected, ious)[0, 1]),
            "mae": float(np.abs(expected - ious).mean()), "rating_pearson": float(np.corrcoef(rating, ious)[0, 1]),
            "rating_mae": float(np.abs(rating - ious).mean()), "auroc_below_0.7": auroc(-expected, ious < 0.7),
            "refined_gain": float((pairs[bad, 1] - pairs[bad, 0]).mean()),
            "good_made_worse": float((pairs[good, 0] - pairs[good, 1] > 0.02).mean()), "seconds_a_mask": seconds,
        }  # fmt: skip
        r = results[name]
        table.add_row(
            name, str(r["masks"]), f"{r['pearson']:.3f}", f"{r['mae']:.3f}",
            f"{r['rating_pearson']:.3f} / {r['rating_mae']:.3f}", f"{r['auroc_below_0.7']:.3f}",
            f"{r['refined_gain']:+.3f}", f"{r['good_made_worse']:.1%}", f"{seconds:.2f}",
        )  # fmt: skip
        if name == "pennfudan":
            found = missing(agent, [scenes[int(i)] for i in chosen], rng)
            curve = []
            present = sum(right for _, right in found)
            for least in np.linspace(0.05, 0.95, 19):
                said = [(c, right) for c, right in found if c >= least]
                hits = int(sum(right for _, right in said))
                curve.append((float(least), hits / max(len(said), 1), hits / max(present, 1)))
            results["missing_objects"] = {"images": int(present), "threshold_precision_recall": curve}
    Console(width=160).print(table)
    for least, precision, recall in results["missing_objects"]["threshold_precision_recall"]:
        Console().print(f"missing objects, confidence {least:.2f}: precision {precision:.2f}, recall {recall:.2f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
