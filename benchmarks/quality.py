"""Quality control on corrupted true masks: scores, missing objects, refinement, throughput.

python benchmarks/quality.py --data /data --out results.json           # measure on val
python benchmarks/quality.py --data /data --fit combination.json       # fit what ships, on images kept back in training

Where cleanlab is installed (`pip install cleanlab`, 2.9 was used; only this benchmark wants it), its label quality
scores from the same network's probabilities are measured on the same masks: see `cleanlab_side`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanlab_side import FEEDS, cleanlab_rank, cleanlab_scores
from rich.console import Console
from rich.progress import track
from rich.table import Table

from label_studio_segagent import SegAgent, load_policy, load_segmenter
from label_studio_segagent.defaults import LEAST_GAIN
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.quality.calibration import fit_combination, shipped
from label_studio_segagent.quality.evidence import Evidence, gather
from label_studio_segagent.quality.inspection import inspect
from label_studio_segagent.quality.issues import Thresholds
from label_studio_segagent.training.mask_corruption import corrupt_mask
from label_studio_segagent.training.policy_data import Scene, is_development, read_scenes

_COPIES = 4
_LEAST = 0.005
"""Share of the image that an object has at least."""


@dataclass(slots=True)
class Measured:
    """What was found out about true masks and corrupted copies of them.

    Attributes:
        evidence: Of each mask.
        true: Its IoU.
        refined: (before, after) refinement, IoU.
        cleanlab: Its label quality by each feed; empty without cleanlab.
        seconds: All that gathering the evidence took.
    """

    evidence: list[Evidence] = field(default_factory=list)
    true: list[float] = field(default_factory=list)
    refined: list[tuple[float, float]] = field(default_factory=list)
    cleanlab: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0


def corrupted(agent: SegAgent, scenes: Sequence[Scene], rng: np.random.Generator, rank: Any = None) -> Measured:
    """Look at the true masks of scenes and at corrupted copies; `rank` is cleanlab's module, if it is to look, too."""
    out = Measured()
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
        out.seconds += time.perf_counter() - started
        if rank is not None:
            out.cleanlab += cleanlab_scores(rank, agent, image, judged)
        for one, (mask, same) in zip(judged, wanted, strict=True):
            out.evidence.append(one.evidence)
            # A mask that has slipped to another instance of the label is a good mask of that one.
            out.true.append(max(iou(one.mask, other) for other in same))
            # As `segagent refine` does: only where the policy expects a gain.
            better = one.refined if one.refined_rating - one.evidence.rating >= LEAST_GAIN else one.mask
            out.refined.append((iou(one.mask, mask), iou(better, mask)))
    return out


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
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts + 1) / 2)[place]  # equal scores share their places
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
        found = corrupted(agent, scenes[: arguments.limit or None], rng)
        arguments.fit.write_text(json.dumps(asdict(fit_combination(found.evidence, found.true, 5.0))) + "\n")
        Console().print(f"{len(found.true)} masks of {len(scenes)} images")
        return
    results: dict[str, Any] = {}
    rank = cleanlab_rank()
    if rank is None:
        Console().print("cleanlab is not installed (pip install cleanlab): measured without it")
    table = Table(
        "set", "masks", "Pearson", "MAE", "rating alone", "AUROC < 0.7", "cleanlab's", "refined", "good made worse", "s"
    )
    for name in ("coco", "pennfudan"):
        scenes = [s for s in read_scenes([arguments.data / name], "val") if s.instances]
        chosen = rng.permutation(len(scenes))[: arguments.limit or None]
        found = corrupted(agent, [scenes[int(i)] for i in chosen], rng, rank)
        expected, ious, pairs = shipped()(found.evidence), np.array(found.true), np.array(found.refined)
        rating = np.array([e.rating for e in found.evidence])
        qualities = dict(zip(FEEDS, np.array(found.cleanlab).T, strict=True)) if found.cleanlab else {}
        theirs = {feed: auroc(-quality, ious < 0.7) for feed, quality in qualities.items()}
        good, bad = pairs[:, 0] > 0.9, (pairs[:, 0] < 0.9) & (pairs[:, 0] > 0)
        results[name] = {
            "masks": len(ious), "pearson": float(np.corrcoef(expected, ious)[0, 1]),
            "mae": float(np.abs(expected - ious).mean()), "rating_pearson": float(np.corrcoef(rating, ious)[0, 1]),
            "rating_mae": float(np.abs(rating - ious).mean()), "auroc_below_0.7": auroc(-expected, ious < 0.7),
            "cleanlab_auroc_below_0.7": theirs,
            "refined_gain": float((pairs[bad, 1] - pairs[bad, 0]).mean()),
            "good_made_worse": float((pairs[good, 0] - pairs[good, 1] > 0.02).mean()),
            "seconds_a_mask": found.seconds / len(ious),
        }  # fmt: skip
        r = results[name]
        table.add_row(
            name, str(r["masks"]), f"{r['pearson']:.3f}", f"{r['mae']:.3f}",
            f"{r['rating_pearson']:.3f} / {r['rating_mae']:.3f}", f"{r['auroc_below_0.7']:.3f}",
            f"{max(theirs.values()):.3f} ({max(theirs, key=lambda feed: theirs[feed])})" if theirs else "",
            f"{r['refined_gain']:+.3f}", f"{r['good_made_worse']:.1%}", f"{r['seconds_a_mask']:.2f}",
        )  # fmt: skip
        if name == "pennfudan":
            reports = missing(agent, [scenes[int(i)] for i in chosen], rng)
            curve = []
            present = sum(right for _, right in reports)
            for least in np.linspace(0.05, 0.95, 19):
                said = [(c, right) for c, right in reports if c >= least]
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
