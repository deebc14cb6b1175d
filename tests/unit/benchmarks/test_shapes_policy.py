"""A language model that has learned to annotate: the shipped checkpoint on scenes that it has not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.hlmat_shapes.evaluation import RandomPolicy, blind
from benchmarks.hlmat_shapes.scenes import SIDE, make_samples
from benchmarks.hlmat_shapes.wand import WandSegmenter
from label_studio_segagent import SegAgent, load_policy
from label_studio_segagent.hlmat.actions import Click
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.policies import Observation, Policy

WEIGHTS = Path(__file__).parents[3] / "benchmarks" / "hlmat_shapes" / "weights"
pytestmark = pytest.mark.skipif(
    not (WEIGHTS / "model.safetensors").is_file(), reason="python -m benchmarks.hlmat_shapes --ship makes the weights"
)
SAMPLES = make_samples(24, 11)
EMPTY = np.zeros((SIDE, SIDE), bool)


@pytest.fixture(scope="module")
def policy() -> Policy:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGAGENT_PRESET", "segagent")
        return load_policy(f"hf:{WEIGHTS}")


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) < 15e6


def test_it_finds_what_is_meant(policy: Policy) -> None:
    tool = WandSegmenter()
    random, found = (blind(one, tool, SAMPLES, 5) for one in (RandomPolicy(), policy))
    chance, hits = (np.mean([ious[1] > 0.1 for ious, _ in rows]) for rows in (random, found))
    assert hits > 0.35 > 0.2 > chance, "share of first clicks that hit"
    chance, miou = (np.mean([ious[-1] for ious, _ in rows]) for rows in (random, found))
    assert miou > 0.25 > 0.15 > chance, "mIoU after five clicks"
    pairs = np.array([pair for _, rated in found for pair in rated])
    assert np.corrcoef(pairs.T)[0, 1] > 0.4, "its ratings go with the truth"


def test_several_answers_are_sampled_and_they_differ(policy: Policy) -> None:
    seen = [Observation(s.image, EMPTY, s.prompt) for s in SAMPLES[:8]]
    groups = policy.propose(seen, 4)
    assert [g[0].action for g in groups] == [d.action for d in policy.act(seen)]
    assert sum(len(g) for g in groups) > len(groups), "different clicks are tried"
    for group in groups:
        assert all(isinstance(d.action, Click) and d.logprob is not None and d.logprob < 0 for d in group)


def test_a_search_rates_what_it_tries(policy: Policy) -> None:
    agent = SegAgent(policy, WandSegmenter(), max_clicks=3, candidates=3)
    tried = []
    for sample in SAMPLES[:6]:
        rollout = agent.segment(sample.image, sample.prompt)
        assert rollout.mask.any() and 0 < rollout.predicted_iou <= 1
        tried.append(rollout.trajectory.meta["masks_tried"])
    assert max(tried) > 1


def test_right_masks_are_rated_above_empty_and_foreign_ones(policy: Policy) -> None:
    agent = SegAgent(policy, WandSegmenter())
    right = [agent.score(s.image, s.prompt, s.mask) for s in SAMPLES]
    wrong = [agent.score(s.image, s.prompt, np.roll(s.mask, SIDE // 2, axis=1)) for s in SAMPLES]
    empty = [agent.score(s.image, s.prompt, EMPTY) for s in SAMPLES]
    assert np.mean(right) > np.mean(wrong) + 0.1 and max(empty) == 0


def test_a_mask_is_refined(policy: Policy) -> None:
    """Half of each mask is taken away; on average some of it comes back."""
    agent, gains = SegAgent(policy, WandSegmenter()), []
    for sample in SAMPLES:
        half = sample.mask.copy()
        half[:, : int(np.median(np.nonzero(sample.mask)[1]))] = False
        gains.append(iou(agent.refine(sample.image, sample.prompt, half).mask, sample.mask) - iou(half, sample.mask))
    assert np.mean(gains) > 0
