"""Keep or replace, exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from bars import Brush, sample
from typing_extensions import override

from label_studio_segagent.hlmat.actions import GRAMMARS, Action, Click, Finish
from label_studio_segagent.hlmat.annotator import SimulatedAnnotator
from label_studio_segagent.hlmat.arrays import Image
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.hlmat.trajectory import Trajectory
from label_studio_segagent.policies import Decision, Observation, Policy, Target
from label_studio_segagent.policies.oracle import OraclePolicy
from label_studio_segagent.segmenters import ImageState
from label_studio_segagent.training.attempts import StarSettings, attempt


class Script(Policy):
    """Says what it was told to say, answer by answer."""

    version, grammar = "script", GRAMMARS["segagent"]()

    def __init__(self, actions: Sequence[Action | None]) -> None:
        self.actions = list(actions)
        self.seen: list[Observation] = []

    @override
    def locate_batch(self, items: Sequence[tuple[Image, str]]) -> list[list[Target]]:
        return [[] for _ in items]

    @override
    def act(self, observations: Sequence[Observation]) -> list[Decision]:
        self.seen += observations
        return [Decision(self.actions.pop(0), 0.5, "as told") for _ in observations]


LEFT, MIDDLE, RIGHT, BESIDE = Click(16, 24), Click(32, 24), Click(48, 24), Click(32, 56)


def actions(trajectory: Trajectory) -> list[Action | None]:
    return [step.action for step in trajectory.steps]


def corrected(number: int) -> Action:
    """What F_sim says after so many of LEFT, MIDDLE, RIGHT."""
    made = (LEFT, MIDDLE, RIGHT)[:number]
    mask = Brush().predict(ImageState(sample().image), made).mask
    return SimulatedAnnotator().next_action(mask, sample().mask, made)


def test_what_helps_is_kept_and_the_rest_replaced() -> None:
    """LEFT helps, BESIDE hurts, RIGHT helps; then even the annotator knows no click that would."""
    policy = Script([LEFT, BESIDE, RIGHT, Finish()])
    [trajectory], tally = attempt(policy, [sample()], Brush(), SimulatedAnnotator(), StarSettings(max_clicks=4))
    correction = corrected(1)
    assert isinstance(correction, Click) and correction not in (LEFT, BESIDE)
    assert actions(trajectory)[:3] == [LEFT, correction, RIGHT]
    assert (tally.kept, tally.replaced, tally.unreadable, tally.trajectories) == (3, 1, 0, 1)
    masks = [Brush().predict(ImageState(sample().image), actions(trajectory)[:n]).mask for n in range(3)]
    for step, mask, seen in zip(trajectory.steps, masks, policy.seen, strict=False):
        assert np.array_equal(step.mask, mask) and np.array_equal(seen.mask, mask), "the rollout went on from there"
        assert step.true_iou == pytest.approx(iou(mask, sample().mask))
    assert [step.text for step in trajectory.steps[:3]] == ["as told", "", "as told"]


def test_finishing_too_early_is_replaced() -> None:
    policy = Script([LEFT, Finish()])
    [trajectory], tally = attempt(policy, [sample()], Brush(), SimulatedAnnotator(), StarSettings(max_clicks=2))
    assert actions(trajectory) == [LEFT, corrected(1), None]
    assert (tally.kept, tally.replaced) == (1, 1)


def test_a_perfect_policy_is_kept_to_the_letter() -> None:
    policy = Script([LEFT, MIDDLE, RIGHT, Finish()])
    [trajectory], tally = attempt(policy, [sample()], Brush(), SimulatedAnnotator())
    assert actions(trajectory) == [LEFT, MIDDLE, RIGHT, Finish()]
    assert (tally.kept, tally.replaced) == (4, 0)
    assert trajectory.steps[-1].true_iou == 1.0


def test_no_click_is_kept_where_the_annotator_is_done() -> None:
    policy = Script([LEFT, MIDDLE, RIGHT, BESIDE])
    [trajectory], tally = attempt(policy, [sample()], Brush(), SimulatedAnnotator())
    assert actions(trajectory) == [LEFT, MIDDLE, RIGHT, Finish()]
    assert (tally.kept, tally.replaced) == (3, 1)


def test_an_unreadable_answer_is_replaced_and_counted() -> None:
    policy = Script([None, Finish()])
    [trajectory], tally = attempt(policy, [sample()], Brush(), SimulatedAnnotator(), StarSettings(max_clicks=1))
    assert actions(trajectory) == [corrected(0), None], "the clicks are used up after the first"
    assert (tally.kept, tally.replaced, tally.unreadable) == (0, 1, 1)


def test_a_gain_must_be_large_enough() -> None:
    policy = Script([LEFT])
    [trajectory], tally = attempt(
        policy, [sample()], Brush(), SimulatedAnnotator(), StarSettings(max_clicks=1, min_gain=0.4)
    )
    assert tally.kept == 0
    assert actions(trajectory) == [Finish()], "the annotator's click gains as little: a person would stop"


def test_samples_in_lockstep_do_not_mix() -> None:
    """More than fit at once, finishing at different times, half of the answers wrong."""
    samples = [sample(seed, top=8 + seed) for seed in range(24)]

    class Noisy(OraclePolicy):
        calls = 0

        @override
        def act(self, observations: Sequence[Observation]) -> list[Decision]:
            self.calls += 1
            right = super().act(observations)
            wrong = Decision(Click(60, 60), 0.1, "")
            masks = [o.mask for o in observations]
            return [wrong if m.sum() // 64 % 3 == 0 or not m.any() else d for m, d in zip(masks, right, strict=True)]

    policy = Noisy(samples)
    together, tally = attempt(policy, samples, Brush(), SimulatedAnnotator())
    assert policy.calls < 24, "one call of the policy for all that are in flight"
    alone = [attempt(policy, [one], Brush(), SimulatedAnnotator())[0][0] for one in samples]
    assert [t.to_json() for t in together] == [t.to_json() for t in alone]
    assert tally.replaced >= 24 and tally.kept > 24 and tally.trajectories == 24
    for trajectory, one in zip(together, samples, strict=True):
        ious = [step.true_iou for step in trajectory.steps]
        assert ious == sorted(ious) and trajectory.meta["object"] == one.id, "every step gains"
