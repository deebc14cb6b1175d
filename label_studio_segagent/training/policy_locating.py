"""What the locator learns from: whole images, labels to look for in them, and evidence for those labels.

Every label is asked for in many ways (by name, by names that no mask has taught, by a few examples, by both), with
evidence that never rests on the image at hand, so that the locator learns to use evidence and not to know labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..embedded.evidence import Evidence, Query
from ..embedded.words import SALIENT
from ..policies.embedded_inputs import pad_maps, places_of
from ..policies.embedded_net import PolicyConfig
from ..segmenters.embedded_views import View
from .policy_data import Instance, Scene, WholeFeatures, also_known_as, shrink
from .policy_evidence import Lessons

__all__ = ["LocatorBatch", "LocatorDataset"]

Float = npt.NDArray[np.float32]
_SALIENT_SHARE = 0.04
"""The largest object of an image stands out when it covers this share of it."""
_ABSENT, _SALIENT = 0.28, 0.18
"""Share of the questions about a label that is not there, and about what stands out."""


@dataclass(slots=True)
class LocatorBatch:
    """B scenes and N labels to look for in them.

    Attributes:
        maps: Backbone features (B, c, h, w) at strides 8, 16 and 32.
        places: (B, 3, h, w).
        owners: (N,) the scene in which each label is looked for.
        evidence: (N, c, h, w) at stride 32.
        facts: (N, c).
        boxes: For each label the boxes (n, 4) of its instances, in cells of stride 8; None where instances are not told
            apart.
        region: (N, 1, h, w) at stride 8: share of each cell that is an instance.
        counts: (N, 1, h, w) at stride 8; 0 where nothing is known.
        present: (N,) whether the label is there; NaN where that is no question.
    """

    maps: list[Tensor]
    places: Tensor
    owners: Tensor
    evidence: Tensor
    facts: Tensor
    boxes: list[Tensor | None]
    region: Tensor
    counts: Tensor
    present: Tensor


@dataclass(frozen=True, slots=True)
class Prompt:
    """A label to look for.

    Attributes:
        label: Its name.
        instances: Those that are annotated.
        complete: Whether there are no more of them.
    """

    label: str
    instances: Sequence[Instance]
    complete: bool


class LocatorDataset:
    """Draws batches.

    Args:
        scenes: Annotated images.
        wholes: Their features.
        config: Of the network.
        evidence: Fitted by `teach`.
        lessons: From `teach`, about these scenes.
        mirror: Mirror half of the scenes.
    """

    def __init__(
        self, scenes: Sequence[Scene], wholes: WholeFeatures, config: PolicyConfig, evidence: Evidence,
        lessons: Lessons, mirror: bool = True,
    ) -> None:  # fmt: skip
        self.scenes, self.wholes, self.config, self.mirror = scenes, wholes, config, mirror
        self.evidence, self.lessons = evidence, lessons
        shown = Counter(name for scene in scenes for name in {i.label for i in scene.instances})
        self.rarity = {name: count**-0.5 for name, count in shown.items()}
        chances = np.array([max((self.rarity[i.label] for i in s.instances), default=0.0) for s in scenes])
        # Rare names come more often; images without any show what is not there.
        chances = np.clip(chances, 0.07, 0.25)
        self.chances = chances / chances.sum()
        striking = np.array([bool(s.instances) and _stands_out(s.instances[0], s) for s in scenes], float)
        self.striking = striking / striking.sum() if striking.any() else self.chances

    def batch(self, rng: np.random.Generator, scenes: int, prompts: int) -> LocatorBatch:
        """Draw `scenes` scenes, and for each at most `prompts` labels; none for a single question what stands out."""
        chosen = [int(i) for i in rng.choice(len(self.scenes), scenes, p=self.chances if prompts else self.striking)]
        asked = []
        for number in chosen:
            found = [self.prompt(self.scenes[number], rng) for _ in range(prompts)] or [_salient(self.scenes[number])]
            unique = list({p.label: p for p in found}.values())
            asked.append([(p, self.lessons.query(p.label, number, rng)) for p in unique])
        return self.make(chosen, asked, rng)

    @torch.no_grad()
    def make(
        self, chosen: Sequence[int], asked: Sequence[Sequence[tuple[Prompt, Query]]], rng: np.random.Generator
    ) -> LocatorBatch:
        """The batch of these scenes, and for each what is looked for and what is known about it."""
        sides = [self.config.side // s for s in (8, 16, 32)]
        maps, places, owners, boxes, targets, present = [], [], [], [], [], []
        evidence: list[Tensor] = []
        facts: list[Tensor] = []
        for row, number in enumerate(chosen):
            scene, view = self.scenes[number], self.wholes.views[number]
            flip = bool(self.mirror and rng.random() < 0.5)
            maps.append(pad_maps([_flip(m, flip) for m in self.wholes.joined(number)], sides))
            places.append(places_of(view, self.config.side))
            sensed = self.evidence.see(self.wholes.maps[number][2].float(), self.lessons.prototypes(number))
            for prompt, query in asked[row]:
                found, numbers = self.evidence.maps(sensed, query)
                evidence.append(pad_maps([_flip(found, flip)], sides[2:])[0])
                facts.append(numbers)
                owners.append(row)
                boxes.append(_cells(scene, prompt.instances, view, flip))
                targets.append([_pad(m[..., ::-1] if flip else m, sides[0]) for m in _region(scene, prompt, view)])
                present.append(float("nan") if prompt.label == SALIENT else float(bool(prompt.instances)))
        region, counts = (torch.from_numpy(np.stack(m))[:, None] for m in zip(*targets, strict=True))
        return LocatorBatch(
            [torch.cat(column) for column in zip(*maps, strict=True)], torch.stack(places), torch.tensor(owners),
            torch.stack(evidence), torch.stack(facts), boxes, region, counts, torch.tensor(present),
        )  # fmt: skip

    def prompt(self, scene: Scene, rng: np.random.Generator) -> Prompt:
        """A label to look for, there or not."""
        present = sorted({name for i in scene.instances for name in also_known_as(i.label)})
        tiny = {name for i in scene.small for name in also_known_as(i.label)}
        largest = scene.instances[0] if scene.instances else None
        named = [name for name in present if name != SALIENT]
        chance = rng.random()
        if largest is not None and (not named or (chance < _SALIENT and _stands_out(largest, scene))):
            return _salient(scene)
        absent = sorted(scene.known & set(self.lessons.queries) - set(present) - tiny - {SALIENT})
        if absent and (chance > 1 - _ABSENT or not named):
            return Prompt(absent[int(rng.integers(len(absent)))], [], True)
        if not named:
            return Prompt(SALIENT, [], False)
        chances = np.array([self.rarity.get(name, 0.1) for name in named])
        label = named[int(rng.choice(len(named), p=chances / chances.sum()))]
        instances = [i for i in scene.instances if label in also_known_as(i.label)]
        return Prompt(label, instances, bool(scene.known))


def _salient(scene: Scene) -> Prompt:
    meant = [i for i in scene.instances if i.label == SALIENT] or scene.instances[:1]
    return Prompt(SALIENT, meant, SALIENT in scene.known)


def _stands_out(largest: Instance, scene: Scene) -> bool:
    """Whether the largest object of a scene is a thing: not ground, sky or wall, which run along the edges."""
    (x0, y0, x1, y1), (height, width) = largest.box, scene.size
    touched = (x0 < 2) + (y0 < 2) + (x1 > width - 2) + (y1 > height - 2)
    return not scene.exclusive and largest.share >= _SALIENT_SHARE and touched < 3


def _flip(map_: Tensor, flip: bool) -> Tensor:
    return map_.flip(-1) if flip else map_


def _pad(map_: Float, side: int) -> Float:
    margins = [(0, 0)] * (map_.ndim - 2) + [(0, side - map_.shape[-2]), (0, side - map_.shape[-1])]
    return np.ascontiguousarray(np.pad(map_, margins))


def _cells(scene: Scene, instances: Sequence[Instance], view: View, flip: bool) -> Tensor | None:
    """Boxes in cells of stride 8, float32 (n, 4); None where parts of a class are not told apart."""
    if len(instances) > 1 and not scene.apart:
        return None
    out = np.array([view.box(i.box) for i in instances], np.float32).reshape(-1, 4) / np.float32(8)
    if flip:
        out[:, [0, 2]] = view.width / 8 - out[:, [2, 0]]
    return torch.from_numpy(out)


def _region(scene: Scene, prompt: Prompt, view: View) -> tuple[Float, Float]:
    height, width = view.height // 8, view.width // 8
    region = np.zeros((height, width), np.float32)
    for instance in prompt.instances:
        region = np.maximum(region, shrink(instance.mask(), height, width))
    counts = np.full_like(region, float(prompt.complete))
    if not prompt.complete:
        # Only what is annotated is known, and that another object lies somewhere is not.
        counts = np.maximum(counts, region > 0.3).astype(np.float32)
        if scene.exclusive and prompt.label != SALIENT:
            for other in scene.instances:
                if other not in prompt.instances:
                    counts = np.maximum(counts, shrink(other.mask(), height, width) > 0.6).astype(np.float32)
    for instance in scene.small:
        x0, y0, x1, y1 = np.rint(view.box(instance.box) / 8).astype(int)
        counts[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] *= region[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] > 0.3
    return region, counts
