from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from label_studio_segagent.embedded.evidence import Evidence
from label_studio_segagent.hlmat.arrays import mask_box
from label_studio_segagent.hlmat.trajectory import encode_mask
from label_studio_segagent.segmenters.embedded_views import View
from label_studio_segagent.training.policy_data import Instance, Scene, WholeFeatures
from label_studio_segagent.training.policy_evidence import Lessons, teach

NAMES = ("cat", "person")


@pytest.fixture(scope="module")
def taught() -> tuple[Evidence, list[Scene], Lessons]:
    """Twenty scenes whose left half is a cat and whose right half, in every other one, is a pedestrian."""
    torch.manual_seed(0)
    scenes, maps = [], []
    for number in range(20):
        left = np.zeros((64, 128), bool)
        left[:, :64] = True
        shown = [("cat", left)] + [("pedestrian", ~left)] * (number % 2)
        instances = [
            Instance(name, encode_mask(mask), mask_box(mask) or (0, 0, 1, 1), 0.5, f"{number}/{name}")
            for name, mask in shown
        ]
        scenes.append(Scene(Path(f"{number}.jpg"), (64, 128), tuple(instances), (), frozenset(NAMES)))
        deep = torch.randn(1, 4, 2, 4) * 0.3
        deep[:, 0, :, :2] += 3
        deep[:, 1, :, 2:] += 3 * (number % 2)
        maps.append([torch.zeros(1)] * 2 + [deep])
    evidence = Evidence(4, len(NAMES), features=32)
    lessons = teach(evidence, NAMES, scenes, WholeFeatures([View((0, 0, 128, 64), 64, 128)] * 20, maps))
    return evidence, scenes, lessons


def test_taught_names_are_told_from_their_surroundings(taught: tuple[Evidence, list[Scene], Lessons]) -> None:
    evidence, _, _ = taught
    deep = torch.zeros(1, 4, 2, 4)
    deep[:, 0, :, :2], deep[:, 1, :, 2:] = 3, 3
    seen = evidence.see(deep)
    assert (seen.taught[0, :, :2] > seen.taught[0, :, 2:]).all()
    assert (seen.taught[1, :, 2:] > seen.taught[1, :, :2]).all(), "a pedestrian is a person, too"


def test_evidence_about_a_scene_never_rests_on_it(taught: tuple[Evidence, list[Scene], Lessons]) -> None:
    _, scenes, lessons = taught
    rng = np.random.default_rng(0)
    for number in range(len(scenes)):
        without = lessons.prototypes(number)
        assert without is not None
        others = [mean for other, mean in lessons.means["cat"].items() if lessons.folds[other] != lessons.folds[number]]
        weights = torch.tensor([weight for _, weight in others])
        expected = sum(w * m.float() for m, w in others) / weights.sum()
        torch.testing.assert_close(without[0], expected, atol=1e-4, rtol=1e-4)
    own = {number: mean for number, (mean, _) in lessons.means["cat"].items()}
    for _ in range(50):
        shown, count = lessons.examples("cat", 3, rng)
        assert shown is not None and 1 <= count <= 19
        if count == 1:
            assert not torch.equal(shown.half(), own[3])
    assert lessons.examples("dog", 3, rng) == (None, 0)


def test_names_are_asked_for_in_every_way(taught: tuple[Evidence, list[Scene], Lessons]) -> None:
    _, _, lessons = taught
    rng = np.random.default_rng(0)
    kinds = Counter()
    for _ in range(400):
        query = lessons.query("cat", 0, rng)
        kinds[bool(query.classes), bool(query.taught), query.examples is not None] += 1
    assert set(kinds) == {
        (True, True, False), (True, False, False), (False, False, True), (True, True, True), (True, False, True)
    }  # fmt: skip
    assert lessons.query("object", 0, rng).blank


def test_scenes_from_elsewhere_get_what_all_have_taught(taught: tuple[Evidence, list[Scene], Lessons]) -> None:
    assert taught[2].elsewhere().prototypes(0) is None
