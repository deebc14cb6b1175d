"""What judging (the PRM) and searching gain: mIoU against clicks, without and with predicted IoU, for K candidates.

python benchmarks/search.py --data /data --out results.json

`--data` holds the sets coco and ecssd (COCO format, `val.json`). Every object is segmented from an empty mask, without
a box. Two policies: `oracle`, F_sim's clicks badly aimed, which knows the true IoU, shows what searching can gain; the
embedded one is what this package ships. "blind" makes all clicks and takes the last mask, as in the paper's table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agent import read_image, read_val
from rich.console import Console
from rich.progress import track
from rich.table import Table

from label_studio_segagent import SegAgent
from label_studio_segagent.hlmat.actions import Click
from label_studio_segagent.hlmat.annotator import SimulatedAnnotator
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.policies import Decision, Observation, Policy
from label_studio_segagent.policies.embedded import ActSettings, EmbeddedPolicy
from label_studio_segagent.policies.oracle import OraclePolicy
from label_studio_segagent.segmenters import Segmenter
from label_studio_segagent.segmenters.embedded import EmbeddedSegmenter


class Trembling(OraclePolicy):
    """F_sim's clicks, off by a share of the object's extent; every candidate trembles anew."""

    def __init__(self, sample: Sample, tremor: float, seed: int) -> None:
        super().__init__([sample], SimulatedAnnotator(stop_iou=1.0))
        self.spread = tremor * float(np.sqrt(np.count_nonzero(sample.mask)))
        self.rng = np.random.default_rng(seed)

    def act(self, observations: Sequence[Observation]) -> list[Decision]:
        return [decisions[0] for decisions in self.propose(observations, 1)]

    def propose(self, observations: Sequence[Observation], count: int) -> list[list[Decision]]:
        pairs = zip(observations, super().act(observations), strict=True)
        return [[self._shaken(seen, decision) for _ in range(count)] for seen, decision in pairs]

    def _shaken(self, seen: Observation, decision: Decision) -> Decision:
        if not isinstance(decision.action, Click):
            return decision
        x, y = np.array([decision.action.x, decision.action.y]) + self.rng.normal(0, self.spread, 2)
        height, width = seen.mask.shape
        click = Click(float(np.clip(x, 0, width - 1)), float(np.clip(y, 0, height - 1)), decision.action.positive)
        return replace(decision, action=click)


class Blind(Policy):
    """Another policy without its ratings."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.grammar, self.version = policy, policy.grammar, f"blind-{policy.version}"

    def locate_batch(self, items: Any) -> Any:
        return self.policy.locate_batch(items)

    def act(self, observations: Sequence[Observation]) -> list[Decision]:
        return [replace(decision, predicted_iou=None) for decision in self.policy.act(observations)]


def agent_for(
    policy: str, mode: str, clicks: int, sample: Sample, segmenter: Segmenter, embedded: dict[str, Policy], seed: int
) -> SegAgent:
    """The agent of one cell of the table."""
    if policy == "oracle":
        chosen: Policy = Trembling(sample, 0.3, seed)
    else:
        chosen = embedded["tireless" if mode == "blind" else "normal"]
    if mode == "blind":
        return SegAgent(Blind(chosen), segmenter, max_clicks=clicks)
    return SegAgent(chosen, segmenter, max_clicks=clicks, candidates=int(mode))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the sets")
    parser.add_argument("--sets", nargs="+", default=["coco", "ecssd"])
    parser.add_argument("--limit", type=int, default=60, help="images per set, 0 for all")
    parser.add_argument("--clicks", type=int, nargs="+", default=[1, 3, 5, 7])
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--policies", nargs="+", default=["oracle", "embedded"], choices=["oracle", "embedded"])
    parser.add_argument("--weights", type=Path, help="of the embedded policy; by default those that ship")
    parser.add_argument("--segmenter", type=Path, help="weights of the segmenter; by default those that ship")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    segmenter = EmbeddedSegmenter(arguments.segmenter)
    embedded: dict[str, Policy] = {}
    if "embedded" in arguments.policies:
        embedded["normal"] = EmbeddedPolicy(arguments.weights, segmenter)
        embedded["tireless"] = EmbeddedPolicy(arguments.weights, segmenter, ActSettings(thinnest=0.0, good=1.1))
    modes = ["blind", *(str(k) for k in arguments.candidates)]
    found: dict[tuple[str, str, str, int], list[float]] = {}
    for name in arguments.sets:
        for number, (path, objects) in enumerate(track(read_val(arguments.data / name, arguments.limit), name)):
            image, (label, mask) = read_image(path), objects[0]
            sample = Sample(image, label, mask)
            for policy in arguments.policies:
                for mode in modes:
                    for clicks in arguments.clicks:
                        agent = agent_for(policy, mode, clicks, sample, segmenter, embedded, number)
                        rollout = agent.refine(image, label, np.zeros_like(mask))
                        found.setdefault((name, policy, mode, clicks), []).append(iou(rollout.mask, mask))
    results = [
        {"set": n, "policy": p, "candidates": m, "clicks": c, "objects": len(v), "miou": float(np.mean(v))}
        for (n, p, m, c), v in found.items()
    ]
    table = Table("set", "policy", "candidates", *(f"{c} clicks" for c in arguments.clicks), title="mIoU")
    for name in arguments.sets:
        for policy in arguments.policies:
            for mode in modes:
                cells = [f"{np.mean(found[name, policy, mode, c]):.3f}" for c in arguments.clicks]
                table.add_row(name, policy, f"{mode}" if mode == "blind" else f"K={mode}", *cells)
    Console(width=120).print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
