from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from coco_files import write_coco

from label_studio_segagent.policies.embedded_judge import Judge
from label_studio_segagent.segmenters.embedded_net import NetConfig, SegmenterNet
from label_studio_segagent.training.policy_data import Scene, read_scenes
from label_studio_segagent.training.policy_judging import JudgeDataset, judging_loss

SIZES = NetConfig(backbone="lite0", channels=(16, 16, 32), embedding=8, context_blocks=1)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Scene]:
    """Four pictures with a bright disc and a bright square on noise, far apart."""
    rng = np.random.default_rng(0)
    pictures = []
    for number in range(4):
        pixels = rng.integers(0, 60, (120, 160, 3)).astype(np.uint8)
        disc = cv2.circle(np.zeros((120, 160), np.uint8), (40, 60), 20 + number, 1, -1)
        square = cv2.rectangle(np.zeros((120, 160), np.uint8), (100, 40), (130 + number, 80), 1, -1)
        pixels[square > 0], pixels[disc > 0] = (60, 200, 220), (200, 180, 40)
        pictures.append((pixels, [(1, square), (1, disc)]))
    return read_scenes([write_coco(tmp_path_factory.mktemp("data"), pictures)])


def test_masks_are_of_the_object_and_of_all_qualities(scenes: list[Scene]) -> None:
    dataset, rng = JudgeDataset(scenes, 96), np.random.default_rng(0)
    ious = []
    for _ in range(12):
        batch = dataset.batch(rng, 2, 3)
        assert batch.images.shape == (2, 3, 96, 96) and batch.owners.tolist() == [0, 0, 0, 1, 1, 1]
        assert batch.masks.shape == batch.wanted.shape == (6, 1, 48, 48) and batch.masks.dtype == torch.bool
        assert batch.masks.any(-1).any(-1).all() and torch.equal(batch.wanted[0], batch.wanted[2])
        for row in torch.nonzero(batch.labels.any(1))[:, 0].tolist():
            for (x, y), label in zip(batch.points[row].tolist(), batch.labels[row].tolist(), strict=True):
                assert not label or batch.wanted[row, 0, int(y / 2), int(x / 2)], "clicks are on the object"
        both, either = batch.masks & batch.wanted, batch.masks | batch.wanted
        ious += (both.sum((1, 2, 3)) / either.sum((1, 2, 3))).tolist()
        inside = batch.images.mean(1)[batch.owners][batch.wanted[:, 0].repeat_interleave(2, 1).repeat_interleave(2, 2)]
        assert inside.mean() > batch.images.mean(), "the object is where its mask is"
    assert max(ious) == 1 and min(ious) < 0.6 and 0.5 < np.mean(ious) < 0.95


def test_a_judge_learns_from_it(scenes: list[Scene]) -> None:
    torch.manual_seed(0)
    clicker, judge = SegmenterNet(SIZES).eval().requires_grad_(False), Judge(SIZES)
    judge.load_state_dict(clicker.state_dict(), strict=False)
    dataset, rng = JudgeDataset(scenes, 96), np.random.default_rng(0)
    optimizer = torch.optim.Adam(judge.parameters(), 2e-3)
    reports = []
    for _ in range(40):
        optimizer.zero_grad()
        loss, report = judging_loss(judge, clicker, dataset.batch(rng, 2, 3))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        reports.append(report)
    early, late = ({k: np.mean([r[k] for r in part]) for k in reports[0]} for part in (reports[:5], reports[-5:]))
    assert late["loss"] < 0.8 * early["loss"] and late["drawn"] > early["drawn"] + 0.1
    assert late["rating_error"] < early["rating_error"]
