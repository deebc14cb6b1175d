"""Which images to label: the order of `segagent rank` against a random one, with the same budget.

python benchmarks/active_learning.py --data /data/pennfudan --label zorblax --out results.json

For every seed some images of train.json are the pool. From the same pool one learner takes the images that the ranking
puts first, ranked anew by the model of each round; the other one takes random ones. After each round both are trained
as a project's model is, on all that they have, and measured on val.json: all instances, matched to the true ones. No
Label Studio is involved. What was seen of an image is kept, as no training changes it; that takes about 4 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning import load
from learning import read as read_image
from rich.console import Console
from rich.table import Table

from label_studio_segagent import SegAgent, load_segmenter
from label_studio_segagent.policies import embedded, embedded_sight
from label_studio_segagent.segmenters import EmbeddingCache
from label_studio_segagent.training.acquisition import labelling_order, look_twice
from label_studio_segagent.training.embedded_trainer import EmbeddedPolicyTrainer
from label_studio_segagent.training.evaluation import LabelledImage, measure, to_trajectories
from label_studio_segagent.training.trainer import FitSettings

STRATEGIES = ("random", "active")
console = Console(width=140)
read = cache(read_image)


class Learner:
    """Trains on chosen images, ranks the others, and remembers what no training changes."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds, self.doubts = folder, seconds, dict[str, float]()
        segmenter = load_segmenter("embedded")
        self.trainer = EmbeddedPolicyTrainer("embedded", segmenter)
        self.start = SegAgent(self.trainer.policy, segmenter, cache=EmbeddingCache(6 * 2**30))
        embedded_sight._IMAGES_KEPT = 2000  # each of them is looked at dozens of times

    def train(self, items: Sequence[LabelledImage], seed: int) -> SegAgent:
        """The agent after training on some images; with none, as it ships."""
        if not items:
            return self.start
        settings, out = FitSettings(seconds=self.seconds, seed=seed), Path(tempfile.mkdtemp(dir=self.folder))
        fitted = self.trainer.fit(to_trajectories(items), out, settings, images=lambda t: read(t.image))
        policy = embedded.EmbeddedPolicy(fitted.model.partition(":")[2], self.trainer.policy.segmenter)
        # Only examples were added: an image looks the same to all of these policies.
        policy.sight = self.trainer.policy.sight
        return SegAgent(policy, self.start.segmenter, cache=self.start.cache)

    def order(
        self, agent: SegAgent, pool: Sequence[LabelledImage], taken: Sequence[LabelledImage]
    ) -> list[LabelledImage]:
        """The rest of a pool, the image to label next first."""
        rest = [item for item in pool if item not in taken]
        unsure = np.array([self._doubt(agent, item) for item in rest])
        known = np.stack([self._features(item) for item in taken]) if taken else None
        features = np.stack([self._features(item) for item in rest])
        return [rest[i] for i in labelling_order(unsure, features, known)]

    def _doubt(self, agent: SegAgent, item: LabelledImage) -> float:
        if agent is not self.start:
            return look_twice(agent, [(read(item.image), item.prompt)])[1]
        if item.image not in self.doubts:  # the same for every seed
            self.doubts[item.image] = look_twice(agent, [(read(item.image), item.prompt)])[1]
        return self.doubts[item.image]

    def _features(self, item: LabelledImage) -> Any:
        return self.start.segmenter.describe(self.start.encode(read(item.image)))


def run(
    data: Path, label: str, counts: Sequence[int], seeds: int, pool: int, limit: int, seconds: float, folder: Path
) -> list[dict[str, Any]]:
    """One row for each seed, strategy and number of images."""
    train, val = load(data, "train", label), load(data, "val", label, limit)
    learner, rows = Learner(folder, seconds), list[dict[str, Any]]()
    first = measure(learner.start, val, read)
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(train))[: pool or None]
        mine = [train[int(i)] for i in order]  # in random order
        for strategy in STRATEGIES:
            taken, agent = list[LabelledImage](), learner.start
            rows.append({"seed": seed, "strategy": strategy, "images": 0, "miou": first.matched, "extra": first.extra})
            for count in counts:
                ranked = learner.order(agent, mine, taken) if strategy == "active" else mine[len(taken) :]
                taken += ranked[: count - len(taken)]
                agent = learner.train(taken, seed)
                found = measure(agent, val, read)
                rows.append({
                    "seed": seed, "strategy": strategy, "images": len(taken), "miou": found.matched,
                    "miou_with_extra": found.miou, "extra": found.extra,
                    "objects": sum(len(item.masks) for item in taken), "tasks": [item.task for item in taken],
                })  # fmt: skip
                console.print({k: v for k, v in rows[-1].items() if k != "tasks"})
    return rows


def curve(rows: Sequence[dict[str, Any]], strategy: str, figure: str = "miou") -> tuple[list[int], Any, Any]:
    """Numbers of images; mean and standard deviation of a figure over the seeds."""
    mine = [r for r in rows if r["strategy"] == strategy]
    counts = sorted({r["images"] for r in mine})
    values = [[r[figure] for r in mine if r["images"] == count] for count in counts]
    return counts, np.array([np.mean(v) for v in values]), np.array([np.std(v) for v in values])


def images_needed(counts: Sequence[int], values: Sequence[float], goal: float) -> float | None:
    """Images at which a curve, straight between its points, first reaches a value; None where it never does."""
    for n, value in enumerate(values):
        if value >= goal:
            if n == 0:
                return float(counts[0])
            share = (goal - values[n - 1]) / (value - values[n - 1])
            return float(counts[n - 1] + share * (counts[n] - counts[n - 1]))
    return None


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    counts, chance, chance_spread = curve(rows, "random")
    _, active, active_spread = curve(rows, "active")
    needed = images_needed(counts, list(active), float(chance[-1]))
    return {
        "images": counts,
        "random": {"mean": chance.tolist(), "deviation": chance_spread.tolist()},
        "active": {"mean": active.tolist(), "deviation": active_spread.tolist()},
        "random_at_budget": float(chance[-1]),
        "random_needs": images_needed(counts, list(chance), float(chance[-1])),
        "active_needs": needed,
        "share_of_budget": None if needed is None else needed / counts[-1],
    }


def show(found: dict[str, Any], seeds: int) -> None:
    table = Table("images", "random: mIoU", "active: mIoU", title=f"mean ± standard deviation over {seeds} seeds")
    for n, count in enumerate(found["images"]):
        cells = [f"{found[s]['mean'][n]:.3f} ± {found[s]['deviation'][n]:.3f}" for s in STRATEGIES]
        table.add_row(str(count), *cells)
    console.print(table)
    budget, goal = found["images"][-1], found["random_at_budget"]
    reached = (
        "never within the budget"
        if found["active_needs"] is None
        else f"with {found['active_needs']:.1f} images, {found['share_of_budget']:.0%} of them"
    )
    console.print(f"Random has {goal:.3f} with {budget} images (and that for the first time at "
                  f"{found['random_needs']:.1f}); active learning reaches it {reached}. The goal is 70 %.")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--label", default="zorblax", help="what the objects are called; a made-up word is unknown")
    parser.add_argument("--counts", default="5,10,20,40")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pool", type=int, default=80, help="images of train.json to choose from, 0 for all")
    parser.add_argument("--limit", type=int, default=0, help="images of val.json, 0 for all")
    parser.add_argument("--seconds", type=float, default=120.0, help="time budget of one training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    counts, began = [int(c) for c in options.counts.split(",")], time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        rows = run(
            options.data, options.label, counts, options.seeds, options.pool, options.limit, options.seconds, Path(name)
        )
    found = summary(rows) | {"seconds": round(time.monotonic() - began, 1)}
    show(found, options.seeds)
    if options.out:
        content = {"label": options.label, "pool": options.pool, "summary": found, "rows": rows}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
