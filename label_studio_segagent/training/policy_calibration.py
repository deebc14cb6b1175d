"""What is fitted on images that were kept back: the rating's scale, and the score from which a target counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ..hlmat.metrics import box_iou
from ..policies.embedded_net import PolicyNet
from ..policies.embedded_targets import find_targets
from .policy_locating import LocatorDataset
from .policy_reviewing import ReviewDataset
from .policy_steps import Report, reviewing_loss

__all__ = ["calibrate_rating", "calibrate_targets"]

_MATCH = 0.5
"""Box IoU from which a target is right."""


def calibrate_targets(net: PolicyNet, dataset: LocatorDataset, seed: int = 0) -> Report:
    """Set the least score of a target from scenes that were not trained on; returns figures for the model card."""
    rng = np.random.default_rng(seed)
    scores: list[tuple[float, bool]] = []
    instances = 0
    with torch.inference_mode():
        for number in range(len(dataset.scenes)):
            found, boxes = _detect(net, dataset, number, rng)
            scores += found
            instances += boxes
    threshold, f1 = _best_threshold(scores, instances)
    with torch.no_grad():
        net.calibration[2] = threshold
    return {"least_score": round(threshold, 4), "held_out_box_f1": round(f1, 4)}


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


def _detect(
    net: PolicyNet, dataset: LocatorDataset, number: int, rng: np.random.Generator
) -> tuple[list[tuple[float, bool]], int]:
    """Scores of the targets found for one label in a scene, whether each is right, and how many there were."""
    scene = dataset.scenes[number]
    label, instances, known = dataset.prompt(scene, rng)
    if not known:
        return [], 0
    batch = dataset.make([number], rng, 1)
    index = torch.tensor([dataset.index.get(label, 0)])
    seen = net.locator.see(batch.maps, batch.places)
    located, _ = net.locator.find(seen, net.vectors[index], net.biases[index])
    left = [i.box for i in instances]
    out: list[tuple[float, bool]] = []
    for target in find_targets(located, 0, dataset.wholes.views[number], scene.size, 0.02):
        assert target.box is not None
        overlaps = [box_iou(target.box, box) for box in left]
        right = bool(overlaps) and max(overlaps) >= _MATCH
        if right:
            left.pop(int(np.argmax(overlaps)))
        out.append((target.score, right))
    return out, len(instances)


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
