"""The judge of the embedded policy: is this mask one object's, whatever it is called?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..segmenters.embedded_decoder import ClickDecoder, NetConfig, Prompt

__all__ = ["Judge", "compare_masks", "part_mean"]

_EDGE = 5
"""Width of the strip along a mask's boundary that is looked at on its own, in cells of stride 4."""


class Judge(ClickDecoder):
    """The segmenter's decoder, taught to look at a finished mask: what it should be, and its IoU with that.

    It knows no labels, so it has nothing to learn by heart but what objects look like, and it sees the boundary at the
    resolution that the segmenter draws it in.

    Args:
        config: Sizes of the segmenter whose maps it looks at.
    """

    _FACTS = 8

    def __init__(self, config: NetConfig) -> None:
        super().__init__(config)
        _, c8, c16 = config.channels
        self.rate = nn.Sequential(nn.Linear(c16 + 3 * c8 + self._FACTS, 64), nn.ReLU(), nn.Linear(64, 1))
        nn.init.zeros_(self.rate[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.rate[2].bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """Judge N masks.

        Args:
            features: From `SegmenterNet.encode`, of a view of the mask and its surroundings.
            mask: (N, 1, h, w) at stride 4, share of each cell that it covers; not empty.

        Returns:
            Logits (N, 1, 2 h, 2 w) of what it should be, and the logit (N,) of its IoU with that.
        """
        count = len(mask)
        prompt = Prompt(
            points=torch.zeros(count, 1, 2), labels=torch.zeros(count, 1), prior=mask, has_prior=torch.ones(count),
            box=torch.zeros(count, 4),
        )  # fmt: skip
        logits, x16, x8 = self.draw(features, prompt)
        wanted = F.avg_pool2d(torch.sigmoid(logits.detach()), 2)
        size, area, cells = mask.sum((1, 2, 3)), wanted.sum((1, 2, 3)), mask[0].numel()
        compared = compare_masks(mask, wanted)
        sure, wrong = (2 * wanted - 1).abs(), (mask - wanted).abs()
        edge = F.max_pool2d(mask, _EDGE, 1, _EDGE // 2) + F.max_pool2d(-mask, _EDGE, 1, _EDGE // 2)
        facts = [*compared, part_mean(sure, mask)[:, 0], part_mean(sure, wanted)[:, 0],
                 size / cells, area / cells, part_mean(wrong, edge)[:, 0]]  # fmt: skip
        pooled = [part_mean(x8, F.avg_pool2d(part, 2)) for part in (mask, wrong, edge)]
        rating: Tensor = self.rate(torch.cat([x16.mean((2, 3)), *pooled, torch.stack(facts, 1)], 1)).squeeze(1)
        return logits, rating + compared[0]


def compare_masks(mask: Tensor, wanted: Tensor) -> list[Tensor]:
    """How masks (N, 1, h, w) in [0, 1] agree: the logit of the IoU, and the share of each in the other, (N,)."""
    both, either = (mask * wanted).sum((1, 2, 3)), (mask + wanted - mask * wanted).sum((1, 2, 3))
    overlap = torch.logit(((both + 0.5) / (either + 1)).clamp(0.02, 0.98))
    return [overlap, both / (mask.sum((1, 2, 3)) + 1), both / (wanted.sum((1, 2, 3)) + 1)]


def part_mean(map_: Tensor, part: Tensor) -> Tensor:
    """Mean (N, c) of a map over a part (N, 1, h, w) of it."""
    return (map_ * part).sum((2, 3)) / (part.sum((2, 3)) + 1)
