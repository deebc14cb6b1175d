"""What the judge learns from: objects, cut out and augmented anew each time, with masks of all kinds and qualities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..hlmat.arrays import mask_box
from ..policies.embedded_judge import Judge
from ..segmenters.embedded_decoder import Prompt
from ..segmenters.embedded_net import SegmenterNet
from .mask_corruption import corrupt_mask
from .policy_data import Scene
from .segmenter_data import crop_image, crop_mask, crop_matrix
from .segmenter_steps import mask_ious, mask_loss

__all__ = ["JudgeBatch", "JudgeDataset", "judging_loss"]

Bools = npt.NDArray[np.bool_]
_LEAST = 40
"""Cells of stride 2 that an object or a mask covers at least."""
_CORRECT = 0.15
"""Share of masks that are as they should be."""
_DRAWN = 0.2
"""Share of masks that the segmenter draws itself, after a click or two."""


@dataclass(slots=True)
class JudgeBatch:
    """Crops and R masks to judge.

    Attributes:
        images: (B, 3, S, S), RGB in 0..255.
        owners: (R,) the crop of each mask.
        masks: bool (R, 1, S / 2, S / 2).
        wanted: Likewise, what they should be.
        points: (R, 2, 2), x and y in pixels of the crop, of positive clicks on the object.
        labels: (R, 2), 1 for a click, 0 for none; where there is one the segmenter's answer replaces the mask.
    """

    images: Tensor
    owners: Tensor
    masks: Tensor
    wanted: Tensor
    points: Tensor
    labels: Tensor


class JudgeDataset:
    """Draws batches.

    Args:
        scenes: Annotated images; those without an object are passed over.
        side: Of the crops, in pixels.
    """

    def __init__(self, scenes: Sequence[Scene], side: int) -> None:
        self.side = side
        self.scenes = [s for s in scenes if s.instances]

    def batch(self, rng: np.random.Generator, crops: int, masks: int) -> JudgeBatch:
        """Draw `crops` crops of one object each, with `masks` masks of it."""
        images: list[npt.NDArray[np.uint8]] = []
        wanted: list[Bools] = []
        shown: list[Bools] = []
        while len(images) < crops:
            made = self._crop(rng, masks)
            if made is not None:
                images.append(made[0])
                wanted += [made[1]] * masks
                shown += made[2]
        points, labels = np.zeros((len(shown), 2, 2), np.float32), np.zeros((len(shown), 2), np.float32)
        for row in np.flatnonzero(rng.random(len(shown)) < _DRAWN):
            ys, xs = np.nonzero(wanted[row])
            for click in range(int(rng.integers(1, 3))):
                at = int(rng.integers(len(ys)))
                points[row, click], labels[row, click] = (xs[at] * 2 + 0.5, ys[at] * 2 + 0.5), 1
        return JudgeBatch(
            torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float(),
            torch.arange(crops).repeat_interleave(masks), torch.from_numpy(np.stack(shown))[:, None],
            torch.from_numpy(np.stack(wanted))[:, None], torch.from_numpy(points), torch.from_numpy(labels),
        )  # fmt: skip

    def _crop(self, rng: np.random.Generator, masks: int) -> tuple[npt.NDArray[np.uint8], Bools, list[Bools]] | None:
        """A crop around an object or around a mask of it, the object, and masks of it; None if it cannot be seen."""
        scene = self.scenes[int(rng.integers(len(self.scenes)))]
        instance = scene.instances[int(rng.integers(len(scene.instances)))]
        truth = instance.mask()
        others = [i.mask() for i in scene.instances if i is not instance][:4]
        # At run time it is the mask that says where to look.
        box = mask_box(truth if rng.random() < 0.4 else corrupt_mask(truth, (), rng))
        if box is None:
            return None
        matrix = crop_matrix(box, True, self.side, rng)
        target, *near = (crop_mask(mask, matrix, self.side) for mask in (truth, *others))
        if np.count_nonzero(target) < _LEAST:
            return None
        near = [mask for mask in near if np.count_nonzero(mask) >= _LEAST]
        shown: list[Bools] = []
        while len(shown) < masks:
            mask = target if rng.random() < _CORRECT else corrupt_mask(target, near, rng)
            # Another object's mask is a good one: the judge knows no labels.
            if mask.any() and not any(np.array_equal(mask, other) for other in near):
                shown.append(mask)
        return crop_image(scene.image(), matrix, self.side, rng), target, shown


def judging_loss(judge: Judge, clicker: SegmenterNet, batch: JudgeBatch) -> tuple[Tensor, dict[str, float]]:
    """The loss of the judge, and what it is made of.

    `drawn` is the IoU of the masks that it draws with the right ones, `rating_error` the absolute error of its ratings.

    Args:
        judge: What learns.
        clicker: The segmenter, whose maps it looks at.
        batch: Masks.
    """
    with torch.no_grad():
        features = [f.index_select(0, batch.owners) for f in clicker.encode(batch.images)]
        masks = _with_answers(clicker, features, batch)
        ious = mask_ious(masks, batch.wanted)
    wanted = batch.wanted.float()
    logits, rating = judge(features, F.avg_pool2d(masks.float(), 2))
    error = (torch.sigmoid(rating) - ious).abs().mean()
    drawing = mask_loss(logits, wanted).mean()
    loss = drawing + 1.5 * F.binary_cross_entropy_with_logits(rating, ious) + error
    drawn = mask_ious(logits > 0, batch.wanted).mean()
    return loss, {"loss": float(loss.detach()), "drawn": float(drawn), "rating_error": float(error.detach())}


def _with_answers(clicker: SegmenterNet, features: Sequence[Tensor], batch: JudgeBatch) -> Tensor:
    """The masks, those with clicks replaced by the segmenter's answers to them."""
    rows = torch.nonzero(batch.labels.any(1))[:, 0]
    masks = batch.masks.clone()
    if len(rows):
        quarter = masks.shape[-1] // 2
        prompt = Prompt(
            batch.points[rows], batch.labels[rows], torch.zeros(len(rows), 1, quarter, quarter),
            torch.zeros(len(rows)), torch.zeros(len(rows), 4),
        )  # fmt: skip
        answers = clicker.decode([f[rows] for f in features], prompt)[0] > 0
        usable = answers.sum((1, 2, 3)) >= _LEAST
        masks[rows[usable]] = answers[usable]
    return masks
