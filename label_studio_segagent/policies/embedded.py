"""The embedded click policy: small weights of our own, no language model, made for CPUs.

It finds what a label names on the whole image, looks at the object closely through the embedded segmenter's eyes, draws
what the mask should be there, and clicks where mask and drawing differ. What a label means it takes from its name and
from annotated examples; one that nobody knows, and of which there is no example, means the object that stands out most.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from typing_extensions import override

from ..embedded.evidence import Query
from ..embedded.names import meaning
from ..errors import ConfigError, InputError
from ..hlmat.actions import GRAMMARS, Finish
from ..hlmat.arrays import Box, Image, Mask, mask_box
from ..hlmat.metrics import box_iou
from ..parallel import on_cores
from ..segmenters.embedded import EmbeddedSegmenter
from ..segmenters.embedded_views import View, object_box
from .base import Decision, Observation, Policy, Target
from .embedded_examples import example_name, look_at, look_up, with_means
from .embedded_inputs import affine_of, cut_mask, draw_state, pad_maps, sample_context
from .embedded_net import Located, PolicyNet
from .embedded_sight import Seen, Sight
from .embedded_targets import alone, choose_clicks, find_targets, merge_targets
from .embedded_weights import DEFAULT_WEIGHTS, load_net

__all__ = ["ActSettings", "EmbeddedPolicy", "Glimpse"]

log = logging.getLogger(__name__)
_PROMPTS_KEPT = 1000
"""Prompts whose meaning is remembered."""


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
        presence: (1,) logit: the image shows what is looked for.
    """

    view: View
    box: Box | None
    maps: list[torch.Tensor]
    context: torch.Tensor
    presence: torch.Tensor


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
        self.sight = Sight(net, self.segmenter)
        self._priors: dict[str, float] = {}
        self._use(net)

    def _use(self, net: PolicyNet) -> None:
        self.net = net
        self._rows = {name: row for row, name in enumerate(net.config.labels)}
        self._shown = {name: row for row, (name, _) in enumerate(net.config.examples)}
        self._queries: dict[str, Query] = {}
        settings = asdict(self.settings), sorted(self._priors.items()), asdict(net.config), self.segmenter.version
        digest = hashlib.sha256(repr(settings).encode())
        for name, value in sorted(net.state_dict().items()):
            digest.update(name.encode() + value.numpy().tobytes())
        self.version = f"embedded-{digest.hexdigest()[:16]}"

    @override
    def locate_batch(self, items: Sequence[tuple[Image, str]]) -> list[list[Target]]:
        images = {id(image): image for image, _ in items}
        looked = dict(zip(images, on_cores(self.sight.see, list(images.values())), strict=True))
        seen = [looked[id(image)] for image, _ in items]
        found = on_cores(lambda i: self._targets(seen[i], items[i][0].shape[:2], items[i][1]), range(len(items)))
        # What stands out in a part need not stand out in the image; one large object is not seen better in a part; and
        # more looks at an image that does not show a label are more chances to be wrong.
        closer = [
            i
            for i, (image, prompt) in enumerate(items)
            if found[i] and not self.query(prompt).blank and not alone(found[i], image.shape[:2])
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

    def with_examples(self, examples: Mapping[str, Sequence[tuple[Image, Mask]]]) -> EmbeddedPolicy:
        """A policy that has seen some objects as well; without training, sharing weights and what has been seen.

        Labels may be new, and one example is something; those that were shown earlier under other labels stay.

        Args:
            examples: For each label pairs of an image, RGB uint8 (H, W, 3), and a mask of all its objects of that label
                or of one, bool (H, W). Empty masks are passed over.

        Raises:
            InputError: A mask does not fit its image.

        Example:
            >>> policy = load_policy("embedded").with_examples({"saddle": [(image, mask)]})
            >>> policy.locate(another, "saddle")
        """
        looked = {
            label: [look_at(self.sight.see(image), [_checked(mask, image)]) for image, mask in pairs]
            for label, pairs in examples.items()
        }
        means = {example_name(label): [one for one in found if one is not None] for label, found in looked.items()}
        other = copy.copy(self)
        other._use(with_means(self.net, means))
        return other

    def with_priors(self, priors: Mapping[str, float]) -> EmbeddedPolicy:
        """A policy that knows how often labels are there; shares weights and what has been seen.

        Args:
            priors: For each label the share of images that show it, in (0, 1); 0.5 where none is given.
        """
        other = copy.copy(self)
        clipped = {example_name(label): min(max(share, 0.001), 0.999) for label, share in priors.items()}
        other._priors = {**self._priors, **clipped}
        other._use(self.net)
        return other

    def _presence(self, located: Located, prompt: str) -> float:
        """The probability that the image shows it at all."""
        prior = look_up(prompt, self._priors) or 0.5
        return float(torch.sigmoid(located.presence[0] + math.log(prior / (1 - prior))))

    def query(self, prompt: str) -> Query:
        """What is known about a label or a short phrase: its meaning by name, and examples of it."""
        if prompt not in self._queries:
            if len(self._queries) >= _PROMPTS_KEPT:
                self._queries.clear()
            self._queries[prompt] = self._asked(prompt)
        return self._queries[prompt]

    def _asked(self, prompt: str) -> Query:
        config, meant = self.net.config, meaning(prompt, self.net.config.labels)
        taught = tuple((self._rows[name], weight) for name, weight in meant.taught)
        row = look_up(prompt, self._shown)
        if row is None:
            return Query(meant.classes, taught)
        return Query(meant.classes, taught, self.net.examples[row], config.examples[row][1])

    def _find(self, seen: Seen, prompt: str) -> Located:
        with torch.inference_mode():
            query = self.query(prompt)
            evidence, facts = self.net.evidence.maps(seen.sensed, query)
            padded = pad_maps([evidence[None]], [self.net.config.side // 32])[0]
            locator = self.net.locator_for(query)
            return locator.find(self.sight.maps(seen, locator), padded, facts[None])

    def _targets(
        self, seen: Seen, size: tuple[int, int], prompt: str, doubt: float = 1.0, located: Located | None = None
    ) -> list[Target]:
        """The targets on an image (height, width) that it is sure of; with a smaller `doubt` less sure ones as well.

        What the locator said about the prompt may be given, so that it is not asked again.
        """
        if seen.flat:
            return []
        located = located or self._find(seen, prompt)
        score, presence = (doubt * float(value) for value in self.net.calibration[2:])
        if self.query(prompt).blank:  # something stands out in every image
            return find_targets(located, 0, seen.view, size, score * self.settings.salient_score)[: self.settings.most]
        there = self._presence(located, prompt)
        if there < presence:
            return []
        return find_targets(located, 0, seen.view, size, score, there)[: self.settings.most]

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
        seen = self.sight.see(observed.image, observed.state)
        located = self._find(seen, observed.prompt)
        box = observed.box if observed.box is not None else self._box_for(seen, observed, located)
        around = _around(observed.mask, box)
        if around is None or (seen.flat and not observed.mask.any()):
            return None
        view, maps = self.sight.zoom(seen, observed.image, around)
        with torch.inference_mode():
            handed = torch.cat([located.context, located.region, located.heat], 1)
            matrix = affine_of(view, seen.view, self.net.config.view, self.net.config.side)[None]
            context = sample_context(handed, matrix, self.net.config.view // 8)
        return Glimpse(view, box, maps, context[..., : view.height // 8, : view.width // 8], located.presence)

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
        net, view = self.net, glimpse.view
        side = net.config.view
        with torch.inference_mode():
            *maps, context = pad_maps([*glimpse.maps[:4], glimpse.context], [side // s for s in (4, 8, 16, 8, 8)])
            cut = cut_mask(observed.mask, view)
            state = torch.from_numpy(draw_state(cut, glimpse.box, view, side))[None]
            logits, reviewed = net.reviewer(maps, state, context, glimpse.presence)
            drawn = torch.sigmoid(logits[:, :, : view.height // 4, : view.width // 4])
            if not observed.mask.any():
                return drawn[0, 0].numpy(), 0.0
            if observed.box is not None:  # it is known which object is meant, and that is the reviewer's strength
                return drawn[0, 0].numpy(), float(net.rating(reviewed)[0])
            finished, judged = net.judge(glimpse.maps, torch.from_numpy(cut)[None, None])
            share = self.settings.judged
            drawn = (1 - share) * drawn + share * F.avg_pool2d(torch.sigmoid(finished), 2)
        return drawn[0, 0].numpy(), float(net.rating(reviewed, judged)[0])


def _checked(mask: Mask, image: Image) -> Mask:
    if mask.shape != image.shape[:2] or mask.dtype != np.bool_:
        raise InputError(f"an example's mask must be bool {image.shape[:2]}, not {mask.dtype} {mask.shape}")
    return mask


def _around(mask: Mask, box: Box | None) -> Box | None:
    """The box around the mask, without its specks, and the object's box; inside the image."""
    boxes = [b for b in (object_box(mask, []), box) if b is not None]
    if not boxes:
        return None
    low, high = np.min(boxes, 0), np.max(boxes, 0)
    height, width = mask.shape
    x0, y0 = min(max(float(low[0]), 0.0), width - 1.0), min(max(float(low[1]), 0.0), height - 1.0)
    return x0, y0, max(min(float(high[2]), float(width)), x0 + 1), max(min(float(high[3]), float(height)), y0 + 1)
