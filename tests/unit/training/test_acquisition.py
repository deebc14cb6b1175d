from __future__ import annotations

import cv2
import numpy as np
import pytest

from label_studio_segagent import SegAgent, load_policy, load_segmenter
from label_studio_segagent.agent.rollout import Rollout
from label_studio_segagent.hlmat.trajectory import Trajectory
from label_studio_segagent.training.acquisition import labelling_order, look_twice, uncertainty


def rollout(mask: np.ndarray, rating: float) -> Rollout:
    return Rollout(mask, rating, Trajectory("x"), "finish")


def block(*columns: int) -> np.ndarray:
    mask = np.zeros((4, 10), bool)
    mask[:, list(columns)] = True
    return mask


def test_agreement_and_rating_make_sure() -> None:
    one = block(1, 2, 3, 4)
    assert uncertainty([rollout(one, 1.0)], [one]) == 0
    assert uncertainty([rollout(one, 0.8)], [one]) == pytest.approx(0.2)
    assert uncertainty([rollout(one, 1.0)], [block(1, 2)]) == pytest.approx(0.5)
    assert uncertainty([rollout(one, 1.0)], []) == 1 and uncertainty([], [one]) == 1
    assert uncertainty([rollout(one, 1.0)], [one, block(8)]) == pytest.approx(0.5)
    assert 0 < uncertainty([], []) < 1


def test_what_the_mirror_shows_is_compared_where_it_is() -> None:
    """A plain disc far from the middle is the same in the mirror; where there is nothing, nobody knows."""
    agent = SegAgent(load_policy("saliency"), load_segmenter("grabcut"))
    image = np.full((90, 120, 3), 60, np.uint8)
    cv2.circle(image, (30, 40), 16, (250, 220, 40), -1)
    [[one]], unsure = look_twice(agent, [(image, "object")])
    assert one.mask[40, 30] and not one.mask[:, 60:].any()
    assert unsure == pytest.approx(1 - one.predicted_iou, abs=0.05)
    assert look_twice(agent, [(np.full((90, 120, 3), 60, np.uint8), "object")]) == ([[]], uncertainty([], []))


def test_the_unsure_come_first_and_twins_late() -> None:
    features = np.array([[0.0, 0.0], [0.0, 0.01], [5.0, 5.0], [9.0, 0.0]])
    unsure = np.array([0.9, 0.89, 0.5, 0.1])
    order = labelling_order(unsure, features)
    assert order[0] == 0 and order[1] == 2 and sorted(order) == [0, 1, 2, 3]
    # What looks like an annotated image waits.
    assert labelling_order(unsure, features, np.array([[0.0, 0.0]]))[0] == 2


def test_odd_numbers_of_images() -> None:
    assert labelling_order(np.zeros(0), np.zeros((0, 3))) == []
    assert labelling_order(np.zeros(1), np.zeros((1, 3))) == [0]
    assert sorted(labelling_order(np.zeros(5), np.ones((5, 3)), np.ones((2, 3)))) == list(range(5))
