"""The losses of the policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..policies.embedded_net import Located, Locator, PolicyNet
from .policy_locating import LocatorBatch
from .policy_reviewing import ReviewBatch

__all__ = ["Report", "heat_target", "locating_loss", "locator_loss", "reviewing_loss"]

Report = dict[str, float]
"""Means over one batch, by name."""


def heat_target(boxes: Tensor, side: int) -> Tensor:
    """For each box (n, 4) in cells a bump at its centre, as wide as the box (TTFNet, arXiv 1909.00700).

    Returns:
        (n, side, side).
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    spread = ((boxes[:, 2:] - boxes[:, :2]) * 0.54 / 6).clamp(min=0.4)
    cells = torch.arange(side, dtype=torch.float32) + 0.5
    # The cell that holds the centre gets exactly 1.
    middle = centre.floor() + 0.5
    across = torch.exp(-((cells[None] - middle[:, :1]) ** 2) / (2 * spread[:, :1] ** 2))
    down = torch.exp(-((cells[None] - middle[:, 1:]) ** 2) / (2 * spread[:, 1:] ** 2))
    return down[:, :, None] * across[:, None]


def locator_loss(
    found: Located, scenes: Sequence[Tensor | None], region: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """How wrong the locator is.

    Args:
        found: Its answer about N scenes.
        scenes: For each the boxes (n, 4) of the instances, in cells; None where instances are not told apart.
        region: (N, 1, h, w), share of each cell that is an instance.
        counts: (N, 1, h, w), 0 where nothing is known.

    Returns:
        The losses of the centres, the boxes and the region.
    """
    side = found.heat.shape[-1]
    heat = torch.zeros_like(found.heat)
    losses: list[Tensor] = []
    weights: list[Tensor] = []
    cells = torch.arange(side, dtype=torch.float32) + 0.5
    apart = torch.ones_like(found.heat)
    for row, boxes in enumerate(scenes):
        if boxes is None:  # where their centres are is not known
            apart[row] = (region[row] < 0.05).float()
        if boxes is None or not len(boxes):
            continue
        bumps = heat_target(boxes, side)
        heat[row, 0], owner = bumps.max(0)
        # Boxes are learned around the centres.
        picked = heat[row, 0] > 0.3
        target = boxes[owner[picked]]
        down, across = torch.nonzero(picked, as_tuple=True)
        distances = found.boxes[row, :, down, across].T
        x, y = cells[across], cells[down]
        predicted = torch.stack([x - distances[:, 0], y - distances[:, 1], x + distances[:, 2], y + distances[:, 3]], 1)
        losses.append(1 - _giou(predicted, target))
        weight = heat[row, 0][picked]
        # Each instance counts as much as any other.
        per = torch.zeros(len(boxes)).index_add(0, owner[picked], weight)
        weights.append(weight / per[owner[picked]])
    known = torch.maximum(counts * apart, (heat > 0.05).float())
    probability = torch.sigmoid(found.heat).clamp(1e-4, 1 - 1e-4)
    centre = heat > 0.999
    hit = -((1 - probability) ** 2) * torch.log(probability) * centre
    miss = -((1 - heat) ** 4) * probability**2 * torch.log(1 - probability) * ~centre * known
    instances = max(1.0, float(centre.sum()))
    box_loss = torch.cat(losses) @ torch.cat(weights) / instances if losses else found.boxes.sum() * 0
    cross = F.binary_cross_entropy_with_logits(found.region, region, reduction="none") * counts
    region_loss = (cross.sum((1, 2, 3)) / counts.sum((1, 2, 3)).clamp(min=1)).mean()
    return (hit + miss).sum() / instances, box_loss, region_loss


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of boxes (n, 4)."""
    inner = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    outer = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).clamp(min=1e-6).prod(1)
    union = (a[:, 2:] - a[:, :2]).clamp(min=0).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inner
    return inner / union.clamp(min=1e-6) - (outer - union) / outer


def _drawing_loss(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    cross = (F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * valid).sum((1, 2, 3))
    probability = torch.sigmoid(logits) * valid
    overlap = (probability * truth).sum((1, 2, 3))
    dice = 1 - (2 * overlap + 20) / (probability.sum((1, 2, 3)) + truth.sum((1, 2, 3)) + 20)
    return (cross / valid.sum((1, 2, 3)) * 2 + dice).mean()


def locating_loss(locator: Locator, batch: LocatorBatch) -> tuple[Tensor, Report]:
    """The loss of a locator, and what it is made of; `boxes` is 1 - GIoU."""
    seen = locator.see(batch.maps, batch.places)
    found = locator.find((seen[0][batch.owners], seen[1][batch.owners]), batch.evidence, batch.facts)
    heat, boxes, region = locator_loss(found, batch.boxes, batch.region, batch.counts)
    asked = ~batch.present.isnan()
    presence = F.binary_cross_entropy_with_logits(found.presence[asked], batch.present[asked])
    if not asked.any():
        presence = found.presence.sum() * 0
    loss = heat + 2 * boxes + region + presence
    parts = {"loss": loss, "heat": heat, "boxes": boxes, "region": region, "presence": presence}
    return loss, {name: float(part.detach()) for name, part in parts.items()}


def reviewing_loss(net: PolicyNet, batch: ReviewBatch) -> tuple[Tensor, Report, Tensor]:
    """The loss of the reviewer, what it is made of, and the predicted IoUs (R,) as logits.

    `drawn` is the IoU of the masks that it draws with the right ones, `rating_error` the absolute error of its ratings.
    """
    logits, rating = net.reviewer(batch.maps, batch.state, batch.context, batch.presence)
    judged = batch.state[:, 0].amax((1, 2)) > 0.5
    cross = F.binary_cross_entropy_with_logits(rating, batch.ious, reduction="none")
    loss = 2 * _drawing_loss(logits, batch.wanted, batch.state[:, 3:]) + (cross * judged).sum() / judged.sum().clamp(1)
    with torch.no_grad():
        drawn, solid = (logits > 0) & (batch.state[:, 3:] > 0), batch.wanted > 0.5
        either = (drawn | solid).sum((1, 2, 3))
        overlap = torch.where(either > 0, (drawn & solid).sum((1, 2, 3)) / either.clamp(min=1), 1.0).mean()
        error = ((torch.sigmoid(rating) - batch.ious).abs() * judged).sum() / judged.sum().clamp(min=1)
    return loss, {"loss": float(loss.detach()), "drawn": float(overlap), "rating_error": float(error)}, rating
