"""Rows of an evaluation, summed up, with bootstrap confidence intervals over images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from ..hlmat.metrics import noc, nof
from .clicking import NOC_CLICKS
from .rows import Row

__all__ = ["Bootstrap", "NOC_THRESHOLDS", "summarise"]

NOC_THRESHOLDS = (0.80, 0.85, 0.90)
_RESAMPLES = 1000

Numbers = npt.NDArray[np.float64]
Estimate = dict[str, float | None]
"""A `value` with its 95 % interval, `low` to `high`; None where a number is not defined."""


class Bootstrap:
    """Estimates with 95 % percentile intervals; what is drawn again and again is images, not objects.

    Args:
        images: The image of each object.
        resamples: Times that images are drawn.
        seed: Of the draws.
    """

    def __init__(self, images: Sequence[str], resamples: int = _RESAMPLES, seed: int = 0) -> None:
        _, self._place = np.unique(np.asarray(images, str), return_inverse=True)
        self._count = int(self._place.max(initial=-1)) + 1
        rng, count = np.random.default_rng(seed), self._count
        self._drawn = np.zeros((resamples if count > 1 else 0, count), np.int16)  # one image has no spread to show
        for row in self._drawn:
            row[:] = np.bincount(rng.integers(count, size=count), minlength=count)

    def mean(self, values: Sequence[float]) -> Estimate:
        """The mean over objects."""
        return self.ratio(values, [1.0] * len(values))

    def ratio(self, above: Sequence[float], below: Sequence[float]) -> Estimate:
        """Sum over sum, as in cIoU."""
        if not len(above):
            return _estimate(float("nan"), [])
        sums = [
            np.asarray(np.bincount(self._place, np.asarray(part, float), self._count), float) for part in (above, below)
        ]
        tops, bottoms = (self._draws(part) for part in sums)
        fair = bottoms > 0
        value = float(sums[0].sum() / sums[1].sum()) if sums[1].sum() else float("nan")
        return _estimate(value, tops[fair] / bottoms[fair])

    def _draws(self, sums: Numbers) -> Numbers:
        return np.array([row @ sums for row in self._drawn])

    def pairs(self, values: Sequence[float], others: Sequence[float], measure: Callable[[Any, Any], float]) -> Estimate:
        """Any measure of two equally long lists."""
        x, y = np.asarray(values, float), np.asarray(others, float)
        spread = []
        for row in self._drawn:
            times = row[self._place]
            spread.append(measure(np.repeat(x, times), np.repeat(y, times)))
        return _estimate(measure(x, y), spread)


def _estimate(value: float, spread: Sequence[float] | Numbers) -> Estimate:
    known = np.asarray(spread, float)
    known = known[np.isfinite(known)]
    low, high = np.percentile(known, (2.5, 97.5)) if known.size else (np.nan, np.nan)
    named = {"value": value, "low": low, "high": high}
    return {name: float(number) if np.isfinite(number) else None for name, number in named.items()}


def summarise(rows: Sequence[Row], max_clicks: int) -> dict[str, Any]:
    """Everything that an evaluation reports about some rows, as JSON.

    Args:
        rows: At least one.
        max_clicks: Length of the table of clicks.

    Returns:
        `objects`, `images`; `metrics`: `miou`, `ciou`, `boundary_iou`, `clicks` (with those undone), `undone`;
        `seconds`; `per_click`: mIoU after each number of clicks, of the last mask (`last`), of the best-rated one
        (`rated`), of clicks without ratings (`blind`); `rating`: predicted against true IoU of results (`final`) and of
        all masks that were rated (`all`); `noc` and `noc_jittered` by threshold; `labels`; `stopped`.
    """
    boot = Bootstrap([row.image for row in rows])
    metrics = {
        "miou": boot.mean([row.iou for row in rows]),
        "ciou": boot.ratio([row.intersection for row in rows], [row.union for row in rows]),
        "boundary_iou": boot.mean([row.boundary_iou for row in rows]),
        "start_miou": boot.mean([row.ious[0] for row in rows]),
        "gain": boot.mean([row.iou - row.ious[0] for row in rows]),
        "clicks": boot.mean([row.clicks + row.undone for row in rows]),
        "undone": boot.mean([row.undone for row in rows]),
    }
    found: dict[str, Any] = {
        "objects": len(rows),
        "images": len({row.image for row in rows}),
        "metrics": metrics,
        "seconds": {
            **boot.mean([row.seconds for row in rows]),
            "median": float(np.median([row.seconds for row in rows])) if rows else None,
        },
        "per_click": _per_click(rows, boot, max_clicks),
        "rating": _ratings(rows),
        "labels": _labels(rows),
        "stopped": dict(Counter(row.stopped for row in rows).most_common()),
    }
    for name, each in (("noc", [row.noc for row in rows]), ("noc_jittered", [row.noc_jittered for row in rows])):
        curves = [curve for curve in each if curve is not None]
        if curves and len(curves) == len(rows):
            found[name] = {f"{threshold * 100:.0f}": _noc(curves, boot, threshold) for threshold in NOC_THRESHOLDS}
    return found


def _per_click(rows: Sequence[Row], boot: Bootstrap, max_clicks: int) -> list[dict[str, Any]]:
    def after(curves: Sequence[Sequence[float]], clicks: int) -> Estimate:
        return boot.mean([curve[min(clicks, len(curve) - 1)] for curve in curves])

    blind = [row.blind for row in rows if row.blind is not None]
    table = []
    for clicks in range(max_clicks + 1):
        line: dict[str, Any] = {"clicks": clicks, "last": after([row.ious for row in rows], clicks)}
        line["rated"] = after([row.rated for row in rows], clicks)
        if blind and len(blind) == len(rows):
            line["blind"] = after(blind, clicks)
        table.append(line)
    return table


def _ratings(rows: Sequence[Row]) -> dict[str, Any]:
    final = [(row.image, row.predicted_iou, row.iou) for row in rows if row.predicted_iou is not None]
    every = [
        (row.image, rating, value)
        for row in rows
        for rating, value in zip(row.ratings, row.ious, strict=True)
        if rating is not None
    ]
    return {"final": _agreement(final), "all": _agreement(every)}


def _agreement(pairs: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    if not pairs:
        return {"masks": 0}
    images, predicted, true = zip(*pairs, strict=True)
    boot = Bootstrap(images)
    errors = np.asarray(predicted, float) - np.asarray(true, float)
    return {
        "masks": len(pairs), "mae": boot.mean(list(np.abs(errors))), "mse": boot.mean(list(errors**2)),
        "pearson": boot.pairs(predicted, true, _pearson), "spearman": boot.pairs(predicted, true, _spearman),
    }  # fmt: skip


def _pearson(x: Numbers, y: Numbers) -> float:
    return float(stats.pearsonr(x, y).statistic) if _varies(x) and _varies(y) else float("nan")


def _spearman(x: Numbers, y: Numbers) -> float:
    return float(stats.spearmanr(x, y).statistic) if _varies(x) and _varies(y) else float("nan")


def _varies(values: Numbers) -> bool:
    return bool(np.ptp(values) > 1e-9 * max(1.0, float(np.abs(values).max())))


def _noc(curves: Sequence[Sequence[float]], boot: Bootstrap, threshold: float) -> dict[str, Any]:
    return {
        "noc": boot.mean([noc([curve], threshold, NOC_CLICKS) for curve in curves]),
        "nof": nof(curves, threshold, NOC_CLICKS),
    }


def _labels(rows: Sequence[Row]) -> dict[str, Any]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.label].append(row)
    table = {}
    for label, group in sorted(groups.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        union = sum(row.union for row in group)
        table[label] = {
            "objects": len(group), "miou": float(np.mean([row.iou for row in group])),
            "ciou": sum(row.intersection for row in group) / union if union else None,
            "clicks": float(np.mean([row.clicks + row.undone for row in group])),
        }  # fmt: skip
    return table
