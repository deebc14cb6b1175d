"""HLMAT trajectories for the policy: F_sim clicks with the embedded segmenter, and every mask on the way is kept.

Rollouts start from where the policy's locator says that the object is (as the agent does), from nothing, or from a
corrupted mask. Running it again goes on with objects that have none yet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from ..hlmat.arrays import Box
from ..hlmat.trajectory import Sample, Trajectory, encode_mask, read_trajectories, write_trajectories
from ..policies.embedded import EmbeddedPolicy
from .mask_corruption import corrupt_mask
from .policy_data import Instance, Scene, located_box
from .trajectories import TrajectorySettings, make_trajectory

__all__ = ["StoredRollout", "make_states", "read_states"]

_RULES = TrajectorySettings(stop_iou=0.95, least_gain=-math.inf, max_clicks=3)
"""Clicks that make a mask worse are kept: such masks are there to be judged."""


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """What is kept of a rollout.

    Attributes:
        box: (x0, y0, x1, y1) pixels that it was given, or None.
        masks: Those that it went through, COCO's compressed RLE.
    """

    box: Box | None
    masks: tuple[dict[str, Any], ...]


def read_states(path: Path) -> dict[str, StoredRollout]:
    """The rollouts of a file by the key of their object; nothing when there is no such file."""
    found: dict[str, StoredRollout] = {}
    for trajectory in read_trajectories(path) if path.exists() else ():
        masks = tuple(encode_mask(s.mask) for s in trajectory.steps if s.mask.any())
        found[str(trajectory.meta.get("object"))] = StoredRollout(trajectory.box, masks)
    return found


def make_states(
    scenes: Sequence[Scene], policy: EmbeddedPolicy, path: Path, *, seconds: float, per_scene: int = 3, seed: int = 0,
) -> int:  # fmt: skip
    """Append trajectories to `path` until every object has one or the time is up; returns how many were added.

    Args:
        scenes: Annotated images.
        policy: Says where the objects are; its segmenter makes the masks.
        path: A JSONL file.
        seconds: Time budget.
        per_scene: Objects per image, largest first.
        seed: Of everything random.
    """
    done = {t.meta.get("object") for t in read_trajectories(path)} if path.exists() else set()
    rng = np.random.default_rng((seed, len(done)))
    deadline, added = time.monotonic() + seconds, 0
    path.parent.mkdir(parents=True, exist_ok=True)
    for index in track(rng.permutation(len(scenes)), "trajectories"):
        scene = scenes[int(index)]
        missing = [i for i in scene.instances[:per_scene] if i.key not in done]
        if not missing:
            continue
        if time.monotonic() > deadline:
            break
        made = list(_rollouts(scene, missing, policy, rng))
        write_trajectories(path, made)
        added += len(made)
    return added


def _rollouts(
    scene: Scene, instances: Sequence[Instance], policy: EmbeddedPolicy, rng: np.random.Generator
) -> Iterator[Trajectory]:
    segmenter = policy.segmenter
    pixels = scene.image()
    state = segmenter.set_image(pixels)
    for instance in instances:
        sample = Sample(pixels, instance.label, instance.mask(), path=str(scene.path), meta={"object": instance.key})
        chance = rng.random()
        box = located_box(policy, scene, instance, rng) if chance < 0.7 else None
        start = None
        if chance > 0.85:
            others = [i.mask() for i in scene.instances if i is not instance]
            start = corrupt_mask(sample.mask, others[:4], rng)
        yield make_trajectory(sample, segmenter, _RULES, start=start, box=box, state=state)
