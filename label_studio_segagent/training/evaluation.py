"""How good an agent is on annotated images: what decides whether a new version may serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..agent.agent import SegAgent
from ..hlmat.actions import Finish
from ..hlmat.arrays import Image, Mask
from ..hlmat.metrics import iou
from ..hlmat.trajectory import Step, Trajectory, decode_mask

__all__ = ["LabelledImage", "Measured", "match_masks", "measure", "pair_masks", "to_trajectories"]

_AT_ONCE = 16
_MISSED = 0.1


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """Everything of one label in one image.

    Attributes:
        image: Where the image is; what opens it depends on where the items are from.
        prompt: Label or referring expression.
        masks: One for every instance, COCO's compressed RLE; none where there is nothing of the label.
        task: Identifies what the image belongs to: items of one task are never torn apart.
        weight: How much it counts in training.
    """

    image: str
    prompt: str
    masks: tuple[Mapping[str, Any], ...]
    task: str = ""
    weight: float = 1.0

    def decoded(self) -> list[Mask]:
        """The masks, bool (H, W)."""
        return [decode_mask(dict(mask)) for mask in self.masks]


@dataclass(frozen=True, slots=True)
class Measured:
    """What an agent reached.

    Attributes:
        miou: Sum of the IoUs of true masks with those matched to them, over the number of true masks and of superfluous
            ones. 1 where there is nothing and nothing was found.
        matched: Mean IoU over the true masks alone, 0 for missed ones: what superfluous masks do not lower.
        objects: True masks.
        extra: Superfluous ones.
        missed: True masks that no found one overlaps with an IoU of at least 0.1.
    """

    miou: float
    matched: float
    objects: int
    extra: int
    missed: int


def measure(
    agent: SegAgent,
    items: Sequence[LabelledImage],
    read: Callable[[str], Image],
    progress: Callable[[float], None] = lambda share: None,
) -> Measured:
    """Let an agent segment every instance and compare.

    Args:
        agent: As it would pre-annotate.
        items: What is true.
        read: Gives the image of a item, RGB uint8 (H, W, 3).
        progress: Told the share done.
    """
    ious: list[float] = []
    extra = 0
    for start in range(0, len(items), _AT_ONCE):
        group = items[start : start + _AT_ONCE]
        found = agent.segment_all_batch([(read(item.image), item.prompt) for item in group])
        for item, rollouts in zip(group, found, strict=True):
            overlaps, more = match_masks([r.mask for r in rollouts], item.decoded())
            ious += overlaps
            extra += more
        progress(min(1.0, (start + len(group)) / len(items)))
    count = len(ious) + extra
    matched = float(np.mean(ious)) if ious else 1.0
    missed = sum(value < _MISSED for value in ious)
    return Measured(float(np.sum(ious)) / count if count else 1.0, matched, len(ious), extra, missed)


def match_masks(found: Sequence[Mask], true: Sequence[Mask]) -> tuple[list[float], int]:
    """The IoU of each true mask with the found one matched to it, best pairs first, and how many were superfluous.

    Returns:
        One IoU for each true mask, 0 for a missed one; the number of found masks without a true one.
    """
    pairs = pair_masks(found, true)
    return [value for _, value in pairs], len(found) - sum(index >= 0 for index, _ in pairs)


def pair_masks(found: Sequence[Mask], true: Sequence[Mask]) -> list[tuple[int, float]]:
    """For each true mask the index of the found one that it is matched to, or -1, and their IoU, or 0.

    Best pairs come first; a found mask is matched once. All are bool (H, W).
    """
    table = np.array([[iou(f, t) for f in found] for t in true]).reshape(len(true), len(found))
    pairs = [(-1, 0.0)] * len(true)
    while table.size and table.max() > 0:
        row, column = np.unravel_index(int(table.argmax()), table.shape)
        pairs[int(row)] = int(column), float(table[row, column])
        table[row, :] = table[:, column] = 0.0
    return pairs


def to_trajectories(items: Sequence[LabelledImage]) -> list[Trajectory]:
    """Finished rollouts that say what items say: their last masks are right.

    A label of which there is nothing gives one with an empty mask. The meta's "task" and "weight" are the item's.
    """
    found = []
    for item in items:
        meta = {"task": item.task, "weight": item.weight}
        for mask in item.decoded():
            found.append(Trajectory(item.prompt, item.image, None, [Step(mask, Finish(), 1.0, 1.0)], dict(meta)))
        if not item.masks:
            nothing = Step(np.zeros((1, 1), bool), Finish(), 1.0, 1.0)
            found.append(Trajectory(item.prompt, item.image, None, [nothing], meta | {"absent": True}))
    return found
