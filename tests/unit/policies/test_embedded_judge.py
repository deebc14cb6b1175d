from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from label_studio_segagent.policies.embedded_judge import Judge
from label_studio_segagent.segmenters.embedded_decoder import Prompt
from label_studio_segagent.segmenters.embedded_net import NetConfig, SegmenterNet

SIZES = NetConfig(backbone="lite0", channels=(16, 16, 32), embedding=8, context_blocks=1)


@pytest.fixture(scope="module")
def segmenter() -> SegmenterNet:
    torch.manual_seed(0)
    return SegmenterNet(SIZES).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def features(segmenter: SegmenterNet) -> list[Tensor]:
    return segmenter.encode(torch.rand(3, 3, 96, 64) * 255)


def test_it_starts_as_the_segmenter_and_rates_by_what_it_would_draw(
    segmenter: SegmenterNet, features: list[Tensor]
) -> None:
    judge = Judge(SIZES).eval()
    judge.load_state_dict(segmenter.state_dict(), strict=False)
    mask = torch.zeros(3, 1, 24, 16)
    mask[:, :, 6:12, 4:10] = 1
    logits, rating = judge(features, mask)
    nothing = torch.zeros(3, 1)
    prompt = Prompt(torch.zeros(3, 1, 2), nothing, mask, torch.ones(3), torch.zeros(3, 4))
    assert torch.equal(logits, segmenter.decode(features, prompt)[0]) and logits.shape == (3, 1, 48, 32)
    drawn = F.avg_pool2d(torch.sigmoid(logits), 2)
    overlap = (mask * drawn).sum((1, 2, 3)) / (mask + drawn - mask * drawn).sum((1, 2, 3))
    assert rating.shape == (3,) and torch.allclose(torch.sigmoid(rating), overlap, atol=0.03)


def test_masks_are_judged_one_by_one(features: list[Tensor]) -> None:
    torch.manual_seed(1)
    judge = Judge(SIZES).eval()
    torch.nn.init.normal_(judge.rate[2].weight)  # type: ignore[arg-type]
    masks = (torch.rand(3, 1, 24, 16) > 0.5).float()
    together = judge(features, masks)
    alone = [judge([f[i : i + 1] for f in features], masks[i : i + 1]) for i in range(3)]
    assert torch.allclose(together[1], torch.cat([rating for _, rating in alone]), atol=1e-4)
    assert torch.allclose(together[0], torch.cat([logits for logits, _ in alone]), atol=1e-4)
    other = judge(features, masks.flip(0))[1]
    assert not torch.allclose(together[1], other, atol=1e-3)


def test_it_learns_through_the_rating_as_well(features: list[Tensor]) -> None:
    judge = Judge(SIZES)
    torch.nn.init.normal_(judge.rate[2].weight)  # type: ignore[arg-type]
    judge(features, torch.ones(3, 1, 24, 16))[1].sum().backward()
    touched = {name for name, p in judge.named_parameters() if p.grad is not None and p.grad.any()}
    assert "rate.0.weight" in touched and "prompt16.weight" in touched
