"""One optimisation step of the click segmenter: encode crops once, then click, decode, learn, and click again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..segmenters.embedded_decoder import Prompt
from ..segmenters.embedded_net import SegmenterNet
from .click_sampling import ClickList, clicked_error, earlier_clicks, next_click
from .segmenter_data import CropDataset, CropSample, Target

__all__ = ["StepReport", "asked_loss", "click_loss", "mask_ious", "mask_loss", "train_on"]


@dataclass(frozen=True, slots=True)
class StepReport:
    """Means over the targets of one step.

    Attributes:
        loss: Of all decoder passes.
        iou_first: IoU after the first decoder pass.
        iou_last: IoU after the last one.
        quality_error: Absolute error of the predicted IoU.
    """

    loss: float
    iou_first: float
    iou_last: float
    quality_error: float


def mask_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Normalised focal loss plus soft Dice, one number per target.

    The normalised focal loss (Sofiiuk et al., arXiv 2102.06583) keeps the total weight constant while the easy pixels
    fade, so that gradients do not vanish as the mask gets good.

    Args:
        logits: (N, 1, h, w).
        truth: float (N, 1, h, w), 0 or 1.
    """
    cross = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    probability = torch.sigmoid(logits)
    error = (probability - truth).abs().detach()
    focus = error.square()
    focus = focus * (focus[0, 0].numel() / (focus.sum((1, 2, 3), keepdim=True) + 1.0)).clamp(max=50.0)
    focal = (focus * cross).mean((1, 2, 3))
    overlap = (probability * truth).sum((1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2, 3)) + truth.sum((1, 2, 3)) + 1)
    return focal + dice + 0.5 * cross.mean((1, 2, 3))


def mask_ious(masks: Tensor, others: Tensor) -> Tensor:
    """The IoUs (N,) of masks, bool (N, 1, h, w), with others; 0 for two empty ones."""
    return (masks & others).sum((1, 2, 3)) / (masks | others).sum((1, 2, 3)).clamp(min=1)


def click_loss(logits: Tensor, prompt: Prompt) -> Tensor:
    """How far the mask contradicts the clicks: the mean cross entropy at the clicked places.

    Args:
        logits: (N, 1, h, w), at half the resolution that the clicks are in.
        prompt: The clicks.
    """
    size = torch.tensor([logits.shape[3] * 2, logits.shape[2] * 2], dtype=torch.float32)
    grid = ((2 * prompt.points + 1) / size - 1)[:, :, None]
    values = F.grid_sample(logits, grid, "bilinear", "border", align_corners=False)[:, 0, :, 0]
    clicked = prompt.labels.abs()
    return (F.softplus(-prompt.labels * values) * clicked).sum() / clicked.sum().clamp(min=1)


def asked_loss(logits: Tensor, truth: Tensor, asked: Tensor) -> Tensor:
    """How much of what the newest clicks asked for was not done: the mean cross entropy over those parts.

    Args:
        logits: (N, 1, h, w).
        truth: Likewise, 0 or 1.
        asked: Likewise, 1 where the newest click asked for a change; targets without a part do not count.
    """
    cross = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * asked
    size = asked.sum((1, 2, 3))
    return (cross.sum((1, 2, 3)) / size.clamp(min=1)).sum() / (size > 0).sum().clamp(min=1)


class _Session:
    """The prompts of all targets of a batch while clicks are added."""

    def __init__(self, targets: Sequence[Target], size: int, rng: np.random.Generator) -> None:
        self.targets, self.size, self.rng = targets, size, rng
        self.asked = torch.zeros(len(targets), 1, size // 2, size // 2)
        self.clicks: list[ClickList] = [self._start(t) for t in targets]
        quarter = size // 4
        blank = np.zeros((quarter, quarter), np.float32)
        self.prior = torch.from_numpy(np.stack([blank if t.prior is None else t.prior for t in targets]))[:, None]
        self.has_prior = torch.tensor([float(t.prior is not None) for t in targets])
        self.box = torch.tensor([t.box or (0.0, 0.0, 0.0, 0.0) for t in targets], dtype=torch.float32)

    def _start(self, target: Target) -> ClickList:
        rng = self.rng
        if target.clicks:
            return list(target.clicks)
        if target.prior is not None:
            before = np.asarray(target.prior.repeat(2, 0).repeat(2, 1) > 0.5)
            clicks = earlier_clicks(
                target.truth, int(rng.choice([0, 1, 2, 3, 5, 9], p=[0.2, 0.3, 0.2, 0.1, 0.1, 0.1])), rng
            )
            if rng.random() < 0.5:
                self._add(clicks, target.truth, before)
            return clicks
        if target.box is not None and rng.random() < 0.7:
            return []
        clicks = earlier_clicks(target.truth, int(rng.integers(1, 6)), rng) if rng.random() < 0.08 else []
        self._add(clicks, target.truth, np.zeros_like(target.truth))
        return clicks

    def _add(
        self, clicks: ClickList, truth: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_]
    ) -> tuple[float, float, float] | None:
        click = next_click(truth, mask, clicks, self.rng)
        if click is not None:
            clicks.append(click)
        return click

    def prompt(self) -> Prompt:
        count = max(1, max(len(c) for c in self.clicks))
        packed = np.zeros((len(self.clicks), count, 3), np.float32)
        for row, clicks in zip(packed, self.clicks, strict=True):
            if clicks:
                row[: len(clicks)] = clicks
        # The masks that clicks are drawn from have half the crop's resolution.
        points = packed[..., :2] * 2 + 0.5
        return Prompt(torch.from_numpy(points), torch.from_numpy(packed[..., 2]), self.prior, self.has_prior, self.box)

    def advance(self, logits: Tensor, forget: bool) -> None:
        """Feed the answer back and click on its largest error."""
        self.prior = F.avg_pool2d(torch.sigmoid(logits), 2)
        self.has_prior = torch.full((len(self.targets),), 0.0 if forget else 1.0)
        self.asked.zero_()
        for row, (target, mask) in enumerate(zip(self.targets, (logits[:, 0] > 0).numpy(), strict=True)):
            click = self._add(self.clicks[row], target.truth, mask)
            if click is not None:
                self.asked[row, 0] = torch.from_numpy(clicked_error(target.truth, mask, click))


def train_on(
    net: SegmenterNet, samples: Sequence[CropSample], dataset: CropDataset, rng: np.random.Generator, *, steps: int,
    frozen: int,
) -> StepReport:  # fmt: skip
    """Accumulate the gradients of one batch into `net`.

    Args:
        net: In training mode; where nothing that `encode` uses needs gradients, the decoder alone learns.
        samples: Crops of one size.
        dataset: Where they come from; it is told the network's answers.
        rng: Source of chance.
        steps: Decoder passes that are learned from; sometimes some more come before, without learning.
        frozen: Encoder blocks without gradient.
    """
    size = samples[0].image.shape[0]
    targets = [t for s in samples for t in s.targets]
    owner = torch.tensor([i for i, s in enumerate(samples) for _ in s.targets])
    images = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2).float()
    truth = torch.from_numpy(np.stack([t.truth for t in targets])).float()[:, None]
    features = net.encode(images, frozen)
    learned = features[0].requires_grad
    leaves = [f.detach().requires_grad_(learned) for f in features]
    session = _Session(targets, size, rng)
    forget = rng.random() < 0.06
    if rng.random() < 0.45:
        # Late clicks are learned too, without learning from all those before.
        with torch.no_grad():
            for _ in range(int(rng.choice([1, 2, 3, 5, 8, 12]))):
                logits, _score = net.decode([f.index_select(0, owner) for f in features], session.prompt())
                session.advance(logits, forget)
    ious: list[Tensor] = []
    losses: list[float] = []
    error, kept = 0.0, int(rng.integers(steps))
    for step in range(steps):
        prompt = session.prompt()
        logits, score = net.decode([f.index_select(0, owner) for f in leaves], prompt)
        with torch.no_grad():
            iou = mask_ious(logits > 0, truth > 0.5)
            error += float((torch.sigmoid(score) - iou).abs().mean()) / steps
        loss = mask_loss(logits, truth).mean() + 0.3 * F.binary_cross_entropy_with_logits(score, iou)
        loss = loss + 0.2 * click_loss(logits, prompt) + 0.25 * asked_loss(logits, truth, session.asked)
        (loss / steps).backward()  # type: ignore[no-untyped-call]
        ious.append(iou)
        losses.append(float(loss.detach()))
        used = [list(c) for c in session.clicks]
        session.advance(logits.detach(), forget)
        if step == kept:
            for index, (target, clicks) in enumerate(zip(targets, used, strict=True)):
                if target.key is not None:
                    matrix = samples[int(owner[index])].matrix
                    dataset.remember(target.key, matrix, session.prior[index, 0].numpy(), clicks)
    # The decoder's gradients have met in the leaves: one backward pass of the encoder serves all of them.
    if learned:
        torch.autograd.backward(features, [f.grad for f in leaves])
    return StepReport(sum(losses) / steps, float(ious[0].mean()), float(ious[-1].mean()), error)
