"""Evidence for a label at every place of an image, in closed form, on frozen ImageNet features.

Three sources say where something might be, none of them trained by gradients here: the ImageNet classes that a name
means, names that masks have taught, and a project's own annotated examples. The last two are linear discriminants:
one mean a label and one common covariance, that of all places of all images, as what has to be told apart is a thing
from its surroundings rather than from other things.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Evidence", "Query", "Sensed", "mean_feature", "weighted_mean"]

_FAINT = -10.0
"""Log-probabilities below this say nothing more."""
_MISTRUST = 2.0
"""So many examples count half: the mean of a few is pulled towards the centre, as it is off by what is theirs alone."""
_RANGE = (-4.0, 6.0)
"""Of log-likelihood ratios."""


@dataclass(frozen=True, slots=True)
class Query:
    """What is known about a label.

    Attributes:
        classes: ImageNet classes that it means, and how well each fits, in (0, 1].
        taught: Rows of the taught directions that it means, likewise.
        examples: Mean feature of annotated objects, (features,), or None.
        count: Of how many images that mean is.
    """

    classes: tuple[tuple[int, float], ...] = ()
    taught: tuple[tuple[int, float], ...] = ()
    examples: Tensor | None = None
    count: int = 0

    @property
    def blank(self) -> bool:
        """Whether nothing is known: what stands out is meant."""
        return not (self.classes or self.taught or self.examples is not None)


@dataclass(slots=True)
class Sensed:
    """One image as the evidence sees it, at stride 32.

    Attributes:
        features: (features, h, w), root mean square 1 at every place.
        classes: (1000, h, w) log-probabilities of ImageNet's classes.
        taught: (T, h, w) log-likelihood ratios of the taught names.
    """

    features: Tensor
    classes: Tensor
    taught: Tensor


class Evidence(nn.Module):
    """Frozen ImageNet head, metric, and what masks have taught.

    Args:
        inputs: Channels of the backbone's map at stride 32.
        taught: Number of names that masks have taught.
        features: Channels of the head.
        classes: Of ImageNet.
    """

    CHANNELS = 7
    """Maps for a label: each source and the strongest other name, as they are; each source relative to the image."""
    FACTS = 8
    """Numbers for a label: which sources there are, how many examples, and the maximum of each map."""

    metric: Tensor
    centre: Tensor
    prototypes: Tensor

    def __init__(self, inputs: int, taught: int, features: int = 1280, classes: int = 1000) -> None:
        super().__init__()
        self.head = nn.Conv2d(inputs, features, 1)
        self.classify = nn.Conv2d(features, classes, 1)
        self.register_buffer("metric", torch.eye(features))
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("prototypes", torch.zeros(taught, features))

    def directions(self, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """The linear discriminants of mean features (T, features): weights (T, features) and offsets (T,)."""
        weights = (prototypes - self.centre) @ self.metric
        return weights, -0.5 * (weights * (prototypes + self.centre)).sum(1)

    def features(self, m32: Tensor) -> Tensor:
        """The features (features, h, w) of a backbone map (1, c, h, w) at stride 32."""
        return _same_length(F.relu6(self.head(m32))[0])

    def see(self, m32: Tensor, prototypes: Tensor | None = None) -> Sensed:
        """Look at one image.

        Args:
            m32: (1, c, h, w), the backbone's map at stride 32, not padded.
            prototypes: Instead of those that masks have taught (in training: without this image).
        """
        deep = F.relu6(self.head(m32))
        classes = F.log_softmax(self.classify(deep), 1)[0]
        features = _same_length(deep[0])
        return Sensed(features, classes, self._ratios(features, self.prototypes if prototypes is None else prototypes))

    def _ratios(self, features: Tensor, prototypes: Tensor) -> Tensor:
        weights, offsets = self.directions(prototypes)
        out = torch.einsum("tf,fhw->thw", weights, features) + offsets[:, None, None]
        return (out / math.sqrt(features.shape[0])).clamp(*_RANGE)

    def maps(self, sensed: Sensed, query: Query) -> tuple[Tensor, Tensor]:
        """The evidence for one label.

        Returns:
            Maps (CHANNELS, h, w) and facts (FACTS,).
        """
        none = torch.zeros_like(sensed.features[0])
        named, taught, shown = none, none, none
        if query.classes:
            index, fit = _split(query.classes)
            named = torch.logsumexp(sensed.classes[index] + fit.log()[:, None, None], 0).clamp(min=_FAINT) / 5 + 1
        if query.taught:
            index, fit = _split(query.taught)
            taught = (sensed.taught[index] + fit.log()[:, None, None]).amax(0)
        if query.examples is not None:
            trust = query.count / (query.count + _MISTRUST)
            shown = self._ratios(sensed.features, torch.lerp(self.centre, query.examples, trust)[None])[0]
        others = torch.ones(len(sensed.taught), dtype=torch.bool)
        others[[i for i, _ in query.taught]] = False
        rival = sensed.taught[others].amax(0) if others.any() else none
        maps = torch.stack([named, taught, shown, rival, *(_relative(m) for m in (named, taught, shown))])
        kinds = [float(bool(query.classes)), float(bool(query.taught)), float(query.examples is not None)]
        facts = torch.tensor([*kinds, math.log1p(query.count) / 5])
        return maps, torch.cat([facts, maps[:4].flatten(1).amax(1)])


def _same_length(deep: Tensor) -> Tensor:
    """Features (features, h, w) with a root mean square of 1 at every place."""
    return deep / deep.square().mean(0, keepdim=True).sqrt().clamp(min=1e-4)


def _split(weighed: Sequence[tuple[int, float]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([i for i, _ in weighed]), torch.tensor([w for _, w in weighed], dtype=torch.float32)


def _relative(map_: Tensor) -> Tensor:
    """A map (h, w) with its median at 0 and its maximum at 1, at least -1."""
    middle, top = map_.median(), map_.amax()
    return ((map_ - middle) / (top - middle + 0.05)).clamp(min=-1.0)


def mean_feature(features: Tensor, cover: Tensor) -> tuple[Tensor, float]:
    """The mean feature of an object, and how much it weighs beside others of its label.

    Args:
        features: (features, h, w).
        cover: (h, w), share of each place that is the object; not all zero.

    Returns:
        (features,), and the square root of the number of places, at most 3.
    """
    # An object that covers no place by half is read where it covers most.
    weights = cover * (cover >= min(0.5, float(cover.max())))
    total = float(weights.sum())
    return (features * weights).sum((1, 2)) / total, min(total, 9.0) ** 0.5


def weighted_mean(means: Sequence[tuple[Tensor, float]]) -> Tensor:
    """The mean (features,) of mean features with their weights."""
    weights = torch.tensor([weight for _, weight in means])
    return torch.einsum("k,kf->f", weights / weights.sum(), torch.stack([mean for mean, _ in means]).float())
