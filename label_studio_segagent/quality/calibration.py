"""From evidence to a quality score that means "expected IoU".

A small regression shipped with the package combines the evidence; isotonic regression on the project's own masks makes
it true there: corrupted copies of masks that are trusted tell what a score is worth.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

from ..errors import ConfigError
from .evidence import Evidence

__all__ = ["Calibration", "Combination", "fit_calibration", "fit_combination", "shipped"]

Float = npt.NDArray[np.float64]
_KNOTS = 33
_SHIPPED = Path(__file__).parent / "combination.json"


@dataclass(frozen=True, slots=True)
class Combination:
    """A regression over the evidence, its squares and products.

    Attributes:
        weights: One for each column of `expand`.
        knots: (score, expected IoU) pairs, increasing.
    """

    weights: tuple[float, ...]
    knots: tuple[tuple[float, float], ...]

    def __call__(self, evidence: Sequence[Evidence]) -> Float:
        """Expected IoU, float64 (n,), in [0, 1]."""
        if not evidence:
            return np.zeros(0)
        raw = expand(np.stack([e.row() for e in evidence])) @ np.array(self.weights)
        xs, ys = np.array(self.knots).T
        return np.asarray(np.interp(raw, xs, ys), np.float64)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Expected IoU on a project, from that of the shipped combination.

    Attributes:
        knots: (shipped expectation, expectation here) pairs, increasing; the identity when there are none.
        count: Masks that it was fitted on.
    """

    knots: tuple[tuple[float, float], ...] = ()
    count: int = 0

    def __call__(self, scores: npt.ArrayLike) -> Float:
        """Expected IoU, float64 (n,), in [0, 1]."""
        values = np.asarray(scores, np.float64)
        if not self.knots:
            return np.clip(values, 0, 1)
        xs, ys = np.array(self.knots).T
        return np.asarray(np.interp(values, xs, ys), np.float64)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read it; the identity when there is no file.

        Raises:
            ConfigError: The file is damaged.
        """
        if not path.exists():
            return cls()
        fields = _read(path)
        return cls(tuple((float(x), float(y)) for x, y in fields["knots"]), int(fields["count"]))


def expand(rows: Float) -> Float:
    """The columns of the regression, (n, columns): one, each number, its square, and products with the rating."""
    return np.concatenate([np.ones((len(rows), 1)), rows, rows**2, rows[:, :1] * rows[:, 1:]], 1)


def fit_combination(evidence: Sequence[Evidence], ious: npt.ArrayLike, ridge: float = 1.0) -> Combination:
    """Ridge regression of the IoU on the evidence, then isotonic regression of what it says.

    Args:
        evidence: n of them.
        ious: (n,) true IoUs.
        ridge: Penalty of the weights' squares.
    """
    columns, true = expand(np.stack([e.row() for e in evidence])), np.asarray(ious, np.float64)
    penalty = ridge * np.eye(columns.shape[1])
    penalty[0, 0] = 0
    weights = np.linalg.solve(columns.T @ columns + penalty, columns.T @ true)
    return Combination(tuple(map(float, weights)), _isotonic(columns @ weights, true))


def fit_calibration(scores: npt.ArrayLike, ious: npt.ArrayLike) -> Calibration:
    """Isotonic regression of true IoUs on shipped expectations.

    Args:
        scores: (n,) from a `Combination`.
        ious: (n,) true IoUs.
    """
    values = np.asarray(scores, np.float64)
    return Calibration(_isotonic(values, np.asarray(ious, np.float64)), len(values))


def _isotonic(scores: Float, true: Float) -> tuple[tuple[float, float], ...]:
    """An increasing function through the cloud, as a few knots."""
    order = np.argsort(scores, kind="stable")
    xs, ys = scores[order], np.clip(isotonic_regression(true[order]).x, 0, 1)
    chosen = np.unique(np.linspace(0, len(xs) - 1, min(_KNOTS, len(xs))).round().astype(int))
    # Each knot stands for its surroundings: single masks at the ends must not decide.
    reach = max(1, len(xs) // (2 * _KNOTS))
    level = [float(ys[max(0, i - reach) : i + reach + 1].mean()) for i in chosen]
    knots: list[tuple[float, float]] = []
    for x, y in zip(xs[chosen], np.maximum.accumulate(level), strict=True):
        if not knots or x > knots[-1][0]:
            knots.append((float(x), float(y)))
    return tuple(knots)


@lru_cache(maxsize=1)
def shipped() -> Combination:
    """The combination that ships with the package, made by `benchmarks/quality.py --fit`.

    Raises:
        ConfigError: The file is damaged.
    """
    fields = _read(_SHIPPED)
    return Combination(tuple(map(float, fields["weights"])), tuple((float(x), float(y)) for x, y in fields["knots"]))


def _read(path: Path) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = json.loads(path.read_text("utf-8"))
        for _ in fields["knots"]:
            pass
        return fields
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"the calibration {path} cannot be read ({error}); delete it and run again") from error
