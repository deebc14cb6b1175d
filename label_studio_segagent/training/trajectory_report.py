"""What a file of trajectories holds, in numbers and in pictures."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PilImage

from ..errors import InputError
from ..hlmat.trajectory import Trajectory, read_trajectories
from ..pictures import annotator_strip, sheet
from .trainer import open_image
from .trajectories import KINDS

__all__ = ["TrajectoryStatistics", "draw_trajectories", "summarise"]


@dataclass(slots=True)
class _Tally:
    """Counts of a group of trajectories."""

    curves: list[list[float]] = field(default_factory=list)
    stopped: Counter[str] = field(default_factory=Counter)
    clicks: Counter[bool] = field(default_factory=Counter)

    def add(self, trajectory: Trajectory) -> None:
        self.curves.append([step.true_iou for step in trajectory.steps if step.true_iou is not None] or [0.0])
        self.stopped[str(trajectory.meta.get("stopped", "unknown"))] += 1
        self.clicks.update(bool(click.positive) for click in trajectory.clicks)

    def summary(self) -> dict[str, Any]:
        longest = max(map(len, self.curves))
        held = np.array([curve + curve[-1:] * (longest - len(curve)) for curve in self.curves])
        made = sum(self.clicks.values())
        steps = Counter(len(curve) for curve in self.curves)
        return {
            "trajectories": len(self.curves),
            "steps": {str(number): steps[number] for number in sorted(steps)},
            "clicks": made,
            "positive": round(self.clicks[True] / made, 4) if made else None,
            "stopped": dict(self.stopped.most_common()),
            "iou_by_click": [round(float(value), 4) for value in held.mean(axis=0)],
            "reached": [sum(len(curve) > clicks for curve in self.curves) for clicks in range(longest)],
        }


@dataclass(frozen=True, slots=True)
class TrajectoryStatistics:
    """What is in a file of trajectories.

    Attributes:
        objects: Different objects.
        kinds: For each kind of trajectory (see `training.trajectories.KINDS`): `trajectories`; `steps`, how many have
            so many states; `clicks` and the share of them that is `positive`; `stopped`, how many for which reason;
            `iou_by_click`, the mean IoU after 0, 1, 2, … clicks, where a trajectory that has ended counts with its
            last; `reached`, how many trajectories have so many clicks.
        labels: For each label: objects, and clicks and last IoU of its trajectories from nothing, mean.
        examples: Some of the trajectories, chosen by chance, the same each time.
    """

    objects: int
    kinds: Mapping[str, Mapping[str, Any]]
    labels: Mapping[str, Mapping[str, Any]]
    examples: Sequence[Trajectory]

    def to_json(self) -> dict[str, Any]:
        """Everything but the examples."""
        return {"objects": self.objects, "kinds": self.kinds, "labels": self.labels}


def summarise(path: Path, examples: int = 0) -> TrajectoryStatistics:
    """Read a JSONL file of trajectories and count.

    Args:
        path: The file.
        examples: How many trajectories to pick; those that have no click only where there are too few others.

    Raises:
        InputError: The file is not one of trajectories.
    """
    kinds: dict[str, _Tally] = {}
    labels: dict[str, dict[str, list[float]]] = {}
    objects: dict[str, set[str]] = {}
    picked: list[tuple[tuple[bool, str], Trajectory]] = []
    for trajectory in read_trajectories(path):
        meta = trajectory.meta
        kind, key = str(meta.get("kind", "other")), str(meta.get("key", meta.get("object")))
        kinds.setdefault(kind, _Tally()).add(trajectory)
        objects.setdefault(trajectory.prompt, set()).add(key)
        if kind == "empty":
            values = labels.setdefault(trajectory.prompt, {"clicks": [], "iou": []})
            values["clicks"].append(len(trajectory.clicks))
            values["iou"].append(trajectory.steps[-1].true_iou or 0.0)
        chance = hashlib.blake2b(f"{key} {kind} {meta.get('number')}".encode(), digest_size=8).hexdigest()
        picked.append(((not trajectory.clicks, chance), trajectory))
        picked = sorted(picked, key=lambda pair: pair[0])[:examples]
    return TrajectoryStatistics(
        len(set().union(*objects.values())),
        {kind: kinds[kind].summary() for kind in sorted(kinds, key=[*KINDS, *kinds].index)},
        {
            label: {
                "objects": len(keys),
                **{name: round(float(np.mean(values)), 4) for name, values in labels.get(label, {}).items()},
            }
            for label, keys in sorted(objects.items(), key=lambda item: -len(item[1]))
        },
        [trajectory for _, trajectory in picked],
    )


def draw_trajectories(trajectories: Sequence[Trajectory], out: Path) -> int:
    """Draw trajectories, one below the other, into a picture file; returns how many had an image that could be read."""
    strips = []
    for trajectory in trajectories:
        try:
            strips.append(annotator_strip(open_image(trajectory), trajectory))
        except InputError:
            continue
    if strips:
        PilImage.fromarray(sheet(strips, columns=1)).save(out)
    return len(strips)
