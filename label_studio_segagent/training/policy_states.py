"""HLMAT trajectories for the policy: F_sim clicks with the embedded segmenter, and every mask on the way is kept.

Rollouts start from a box that is a little off (as the agent does), from nothing, or from a corrupted mask. Running it
again goes on with objects that have none yet.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pycocotools import mask as rle_codec
from rich.progress import track

from ..hlmat.actions import Click
from ..hlmat.annotator import SimulatedAnnotator
from ..hlmat.metrics import iou
from ..hlmat.trajectory import Step, Trajectory, encode_mask, read_trajectories, write_trajectories
from ..segmenters.base import ImageState
from ..segmenters.embedded import EmbeddedSegmenter
from .mask_corruption import corrupt_mask
from .policy_batches import shaken_box
from .policy_data import Instance, Scene

__all__ = ["StoredMasks", "make_states", "read_states"]

_CLICKS = 3
_STOP = 0.95


class StoredMasks(Sequence[npt.NDArray[np.bool_]]):
    """Masks, bool (H, W), decoded when they are asked for.

    Args:
        rles: COCO's compressed RLEs.
    """

    def __init__(self, rles: Sequence[object]) -> None:
        self._rles = list(rles)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._rles)

    def __getitem__(self, index: object) -> npt.NDArray[np.bool_]:  # type: ignore[override]
        """The mask at an index."""
        return np.ascontiguousarray(rle_codec.decode(self._rles[index]), np.bool_)  # type: ignore[call-overload]


def read_states(path: Path) -> dict[str, StoredMasks]:
    """The masks of a file of trajectories, by the key of their object; nothing when there is no such file."""
    found: dict[str, list[object]] = {}
    for trajectory in read_trajectories(path) if path.exists() else ():
        masks = [encode_mask(s.mask) for s in trajectory.steps if s.mask.any()]
        found.setdefault(str(trajectory.meta.get("object")), []).extend(masks)
    return {key: StoredMasks(masks) for key, masks in found.items() if masks}


def make_states(
    scenes: Sequence[Scene], segmenter: EmbeddedSegmenter, path: Path, *, seconds: float, per_scene: int = 3,
    seed: int = 0,
) -> int:  # fmt: skip
    """Append trajectories to `path` until every object has one or the time is up; returns how many were added."""
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
        state = segmenter.set_image(scene.image())
        made = list(_rollouts(scene, missing, segmenter, state, rng))
        write_trajectories(path, made)
        added += len(made)
    return added


def _rollouts(
    scene: Scene, instances: Sequence[Instance], segmenter: EmbeddedSegmenter, state: ImageState,
    rng: np.random.Generator,
) -> Iterator[Trajectory]:  # fmt: skip
    annotator = SimulatedAnnotator(stop_iou=_STOP)
    for instance in instances:
        target, chance = instance.mask(), rng.random()
        box = shaken_box(instance.box, rng) if chance < 0.6 else None
        clicks: list[Click] = []
        prior: npt.NDArray[np.bool_] | npt.NDArray[np.float32] | None = None
        mask = np.zeros_like(target)
        if chance > 0.85:
            others = [i.mask() for i in scene.instances if i is not instance]
            mask = prior = corrupt_mask(target, others[:4], rng)
        if box is not None:
            answer = segmenter.predict(state, (), box=box)
            mask, prior = answer.mask, answer.logits
        trajectory = Trajectory(instance.label, str(scene.path), box, meta={"object": instance.key})
        for _ in range(_CLICKS + 1):
            action = annotator.next_action(mask, target, clicks)
            trajectory.steps.append(Step(mask, action, true_iou=iou(mask, target)))
            if not isinstance(action, Click) or len(clicks) == _CLICKS:
                break
            clicks.append(action)
            answer = segmenter.predict(state, clicks, box=box, prior=prior)
            mask, prior = answer.mask, answer.logits
        yield trajectory
