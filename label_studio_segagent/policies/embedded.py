"""The embedded click policy: small weights of our own, no language model, made for CPUs.

It finds what a label names on the whole image, looks at the object closely through the embedded segmenter's eyes, draws
what the mask should be there, and clicks where mask and drawing differ. Labels are looked up by name and synonym; one
that nobody knows means the object that stands out most.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from typing_extensions import override

from ..errors import ConfigError
from ..hlmat.actions import GRAMMARS, Finish
from ..hlmat.arrays import Box, Image, Mask, mask_box
from ..hlmat.metrics import box_iou
from ..parallel import on_cores
from ..segmenters.embedded import EmbeddedSegmenter
from ..segmenters.embedded_views import View, object_box
from .base import Decision, Observation, Policy, Target
from .embedded_inputs import affine_of, cut_mask, draw_state, pad_maps, sample_context
from .embedded_net import Located
from .embedded_sight import Seen, Sight
from .embedded_targets import alone, choose_clicks, find_targets, merge_targets
from .embedded_weights import DEFAULT_WEIGHTS, load_net
from .label_text import SALIENT, LabelBook

__all__ = ["ActSettings", "EmbeddedPolicy", "Glimpse"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ActSettings:
    """How careful the policy is.

    Attributes:
        thinnest: Disagreements thinner than this share of the object's extent are left alone.
        good: Rating from which it finishes.
        same: Box IoU from which a located target is taken for the object of a mask without a box.
        salient_score: Least score of a target for labels that nobody knows, relative to that for known ones.
        doubt: Score from which a target explains a mask, or answers when one is asked for, relative to the score from
            which it is proposed.
        most: Targets handed out per image.
        judged: The judge's share of what a mask without a box should be; the rest is the reviewer's.
    """

    thinnest: float = 0.04
    good: float = 0.93
    same: float = 0.4
    salient_score: float = 0.6
    doubt: float = 0.25
    most: int = 40
    judged: float = 0.5


@dataclass(slots=True)
class Glimpse:
    """What the reviewer looks at: an object and its surroundings.

    Attributes:
        view: The window of the image.
        box: (x0, y0, x1, y1) pixels around the object, or None when only its mask is known.
        maps: What the segmenter's encoder says, (1, c, h, w) each, not padded.
        context: (1, c, h, w) at stride 8: what the locator says about these places; not padded either.
    """

    view: View
    box: Box | None
    maps: list[torch.Tensor]
    context: torch.Tensor


class EmbeddedPolicy(Policy):
    """The policy whose weights ship with this package.

    Args:
        weights: A safetensors file written by `segagent train-embedded policy`; by default the shipped one.
        segmenter: Whose views it looks at; by default the embedded one with its shipped weights.
        settings: How careful it is.

    Raises:
        ConfigError: The weights cannot be read, or do not fit the segmenter.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        segmenter: EmbeddedSegmenter | None = None,
        settings: ActSettings | None = None,
    ) -> None:
        self.settings = settings or ActSettings()
        self.grammar = GRAMMARS["segagent"]()
        self.segmenter = segmenter or EmbeddedSegmenter()
        net, trained_with = load_net(Path(weights) if weights else DEFAULT_WEIGHTS)
        if trained_with != self.segmenter.eyes:
            log.warning(
                "the policy was trained with the segmenter %s, not %s: it may rate and click worse",
                trained_with, self.segmenter.eyes,
            )  # fmt: skip
        if net.config.view != self.segmenter.settings.zoom:
            zoom = self.segmenter.settings.zoom
            raise ConfigError(f"the policy looks at views of {net.config.view} pixels, the segmenter at {zoom}")
        self.net, self.sight = net, Sight(net, self.segmenter)
        self.book = LabelBook([n for n in net.config.labels if n != SALIENT])
        digest = hashlib.sha256(repr((asdict(self.settings), asdict(net.config), self.segmenter.version)).encode())
        for name, value in sorted(net.state_dict().items()):
            digest.update(name.encode() + value.numpy().tobytes())
        self.version = f"embedded-{digest.hexdigest()[:16]}"

    @override
    def locate_batch(self, items: Sequence[tuple[Image, str]]) -> list[list[Target]]:
        images = {id(image): image for image, _ in items}
        looked = dict(zip(images, on_cores(self.sight.see, list(images.values())), strict=True))
        seen = [looked[id(image)] for image, _ in items]
        found = on_cores(lambda i: self._targets(seen[i], items[i][0].shape[:2], items[i][1]), range(len(items)))
        # What stands out in a part need not stand out in the image; one large object is not seen better in a part.
        closer = [
            i for i, (image, prompt) in enumerate(items) if self._label(prompt) and not alone(found[i], image.shape[:2])
        ]
        self.sight.see_parts([(seen[i], items[i][0]) for i in closer])
        merged = on_cores(lambda i: self._with_parts(found[i], seen[i], *items[i]), closer)
        for i, targets in zip(closer, merged, strict=True):
            found[i] = targets
        return found

    @override
    def act(self, observations: Sequence[Observation]) -> list[Decision]:
        return on_cores(lambda observation: self._act(observation, 1)[0], observations)

    @override
    def propose(self, observations: Sequence[Observation], count: int) -> list[list[Decision]]:
        return on_cores(lambda observation: self._act(observation, count), observations)

    def _with_parts(self, found: Sequence[Target], seen: Seen, image: Image, prompt: str) -> list[Target]:
        """The targets on an image together with those that are only found where a part of it is looked at, larger."""
        parts = [(w, self._targets(part, (w[3] - w[1], w[2] - w[0]), prompt)) for w, part in seen.parts or ()]
        return merge_targets(found, parts, image.shape[:2], float(self.net.calibration[2]))[: self.settings.most]

    def _label(self, prompt: str) -> int:
        name = self.book.find(prompt)
        return 0 if name == SALIENT else self.net.config.labels.index(name)

    def _find(self, seen: Seen, label: int) -> Located:
        with torch.inference_mode():
            vector, bias = self.net.vectors[label : label + 1], self.net.biases[label : label + 1]
            return self.net.locator.find(seen.maps, vector, bias)[0]

    def _targets(
        self, seen: Seen, size: tuple[int, int], prompt: str, doubt: float = 1.0, located: Located | None = None
    ) -> list[Target]:
        """The targets on an image (height, width) that it is sure of; with a smaller `doubt` less sure ones as well.

        What the locator said about the prompt may be given, so that it is not asked again.
        """
        if seen.flat:
            return []
        label = self._label(prompt)
        located = located or self._find(seen, label)
        least = doubt * float(self.net.calibration[2]) * (1.0 if label else self.settings.salient_score)
        return find_targets(located, 0, seen.view, size, least)[: self.settings.most]

    @override
    def tireless(self) -> EmbeddedPolicy:
        other = copy.copy(self)  # shares network and what it has seen
        other.settings = replace(self.settings, thinnest=0.0, good=1.1)
        other.version = f"{self.version}-tireless"
        return other

    def _act(self, observed: Observation, count: int) -> list[Decision]:
        """At most `count` decisions, the best one first."""
        image, mask = observed.image, observed.mask
        glimpse = self.glimpse(observed)
        if glimpse is None:
            return [self.decide(Finish(), 0.0, image)]
        drawn, rating = self._review(observed, glimpse)
        if rating >= self.settings.good:
            return [self.decide(Finish(), rating, image)]
        actions = choose_clicks(mask, drawn, glimpse.view, observed.rejected, least=self.settings.thinnest, count=count)
        return [self.decide(action, rating, image) for action in actions]

    def glimpse(self, observed: Observation) -> Glimpse | None:
        """Where the reviewer looks and what it sees there; None where there is nothing to look at."""
        seen, label = self.sight.see(observed.image, observed.state), self._label(observed.prompt)
        located = self._find(seen, label)
        box = observed.box if observed.box is not None else self._box_for(seen, observed, located)
        around = _around(observed.mask, box)
        if around is None or (seen.flat and not observed.mask.any()):
            return None
        view, maps = self.sight.zoom(seen, observed.image, around)
        with torch.inference_mode():
            handed = torch.cat([located.context, located.region, located.heat], 1)
            matrix = affine_of(view, seen.view, self.net.config.view, self.net.config.side)[None]
            context = sample_context(handed, matrix, self.net.config.view // 8)
        return Glimpse(view, box, maps, context[..., : view.height // 8, : view.width // 8])

    def _box_for(self, seen: Seen, observed: Observation, located: Located) -> Box | None:
        """The box of the target that a mask without a box is of: the best one for an empty mask.

        Who asks has reason to think that there is one, so less is needed than for proposing it.
        """
        targets = self._targets(seen, observed.mask.shape, observed.prompt, self.settings.doubt, located)
        there = mask_box(observed.mask)
        if there is None:
            return targets[0].box if targets else None
        boxes = [t.box for t in targets if t.box is not None and box_iou(t.box, there) >= self.settings.same]
        return max(boxes, key=lambda b: box_iou(b, there)) if boxes else None

    def _review(
        self, observed: Observation, glimpse: Glimpse
    ) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float32]], float]:
        """What the mask should be (over the view), and the rating of what it is."""
        net, view, label = self.net, glimpse.view, self._label(observed.prompt)
        side = net.config.view
        with torch.inference_mode():
            *maps, context = pad_maps([*glimpse.maps[:4], glimpse.context], [side // s for s in (4, 8, 16, 8, 8)])
            cut = cut_mask(observed.mask, view)
            state = torch.from_numpy(draw_state(cut, glimpse.box, view, side))[None]
            logits, reviewed = net.reviewer(maps, state, context, net.vectors[label : label + 1])
            drawn = torch.sigmoid(logits[:, :, : view.height // 4, : view.width // 4])
            if not observed.mask.any():
                return drawn[0, 0].numpy(), 0.0
            if observed.box is not None:  # it is known which object is meant, and that is the reviewer's strength
                return drawn[0, 0].numpy(), float(net.rating(reviewed)[0])
            finished, judged = net.judge(glimpse.maps, torch.from_numpy(cut)[None, None])
            share = self.settings.judged
            drawn = (1 - share) * drawn + share * F.avg_pool2d(torch.sigmoid(finished), 2)
        return drawn[0, 0].numpy(), float(net.rating(reviewed, judged)[0])


def _around(mask: Mask, box: Box | None) -> Box | None:
    """The box around the mask, without its specks, and the object's box; inside the image."""
    boxes = [b for b in (object_box(mask, []), box) if b is not None]
    if not boxes:
        return None
    low, high = np.min(boxes, 0), np.max(boxes, 0)
    height, width = mask.shape
    x0, y0 = min(max(float(low[0]), 0.0), width - 1.0), min(max(float(low[1]), 0.0), height - 1.0)
    return x0, y0, max(min(float(high[2]), float(width)), x0 + 1), max(min(float(high[3]), float(height)), y0 + 1)
