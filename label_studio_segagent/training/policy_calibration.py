"""What is fitted on images that were kept back: the rating's scale, and the score from which a target counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..embedded.evidence import Query
from ..hlmat.metrics import box_iou
from ..policies.embedded_net import PolicyNet
from ..policies.embedded_targets import find_targets
from .policy_locating import LocatorDataset
from .policy_reviewing import ReviewDataset
from .policy_steps import Report, reviewing_loss

__all__ = ["calibrate_rating", "calibrate_targets"]

_MATCH = 0.5
"""Box IoU from which a target is right."""
_FALSE_ALARMS = 0.06
"""Share of the labels that are not there, but about which targets are handed out all the same."""


@dataclass(slots=True)
class _Asked:
    """A label that was looked for.

    Attributes:
        presence: How sure the locator is that it is there; 1 for what stands out.
        instances: How many there are.
        found: Scores of the targets, and whether each is right.
    """

    presence: float
    instances: int
    found: list[tuple[float, bool]]


def calibrate_targets(net: PolicyNet, dataset: LocatorDataset, rounds: int = 3, seed: int = 0) -> Report:
    """Set the least presence and the least score of a target from scenes that were not trained on.

    Args:
        net: Gets the settings.
        dataset: The scenes.
        rounds: How often each is asked about.
        seed: Decides about what.

    Returns:
        Figures for the model card.
    """
    rng = np.random.default_rng(seed)
    with torch.inference_mode():
        tried = [_detect(net, dataset, number, rng) for _ in range(rounds) for number in range(len(dataset.scenes))]
    asked = [one for one in tried if one is not None]
    instances = sum(one.instances for one in asked)
    threshold, f1 = _best_threshold([target for one in asked for target in one.found], instances)
    # Only labels about which something would be handed out are false alarms.
    alarms = [
        one.presence if any(score >= threshold for score, _ in one.found) else 0.0 for one in asked if not one.instances
    ]
    presence = float(np.clip(np.quantile(alarms, 1 - _FALSE_ALARMS), 0.05, 0.95)) if alarms else 0.5
    with torch.no_grad():
        net.calibration[2:] = torch.tensor([threshold, presence])
    there = [one for one in asked if one.instances]
    figures = {"least_score": threshold, "least_presence": presence, "held_out_box_f1": f1}
    if there:
        figures["held_out_answered"] = sum(one.presence >= presence for one in there) / len(there)
    return {name: round(value, 4) for name, value in figures.items()}


def calibrate_rating(net: PolicyNet, dataset: ReviewDataset, seed: int = 0) -> Report:
    """Set the scale of the rating from reviews that were not trained on; returns figures for the model card."""
    rng = np.random.default_rng(seed)
    ratings: list[torch.Tensor] = []
    truths: list[torch.Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(dataset), 8):
            batch = dataset.make(range(start, min(start + 8, len(dataset))), rng)
            judged = batch.state[:, 0].amax((1, 2)) > 0.5
            ratings.append(reviewing_loss(net, batch)[2][judged])
            truths.append(batch.ious[judged])
    if not ratings:
        return {}
    logits, true = torch.cat(ratings), torch.cat(truths)
    factor, shift = _fit(logits, true)
    with torch.no_grad():
        net.calibration[:2] = torch.tensor([factor, shift])
    predicted = net.rating(logits)
    figures = {
        "rating_factor": factor, "rating_shift": shift, "held_out_rating_error": float((predicted - true).abs().mean()),
    }  # fmt: skip
    if len(true) > 2 and true.std() > 0 and predicted.std() > 0:
        figures["held_out_rating_pearson"] = float(np.corrcoef(predicted.numpy(), true.numpy())[0, 1])
    return {k: round(v, 4) for k, v in figures.items()}


def _detect(net: PolicyNet, dataset: LocatorDataset, number: int, rng: np.random.Generator) -> _Asked | None:
    """What the locator says about one label in a scene; None where nobody knows what is right."""
    scene = dataset.scenes[number]
    prompt = dataset.prompt(scene, rng)
    if not prompt.complete or (len(prompt.instances) > 1 and not scene.apart):
        return None
    query = dataset.lessons.queries.get(prompt.label, Query())
    batch = dataset.make([number], [[(prompt, query)]], rng)
    locator = net.locator_for(query)
    located = locator.find(locator.see(batch.maps, batch.places), batch.evidence, batch.facts)
    presence = 1.0 if query.blank else float(torch.sigmoid(located.presence[0]))
    left = [i.box for i in prompt.instances]
    out = _Asked(presence, len(left), [])
    for target in find_targets(located, 0, dataset.wholes.views[number], scene.size, 0.02, presence):
        assert target.box is not None
        overlaps = [box_iou(target.box, box) for box in left]
        right = bool(overlaps) and max(overlaps) >= _MATCH
        if right:
            left.pop(int(np.argmax(overlaps)))
        out.found.append((target.score, right))
    return out


def _best_threshold(scores: Sequence[tuple[float, bool]], instances: int) -> tuple[float, float]:
    """The least score with the best F1, and that F1."""
    best, threshold, hits = 0.0, 0.3, 0
    for count, (score, right) in enumerate(sorted(scores, reverse=True), 1):
        hits += right
        f1 = 2 * hits / (count + instances)
        if f1 > best:
            best, threshold = f1, score
    return float(np.clip(threshold, 0.05, 0.6)), best


def _fit(logits: torch.Tensor, truths: torch.Tensor) -> tuple[float, float]:
    """Factor and shift of the logits with the least squared error of the rating."""
    weights = torch.tensor([1.0, 0.0], requires_grad=True)
    optimizer = torch.optim.Adam([weights], 0.05)
    logits, truths = logits.clone(), truths.clone()
    for _ in range(200):
        optimizer.zero_grad()
        F.mse_loss(torch.sigmoid(logits * weights[0] + weights[1]), truths).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float(weights[0].detach()), float(weights[1].detach())
