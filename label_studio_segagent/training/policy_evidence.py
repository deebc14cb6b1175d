"""What masks teach the evidence, in closed form: the metric, a mean for every name, and examples to practise with."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor

from ..embedded.evidence import Evidence, Query, mean_feature, weighted_mean
from ..embedded.names import meaning
from ..embedded.words import SALIENT
from .policy_data import Instance, Scene, WholeFeatures, also_known_as, shrink

__all__ = ["Lessons", "teach"]

_SHRINK = 0.3
"""Share of the identity in the covariance. Chosen, like covering all places and not only objects, on kept-back images
of `voc`: 0.1 to 0.6 are alike; the covariance within objects points into the right one less often (0.72, not 0.78)."""
_FOLDS = 5
_SHOTS = (1, 1, 2, 3, 5, 10, 20)


@dataclass(slots=True)
class Lessons:
    """What was seen of every name in every image.

    Attributes:
        means: For each name, scene -> (mean feature float16, weight).
        folds: Of each scene.
        without: For each fold the prototypes (T, features) without its scenes.
        queries: What each name means.
    """

    means: dict[str, dict[int, tuple[Tensor, float]]]
    folds: npt.NDArray[np.int64]
    without: list[Tensor]
    queries: dict[str, Query]

    def prototypes(self, scene: int) -> Tensor | None:
        """The taught prototypes (T, features) as they are without this scene; None for those of all."""
        return self.without[int(self.folds[scene])] if self.without else None

    def elsewhere(self) -> Lessons:
        """The same for scenes that nothing was taken from."""
        return Lessons(self.means, self.folds, [], self.queries)

    def query(self, name: str, scene: int, rng: np.random.Generator) -> Query:
        """A random mix of what may be known about a name: its meaning, some examples from other images, or both."""
        if name == SALIENT:
            return Query()
        known, chance = self.queries[name], rng.random()
        if chance < 0.35:
            return known
        if chance < 0.6:  # a name that no mask has taught
            return Query(classes=known.classes) if known.classes else known
        shown, count = self.examples(name, scene, rng)
        if shown is None:
            return known
        if chance < 0.85:
            return Query(examples=shown, count=count)
        return Query(known.classes, known.taught if chance < 0.93 else (), shown, count)

    def examples(self, name: str, scene: int, rng: np.random.Generator) -> tuple[Tensor | None, int]:
        """The mean feature of the name in a few other images, and of how many."""
        others = [number for number in self.means.get(name, ()) if number != scene]
        count = min(int(rng.choice(_SHOTS)), len(others))
        if not count:
            return None, 0
        chosen = rng.choice(len(others), count, replace=False)
        return weighted_mean([self.means[name][others[int(i)]] for i in chosen]), count


def teach(evidence: Evidence, names: Sequence[str], scenes: Sequence[Scene], wholes: WholeFeatures) -> Lessons:
    """Fit the metric and the prototypes of `names` in place.

    Args:
        evidence: With the ImageNet head.
        names: One for each row of the prototypes.
        scenes: Annotated images.
        wholes: Their features.
    """
    size = len(evidence.centre)
    centre, scatter = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    means: dict[str, dict[int, tuple[Tensor, float]]] = defaultdict(dict)
    for number in track(range(len(scenes)), "features of names"):
        features = evidence.features(wholes.maps[number][2].float())
        places = features.flatten(1)
        centre += places.mean(1)
        scatter += (places @ places.T / places.shape[1]).double()
        for name, cover in _covers(scenes[number].instances, (features.shape[1], features.shape[2])).items():
            mean, weight = mean_feature(features, torch.from_numpy(cover))
            means[name][number] = (mean.half(), weight)
    centre /= len(scenes)
    covariance = scatter / len(scenes) - centre[:, None] * centre[None]
    level = covariance.diagonal().mean()
    mixed = (1 - _SHRINK) * covariance + _SHRINK * level * torch.eye(size, dtype=torch.float64)
    evidence.centre.copy_(centre)
    evidence.metric.copy_(torch.linalg.inv(mixed))
    folds = np.array([_fold(scene) for scene in scenes])
    without = [_prototypes(evidence, names, means, folds != fold) for fold in range(_FOLDS)]
    evidence.prototypes.copy_(_prototypes(evidence, names, means, np.ones(len(scenes), bool)))
    index = {name: row for row, name in enumerate(names)}
    queries = {}
    for name in means:
        meant = meaning(name, names)
        queries[name] = Query(meant.classes, tuple((index[n], w) for n, w in meant.taught if n in index))
    return Lessons(dict(means), folds, without, queries)


def _covers(instances: Sequence[Instance], size: tuple[int, int]) -> dict[str, npt.NDArray[np.float32]]:
    """For each name the share of every place that is one of its instances."""
    out: dict[str, npt.NDArray[np.float32]] = {}
    for instance in instances:
        cover = shrink(instance.mask(), *size)
        for name in also_known_as(instance.label):
            if name != SALIENT and cover.any():
                out[name] = np.maximum(out[name], cover) if name in out else cover
    return out


def _prototypes(
    evidence: Evidence, names: Sequence[str], means: Mapping[str, Mapping[int, tuple[Tensor, float]]],
    kept: npt.NDArray[np.bool_],
) -> Tensor:  # fmt: skip
    rows = []
    for name in names:
        found = [mean for number, mean in means.get(name, {}).items() if kept[number]]
        # A name that only this fold shows is as if it had never been taught.
        rows.append(weighted_mean(found) if found else evidence.centre.clone())
    return torch.stack(rows) if rows else torch.zeros(0, len(evidence.centre))


def _fold(scene: Scene) -> int:
    return hashlib.blake2b(scene.path.name.encode(), digest_size=2, salt=b"fold").digest()[0] % _FOLDS
