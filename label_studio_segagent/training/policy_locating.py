"""What the locator learns from: whole images, and labels to look for in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..hlmat.arrays import Box
from ..policies.embedded_inputs import pad_maps, places_of
from ..policies.embedded_net import PolicyConfig
from ..policies.label_text import SALIENT
from ..segmenters.embedded_views import View
from .policy_data import Instance, Scene, WholeFeatures, shrink

__all__ = ["LocatorBatch", "LocatorDataset", "also_known_as"]

Float = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
_MORE_GENERAL = {"pedestrian": "person"}
_SALIENT_SHARE = 0.04
"""The largest object of an image stands out when it covers this share of it."""


def also_known_as(label: str) -> tuple[str, ...]:
    """The label and what is more general."""
    return (label, _MORE_GENERAL[label]) if label in _MORE_GENERAL else (label,)


@dataclass(slots=True)
class LocatorBatch:
    """B scenes and N labels to look for in them.

    Attributes:
        maps: Backbone features (B, c, h, w) at strides 8, 16 and 32.
        places: (B, 3, h, w).
        dense: (B, labels, h, w) at stride 16: for every label the share of each cell that is an instance of it.
        dense_counts: Likewise; 0 where nothing is known.
        owners: (N,) the scene in which each label is looked for.
        labels: (N,) indices of the labels.
        boxes: For each label the boxes (n, 4) of its instances, in cells of stride 8.
        region: (N, 1, h, w) at stride 8: share of each cell that is an instance.
        counts: (N, 1, h, w) at stride 8; 0 where nothing is known.
    """

    maps: list[Tensor]
    places: Tensor
    dense: Tensor
    dense_counts: Tensor
    owners: Tensor
    labels: Tensor
    boxes: list[Tensor]
    region: Tensor
    counts: Tensor


class LocatorDataset:
    """Draws batches.

    Args:
        scenes: Annotated images; those without objects are looked at, too.
        wholes: Their features.
        config: Of the network.
        weights: How often each scene is drawn, relative to each other.
        mirror: Mirror half of the scenes.
    """

    def __init__(
        self, scenes: Sequence[Scene], wholes: WholeFeatures, config: PolicyConfig,
        weights: Sequence[float] | None = None, mirror: bool = True,
    ) -> None:  # fmt: skip
        self.scenes, self.wholes, self.config, self.mirror = list(scenes), wholes, config, mirror
        self.index = {name: i for i, name in enumerate(config.labels)}
        chances = np.ones(len(self.scenes)) if weights is None else np.asarray(weights, float)
        self.chances = chances / chances.sum()
        self._dense: dict[int, tuple[Float, Float]] = {}

    def batch(self, rng: np.random.Generator, scenes: int, prompts: int) -> LocatorBatch:
        """Draw `scenes` scenes, and for each at most `prompts` labels."""
        chosen = [int(i) for i in rng.choice(len(self.scenes), scenes, p=self.chances)]
        return self.make(chosen, rng, prompts)

    def make(self, chosen: Sequence[int], rng: np.random.Generator, prompts: int) -> LocatorBatch:
        """The batch of these scenes."""
        sides = [self.config.side // s for s in (8, 16, 32)]
        maps, places, dense, owners, labels, boxes, targets = [], [], [], [], [], [], []
        for row, number in enumerate(chosen):
            scene, view = self.scenes[number], self.wholes.views[number]
            flip = bool(self.mirror and rng.random() < 0.5)
            maps.append(pad_maps([m.flip(-1) if flip else m for m in self.wholes.joined(number)], sides))
            places.append(places_of(view, self.config.side))
            dense.append([_pad(_flip(m, flip), sides[1]) for m in self._dense_of(number)])
            asked: set[str] = set()
            for _ in range(prompts):
                label, instances, known = self.prompt(scene, rng)
                if label in asked:
                    continue
                asked.add(label)
                owners.append(row)
                labels.append(self.index.get(label, 0))
                boxes.append(torch.from_numpy(_cells([i.box for i in instances], view, flip)))
                targets.append([_pad(_flip(m, flip), sides[0]) for m in _region(scene, instances, known, view)])
        region, counts = (torch.from_numpy(np.stack(m))[:, None] for m in zip(*targets, strict=True))
        dense_maps, dense_counts = (torch.from_numpy(np.stack(m)) for m in zip(*dense, strict=True))
        return LocatorBatch(
            [torch.cat(column) for column in zip(*maps, strict=True)], torch.stack(places), dense_maps,
            dense_counts, torch.tensor(owners), torch.tensor(labels), boxes, region, counts,
        )  # fmt: skip

    def prompt(self, scene: Scene, rng: np.random.Generator) -> tuple[str, list[Instance], bool]:
        """A label, its instances, and whether there are no more of them than these."""
        present = sorted({name for i in scene.instances for name in also_known_as(i.label)})
        tiny = {name for i in scene.small for name in also_known_as(i.label)}
        largest = scene.instances[0] if scene.instances else None
        chance = rng.random()
        if largest is not None and largest.label != SALIENT and scene.known and largest.share >= _SALIENT_SHARE:
            if chance < 0.12:
                return SALIENT, [largest], False
        absent = sorted(scene.known - set(present) - tiny - {SALIENT})
        if absent and (chance > 0.75 or not present):
            return absent[int(rng.integers(len(absent)))], [], True
        if not present:
            return SALIENT, [], False
        label = present[int(rng.integers(len(present)))]
        instances = [i for i in scene.instances if label in also_known_as(i.label)]
        return label, instances, bool(scene.known)

    def _dense_of(self, number: int) -> tuple[Float, Float]:
        """For every label and cell of stride 16: the share that is an instance, and whether that is known."""
        if number not in self._dense:
            scene, view = self.scenes[number], self.wholes.views[number]
            height, width = view.height // 16, view.width // 16
            region = np.zeros((len(self.index), height, width), np.float32)
            counts = np.zeros_like(region)
            for name in scene.known & set(self.index):
                counts[self.index[name]] = 1
                for other in also_known_as(name):
                    if other in self.index:
                        counts[self.index[other]] = 1
            for instance in (*scene.instances, *scene.small):
                cover = shrink(instance.mask(), height, width)
                names = [self.index[n] for n in also_known_as(instance.label) if n in self.index]
                if instance.label != SALIENT:
                    solid = np.where(self._vague(instance.label)[:, None, None], 0, cover[None] > 0.6)
                    counts = np.maximum(counts, solid.astype(np.float32))
                region[names] = np.maximum(region[names], cover)
            self._dense[number] = region.astype(np.float16), counts.astype(np.float16)
        region, counts = self._dense[number]
        return region.astype(np.float32), counts.astype(np.float32)

    def _vague(self, label: str) -> Bools:
        """The labels of which an object called `label` may or may not be an instance."""
        out = np.zeros(len(self.index), bool)
        out[self.index.get(SALIENT, 0)] = True
        for name, general in _MORE_GENERAL.items():
            if general == label and name in self.index:
                out[self.index[name]] = True
        return out


def _flip(map_: Float, flip: bool) -> Float:
    return map_[..., ::-1] if flip else map_


def _pad(map_: Float, side: int) -> Float:
    margins = [(0, 0)] * (map_.ndim - 2) + [(0, side - map_.shape[-2]), (0, side - map_.shape[-1])]
    return np.ascontiguousarray(np.pad(map_, margins))


def _cells(boxes: Sequence[Box], view: View, flip: bool) -> Float:
    """Boxes in cells of stride 8, float32 (n, 4)."""
    out = np.array([view.box(b) for b in boxes], np.float32).reshape(-1, 4) / np.float32(8)
    if flip:
        out[:, [0, 2]] = view.width / 8 - out[:, [2, 0]]
    return out


def _region(scene: Scene, instances: Sequence[Instance], known: bool, view: View) -> tuple[Float, Float]:
    height, width = view.height // 8, view.width // 8
    region = np.zeros((height, width), np.float32)
    for instance in instances:
        region = np.maximum(region, shrink(instance.mask(), height, width))
    counts = np.full_like(region, float(known))
    if not known:
        # Only what is annotated is known, and that another object lies somewhere is not.
        counts = np.maximum(counts, region > 0.3).astype(np.float32)
    for instance in scene.small:
        x0, y0, x1, y1 = np.rint(view.box(instance.box) / 8).astype(int)
        counts[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] *= region[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] > 0.3
    return region, counts
