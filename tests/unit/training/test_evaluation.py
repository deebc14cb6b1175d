from __future__ import annotations

import numpy as np
import pytest

from label_studio_segagent import SegAgent, load_policy, load_segmenter
from label_studio_segagent.hlmat.trajectory import Sample, encode_mask
from label_studio_segagent.training.evaluation import LabelledImage, match_masks, measure, to_trajectories


def block(*columns: int) -> np.ndarray:
    mask = np.zeros((4, 10), bool)
    mask[:, list(columns)] = True
    return mask


def test_masks_are_matched_best_pairs_first() -> None:
    true = [block(0, 1), block(5, 6, 7, 8)]
    ious, extra = match_masks([block(0, 1, 2, 3), block(0, 1), block(5, 6), block(9)], true)
    assert ious == [1.0, 0.5] and extra == 2
    assert match_masks([], true) == ([0.0, 0.0], 0)
    assert match_masks([block(3)], []) == ([], 1)
    assert match_masks([], []) == ([], 0)


def test_superfluous_objects_count(scene: Sample) -> None:
    agent = SegAgent(load_policy("saliency"), load_segmenter("grabcut"), max_clicks=1)
    read = {"a": scene.image, "flat": np.full((40, 60, 3), 90, np.uint8)}.__getitem__
    there = LabelledImage("a", "object", (encode_mask(scene.mask),))
    alone = measure(agent, [there], read)
    assert alone.objects == 1 and alone.miou > 0.5
    shares: list[float] = []
    # Half of the picture that has an object is said to have none.
    both = measure(agent, [there, LabelledImage("a", "object", ())], read, shares.append)
    assert both.extra == 1 + alone.extra and both.miou < alone.miou and both.matched == alone.matched
    assert shares == [1.0]
    assert measure(agent, [LabelledImage("flat", "object", ())], read).miou == 1


def test_images_become_finished_rollouts() -> None:
    masks = (encode_mask(block(1)), encode_mask(block(2)))
    images = [LabelledImage("u", "cat", masks, "7", 0.3), LabelledImage("v", "cat", (), "8")]
    [one, two, none] = to_trajectories(images)
    assert one.meta == two.meta == {"task": "7", "weight": 0.3} and one.steps[-1].mask[0, 1]
    assert none.meta["absent"] and not none.steps[-1].mask.any() and none.image == "v"
    assert one.to_json() and none.to_json()
    assert pytest.approx(1.0) == one.steps[-1].true_iou
