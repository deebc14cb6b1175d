"""What quality control is worth to a model: fitted on clean, on spoilt, and on spoilt but filtered annotations.

python benchmarks/cleanup.py --data /data/pennfudan --out cleanup.json

The embedded policy learns Penn-Fudan's pedestrians under a name that it does not know, from train.json, three times:
with the true annotations; with a share of the images' annotations spoilt; and with those of the latter that quality
control keeps. As in a project, the version that was fitted on everything is the one that judges. An annotation is left
out as a whole: without one of its regions it would teach that there is nothing. All are measured on val.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning import load, read
from rich.console import Console
from rich.progress import track
from rich.table import Table

from label_studio_segagent import SegAgent, load_policy, load_segmenter
from label_studio_segagent.hlmat.arrays import Mask, mask_box
from label_studio_segagent.hlmat.trajectory import encode_mask
from label_studio_segagent.quality.inspection import inspect
from label_studio_segagent.training.embedded_trainer import EmbeddedPolicyTrainer
from label_studio_segagent.training.evaluation import LabelledImage, measure, to_trajectories
from label_studio_segagent.training.mask_corruption import corrupt_mask
from label_studio_segagent.training.trainer import FitSettings

KINDS = ("outlines", "elsewhere", "missing", "empty")


def spoil(item: LabelledImage, kind: str, rng: np.random.Generator) -> LabelledImage:
    """An annotation as it must not be.

    Args:
        item: The true one, with at least one mask.
        kind: "outlines": every mask corrupted, as in `benchmarks/quality.py`; "elsewhere": every mask on something
            beside its object; "missing": half of the objects, at least one, deleted; "empty": all deleted.
        rng: Source of chance.
    """
    masks = item.decoded()
    if kind == "outlines":
        masks = [corrupt_mask(m, [o for o in masks if o is not m][:4], rng) for m in masks]
    elif kind == "elsewhere":
        masks = [_moved(m, rng) for m in masks]
    elif kind == "missing":
        kept = sorted(rng.permutation(len(masks))[: len(masks) // 2])
        masks = [masks[int(n)] for n in kept]
    else:
        masks = []
    return replace(item, masks=tuple(encode_mask(m) for m in masks if m.any()))


def _moved(mask: Mask, rng: np.random.Generator) -> Mask:
    """The mask shifted sideways by once to twice its own width, and back in at the other side."""
    box = mask_box(mask)
    assert box is not None
    return np.roll(mask, int(rng.choice((-1, 1)) * rng.uniform(1, 2) * (box[2] - box[0])), 1)


def scores(agent: SegAgent, items: Sequence[LabelledImage]) -> list[float]:
    """What quality control says about each annotation: the expected IoU of its worst region, less for missing ones."""
    found = []
    for item in track(items, "quality control"):
        regions = [(str(n), item.prompt, mask) for n, mask in enumerate(item.decoded())]
        found.append(inspect(agent, read(item.image), regions, [item.prompt]).score)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Penn-Fudan in COCO's format: train.json, val.json")
    parser.add_argument("--label", default="zorblax", help="what a pedestrian is called")
    parser.add_argument("--share", type=float, default=0.3, help="of annotations that are spoilt")
    parser.add_argument("--least", type=float, default=0.5, help="smallest score of an annotation that is kept")
    parser.add_argument("--images", type=int, default=0, help="of train, 0 for all")
    parser.add_argument("--limit", type=int, default=0, help="images of val, 0 for all")
    parser.add_argument("--seconds", type=float, default=300.0, help="time budget of one fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    rng = np.random.default_rng(arguments.seed)
    train, val = (load(arguments.data, split, arguments.label) for split in ("train", "val"))
    train = [train[int(n)] for n in rng.permutation(len(train)) if train[int(n)].masks][: arguments.images or None]
    val = val[: arguments.limit or None]
    bad = {int(n): KINDS[i % len(KINDS)] for i, n in enumerate(range(round(arguments.share * len(train))))}
    spoilt = [spoil(item, bad[n], rng) if n in bad else item for n, item in enumerate(train)]

    segmenter = load_segmenter("embedded")
    base = SegAgent(load_policy("embedded", segmenter), segmenter)
    rows: dict[str, dict[str, Any]] = {}

    def report(name: str, agent: SegAgent, annotations: int) -> None:
        found = measure(agent, val, read)
        rows[name] = {"annotations": annotations, "miou": found.matched, "miou_with_extra": found.miou}
        Console().print(name, rows[name], f"{time.monotonic() - started:.0f} s")

    with tempfile.TemporaryDirectory() as folder:

        def fitted(name: str, items: Sequence[LabelledImage]) -> SegAgent:
            trainer = EmbeddedPolicyTrainer("embedded", segmenter)
            done = trainer.fit(to_trajectories(items), Path(folder) / name, FitSettings(seconds=arguments.seconds))
            agent = SegAgent(load_policy(done.model, segmenter), segmenter, cache=base.cache)
            report(name, agent, len(items))
            return agent

        report("not fitted", base, 0)
        fitted("clean", train)
        judge = fitted("spoilt", spoilt)
        said = scores(judge, spoilt)
        kept = [n for n, score in enumerate(said) if score >= arguments.least]
        fitted("filtered", [spoilt[n] for n in kept])

    loss = {key: rows["clean"][key] - rows["spoilt"][key] for key in ("miou", "miou_with_extra")}
    gain = {key: rows["filtered"][key] - rows["spoilt"][key] for key in loss}
    recovered = {key: gain[key] / loss[key] if loss[key] > 0 else None for key in loss}
    left_out = {kind: [n not in kept for n, k in bad.items() if k == kind] for kind in KINDS}
    good = [n not in kept for n in range(len(train)) if n not in bad]
    table = Table("fitted on", "annotations", "mIoU", "with extra")
    for name, row in rows.items():
        table.add_row(name, str(row["annotations"]), f"{row['miou']:.3f}", f"{row['miou_with_extra']:.3f}")
    Console(width=120).print(table)
    for key, share in recovered.items():
        lost = f"{loss[key]:+.3f} lost, {gain[key]:+.3f} won back"
        Console().print(f"{key}: {lost}" + (f": {share:.0%}" if share is not None else ""), highlight=False)
    caught = ", ".join(f"{kind} {sum(out)} of {len(out)}" for kind, out in left_out.items() if out)
    Console().print(f"left out: {caught}; good ones {sum(good)} of {len(good)}", highlight=False)
    if arguments.out:
        content = {
            "label": arguments.label, "rows": rows, "lost": loss, "recovered": recovered, "scores": said,
            "spoilt": bad, "seconds": time.monotonic() - started,
        }  # fmt: skip
        arguments.out.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
