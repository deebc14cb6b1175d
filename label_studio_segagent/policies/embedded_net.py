"""The network of the embedded policy: a locator that finds what a label names, a reviewer and a judge of masks.

The locator looks at the whole image through a frozen ImageNet backbone of its own, as finetuning for clicks costs the
segmenter's much of what it knew about classes, and through the segmenter's, which knows where objects end. It knows no
labels: what a label means comes to it as `Evidence`, so that it works alike for names, for examples, and for neither.
The reviewer looks at the segmenter's zoomed view of the object and draws what the mask should be; clicks and rating
follow from how the two differ. The judge says the same without knowing what is looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..embedded.evidence import Evidence, Query
from ..segmenters.embedded_decoder import AttentionBlock, NetConfig, ResidualBlock
from ..segmenters.embedded_encoder import EfficientNetLite
from .embedded_judge import Judge, compare_masks, part_mean

__all__ = ["Located", "Locator", "PolicyConfig", "PolicyNet", "Reviewer"]

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_JUDGED = 0.7
"""The judge's share of the rating. Not fitted on training images, kept back or not: the segmenter's encoder has seen
them, and the reviewer rates what it recognises better than it rates new images; the judge rates both alike."""


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """The sizes of a `PolicyNet`, and the labels that it knows.

    Attributes:
        labels: Names that masks have taught, one row each of `Evidence.prototypes`.
        examples: Names of a project, and of how many images their means are.
        backbone: "lite0", "lite1" or "lite2", with its ImageNet weights.
        side: Long side in pixels at which the locator sees the whole image; divisible by 32.
        view: Long side in pixels of the segmenter's zoomed views.
        segmenter: Channels of the segmenter's maps at strides 4, 8 and 16, and of its embeddings.
        text: Length of the vector that says what kind of evidence there is.
        trunk: Channels of the locator at stride 16.
        fine: Channels of the locator at stride 8.
        review: Channels of the reviewer at strides 4, 8 and 16.
        context: Channels that the locator hands to the reviewer.
    """

    labels: tuple[str, ...]
    examples: tuple[tuple[str, int], ...] = ()
    backbone: str = "lite2"
    side: int = 640
    view: int = 320
    segmenter: tuple[int, int, int, int] = (32, 64, 128, 32)
    text: int = 64
    trunk: int = 96
    fine: int = 48
    review: tuple[int, int, int] = (24, 48, 64)
    context: int = 12


@dataclass(slots=True)
class Located:
    """What the locator says about N (image, label) pairs, at stride 8.

    Attributes:
        heat: (N, 1, h, w) logits: high at the centres of instances.
        boxes: (N, 4, h, w): distances, in cells, to the left, top, right and bottom side of the instance's box.
        region: (N, 1, h, w) logits: part of an instance.
        context: (N, context, h, w), for the reviewer.
        presence: (N,) logits: the image shows the label at all.
    """

    heat: Tensor
    boxes: Tensor
    region: Tensor
    context: Tensor
    presence: Tensor


class _Conditioned(nn.Module):
    """A residual block whose channels are scaled and shifted by a vector (FiLM, arXiv 1709.07871)."""

    def __init__(self, channels: int, text: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(8, channels)
        self.film = nn.Linear(text, 2 * channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        scale, shift = self.film(text)[:, :, None, None].chunk(2, 1)
        y = F.relu(self.norm(self.first(x)) * (1 + scale) + shift)
        out: Tensor = F.relu(x + self.second(y))
        return out


class Locator(nn.Module):
    """Finds the instances of a label from frozen features of the whole image and the evidence for the label.

    Args:
        config: Sizes.
        inputs: Channels of the features at strides 8, 16 and 32.
    """

    def __init__(self, config: PolicyConfig, inputs: Sequence[int]) -> None:
        super().__init__()
        c8, c16, c32 = inputs
        trunk, fine, text = config.trunk, config.fine, config.text
        self.enter8, self.enter16 = nn.Conv2d(c8, fine, 1), nn.Conv2d(c16 + 3, trunk, 1)
        self.enter32 = nn.Conv2d(c32, trunk, 1)
        self.norm8, self.norm16 = nn.GroupNorm(8, fine), nn.GroupNorm(8, trunk)
        self.relate = AttentionBlock(trunk)
        self.kind = nn.Sequential(nn.Linear(Evidence.FACTS, 32), nn.ReLU(), nn.Linear(32, text))
        self.salient = nn.Parameter(torch.randn(text) * 0.7)
        self.match = nn.Conv2d(trunk + c32, text, 1)
        self.lift = nn.Conv2d(1, trunk, 1)
        self.steer = nn.Sequential(
            nn.Conv2d(Evidence.CHANNELS, trunk, 3, padding=1), nn.ReLU(), nn.Conv2d(trunk, trunk, 1)
        )
        for last in (self.kind[2], self.steer[2]):  # at first nothing but what stands out
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.blocks = nn.ModuleList(_Conditioned(trunk, text) for _ in range(2))
        self.up = nn.Conv2d(trunk, fine, 1)
        self.last = _Conditioned(fine, text)
        self.heads = nn.Conv2d(fine, 6, 3, padding=1)
        self.hand_over = nn.Conv2d(fine, config.context, 1)
        self.present = nn.Sequential(nn.Linear(trunk + Evidence.FACTS + 2, 32), nn.ReLU(), nn.Linear(32, 1))
        bias = torch.tensor([-3.0, 0.0, 1.2, 1.2, 1.2, 1.2])  # rare centres; boxes of seven cells
        self.heads.bias = nn.Parameter(bias)

    def see(self, maps: Sequence[Tensor], places: Tensor) -> tuple[Tensor, Tensor]:
        """What does not depend on the label.

        Args:
            maps: From `join_maps`, (N, c, h, w) at strides 8, 16 and 32, padded at the right and bottom to a square.
            places: (N, 3, h, w) at stride 16: x and y in [-1, 1] over the image, and 1 inside of it.

        Returns:
            Maps at strides 8 and 16; the latter is zero outside of the image.
        """
        m8, m16, m32 = maps
        x8 = F.relu(self.norm8(self.enter8(m8)))
        x16 = self.enter16(torch.cat([m16, places], 1))
        x16 = F.relu(self.norm16(x16 + F.interpolate(self.enter32(m32), scale_factor=2.0, mode="bilinear")))
        x16 = self.relate(x16) * places[:, 2:]
        # What stands out is what an object is where nothing is known about it; evidence only steers.
        deep = F.interpolate(m32, scale_factor=2.0, mode="bilinear")
        match = (self.match(torch.cat([x16, deep], 1)) * self.salient[:, None, None]).mean(1, keepdim=True)
        return x8, x16 + self.lift(torch.tanh(match * 2)) * places[:, 2:]

    def find(self, seen: tuple[Tensor, Tensor], evidence: Tensor, facts: Tensor) -> Located:
        """Look for N labels.

        Args:
            seen: From `see`, batch N.
            evidence: (N, Evidence.CHANNELS, h, w) at stride 32, padded like the image.
            facts: (N, Evidence.FACTS).
        """
        x8, x16 = seen
        text = self.salient + self.kind(facts)
        y = x16 + F.interpolate(self.steer(evidence), scale_factor=2.0, mode="bilinear")
        for block in self.blocks:
            y = block(y, text)
        y8 = F.relu(x8 + F.interpolate(self.up(y), scale_factor=2.0, mode="bilinear"))
        y8 = self.last(y8, text)
        heat, region, boxes = self.heads(y8).split((1, 1, 4), 1)
        strongest = [m.detach().flatten(1).amax(1, keepdim=True) for m in (heat, region)]
        present = self.present(torch.cat([y.flatten(2).amax(2), facts, *strongest], 1))[:, 0]
        return Located(heat, torch.exp(boxes.clamp(-3, 4.3)), region, F.relu(self.hand_over(y8)), present)


class Reviewer(nn.Module):
    """Draws what a mask should be, and rates the mask, on the segmenter's view of the object.

    Args:
        config: Sizes.
    """

    STATE = 4
    """Channels of the state: mask (0..1), box (-1..1, or 0 without one), 1 with a box, 1 inside the view."""
    _FACTS = 12

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        m4, m8, m16, _ = config.segmenter
        c4, c8, c16 = config.review
        self.enter4 = nn.Conv2d(m4 + self.STATE, c4, 3, padding=1)
        self.enter8 = nn.Conv2d(m8 + self.STATE + 3 + config.context + 2, c8, 3, padding=1)
        self.enter16 = nn.Conv2d(m16 + c8, c16, 1)
        self.norm = nn.GroupNorm(8, c16)
        self.relate = nn.ModuleList(AttentionBlock(c16) for _ in range(2))
        self.up16, self.up8 = nn.Conv2d(c16, c8, 1), nn.Conv2d(c8, c4, 1)
        self.refine8, self.refine4 = ResidualBlock(c8), ResidualBlock(c4)
        self.head = nn.Conv2d(c4, 1, 3, padding=1)
        self.rate = nn.Sequential(nn.Linear(c16 + 2 * c8 + self._FACTS, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(
        self, maps: Sequence[Tensor], state: Tensor, context: Tensor, presence: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Review N masks.

        Args:
            maps: The first four that the segmenter's encoder makes (strides 4, 8, 16, and embeddings at 8), padded to a
                square.
            state: (N, STATE, h, w) at stride 4.
            context: (N, context + 2, h / 2, w / 2): the locator's context, region and heat, at the places of the view.
            presence: (N,) logits, the locator's.

        Returns:
            Logits (N, 1, h, w) of what the mask should be, and the logit (N,) of the IoU of the mask that is there.
        """
        m4, m8, m16, e8 = maps
        state8 = F.avg_pool2d(state, 2)
        mask8, valid8 = state8[:, :1], state8[:, 3:]
        box8 = (state8[:, 1:2].clamp(min=0) * state8[:, 2:3]) * valid8
        alike = torch.cat([_alike(e8, part) for part in (mask8, (1 - mask8) * valid8, box8)], 1)
        x8 = F.relu(self.enter8(torch.cat([m8, state8, alike, context], 1)))
        x16 = F.relu(self.norm(self.enter16(torch.cat([m16, F.avg_pool2d(x8, 2)], 1))))
        for block in self.relate:
            x16 = block(x16)
        x8 = self.refine8(F.relu(x8 + F.interpolate(self.up16(x16), scale_factor=2.0, mode="bilinear")))
        x4 = F.relu(self.enter4(torch.cat([m4, state], 1)))
        x4 = self.refine4(F.relu(x4 + F.interpolate(self.up8(x8), scale_factor=2.0, mode="bilinear")))
        logits: Tensor = self.head(x4)
        return logits, self._rating(logits.detach(), state, x16, x8, context[:, -2:], presence)

    def _rating(
        self, logits: Tensor, state: Tensor, x16: Tensor, x8: Tensor, located: Tensor, presence: Tensor
    ) -> Tensor:
        mask, valid = state[:, :1], state[:, 3:]
        wanted = torch.sigmoid(logits) * valid
        size, area, whole = mask.sum((1, 2, 3)), wanted.sum((1, 2, 3)), valid.sum((1, 2, 3))
        sure = part_mean((2 * wanted - 1).abs(), mask)[:, 0]
        region, heat = (F.interpolate(m, scale_factor=2.0, mode="bilinear") for m in (located[:, :1], located[:, 1:]))
        region = torch.sigmoid(region) * valid
        # What the locator says about the place: the name's share in the rating.
        named = [*compare_masks(mask, region), (heat.clamp(-6, 3) * mask).amax((1, 2, 3)), presence.clamp(-6, 6)]
        facts = [*compare_masks(mask, wanted), sure, size / whole, area / whole, state[:, 2].amax((1, 2)), *named]
        inside, wrong = (F.avg_pool2d(m, 2) for m in (mask, (mask - wanted).abs() * valid))
        pooled = [part_mean(x8, part) for part in (inside, wrong)]
        out: Tensor = self.rate(torch.cat([x16.mean((2, 3)), *pooled, torch.stack(facts, 1)], 1)).squeeze(1)
        return out + facts[0]


def _alike(embedding: Tensor, part: Tensor) -> Tensor:
    """Cosine similarity of every place with the mean over a part: (N, 1, h, w)."""
    prototype = (embedding * part).sum((2, 3)) / (part.sum((2, 3)) + 1e-3)
    return (embedding * prototype[:, :, None, None]).sum(1, keepdim=True)


class PolicyNet(nn.Module):
    """Backbone and evidence (both frozen), locators, reviewer and judge.

    Args:
        config: Sizes and labels.
    """

    mean: Tensor
    std: Tensor
    examples: Tensor

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = EfficientNetLite(config.backbone).requires_grad_(False)
        _, c8, c16, c32 = self.backbone.channels
        self.evidence = Evidence(c32, len(config.labels)).requires_grad_(False)
        self.register_buffer("examples", torch.zeros(len(config.examples), len(self.evidence.centre)))
        s4, s8, s16, embedding = config.segmenter
        inputs = c8 + s8 + embedding, c16 + s16, c32
        # Learning to be steered costs a locator some of its sense for what stands out: that is asked of another one.
        self.salience, self.locator = Locator(config, inputs), Locator(config, inputs)
        self.reviewer = Reviewer(config)
        self.judge = Judge(NetConfig(channels=(s4, s8, s16), embedding=embedding))
        self.calibration = nn.Parameter(torch.tensor([1.0, 0.0, 0.3, 0.5]), requires_grad=False)
        """Of the reviewer's rating's logit: factor and shift; the least score of a target, and the least presence."""
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1) * 255, persistent=False)

    def locator_for(self, query: Query) -> Locator:
        """Which locator to ask."""
        return self.salience if query.blank else self.locator

    def look(self, pixels: Tensor) -> list[Tensor]:
        """Frozen features at strides 8, 16 and 32 of images (N, 3, H, W), RGB in 0..255."""
        images = ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            maps: list[Tensor] = self.backbone(images)
        return maps[1:]

    def rating(self, reviewed: Tensor, judged: Tensor | None = None) -> Tensor:
        """The predicted IoU from the logits of the reviewer and, where it was asked, the judge, all (N,)."""
        factor, shift, *_ = self.calibration
        rated = torch.sigmoid(reviewed * factor + shift)
        return rated if judged is None else (1 - _JUDGED) * rated + _JUDGED * torch.sigmoid(judged)
