"""The tree search, with policies whose mistakes the test chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from label_studio_segagent import Click, Finish, SegAgent, load_segmenter
from label_studio_segagent.hlmat.actions import GRAMMARS, Action
from label_studio_segagent.hlmat.annotator import SimulatedAnnotator
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.policies import Decision, Observation, Policy, Target
from label_studio_segagent.policies.oracle import OraclePolicy
from label_studio_segagent.segmenters import ImageState, Query, Segmentation, Segmenter

IMAGE = np.zeros((20, 40, 3), np.uint8)


class Columns(Segmenter):
    """A positive click turns its column on, a negative one off; records the batches."""

    version = "columns"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def set_image(self, image: np.ndarray) -> ImageState:
        return ImageState(image)

    def predict(
        self, state: ImageState, clicks: Sequence[Click], *, box: Any = None, prior: Any = None
    ) -> Segmentation:
        mask = np.zeros(state.size, bool)
        for click in clicks:
            mask[:, int(click.x)] = click.positive
        return Segmentation(mask, 0.5, mask.astype(np.float32))

    def predict_batch(self, queries: Sequence[Query]) -> list[Segmentation]:
        self.batches.append(len(queries))
        return super().predict_batch(queries)


class Rated(Policy):
    """Proposes the columns of a table by the columns that are on, and rates masks by another one."""

    grammar = GRAMMARS["segagent"]()
    version = "rated"

    def __init__(self, worth: dict[frozenset[int], float], moves: dict[frozenset[int], list[int | str]]) -> None:
        self.worth, self.moves, self.asked = worth, moves, []

    def locate_batch(self, items: Sequence[tuple[np.ndarray, str]]) -> list[list[Target]]:
        return [[Target(None, None, 1.0)] for _ in items]

    def act(self, observations: Sequence[Observation]) -> list[Decision]:
        raise AssertionError("a search asks for candidates")

    def propose(self, observations: Sequence[Observation], count: int) -> list[list[Decision]]:
        self.asked.append((len(observations), count))
        return [self._answers(frozenset(np.flatnonzero(o.mask.any(0)).tolist()), count) for o in observations]

    def _answers(self, on: frozenset[int], count: int) -> list[Decision]:
        actions: dict[str, Action | None] = {"finish": Finish(), "nonsense": None}
        moves = self.moves.get(on, ["finish"])[:count]
        return [
            Decision(actions[m] if isinstance(m, str) else Click(m, 5), self.worth.get(on, 0.0), f"{sorted(on)} {m}")
            for m in moves
        ]


def on(*columns: int) -> frozenset[int]:
    return frozenset(columns)


WORTH = {on(1): 0.3, on(2): 0.6, on(3): 0.5, on(2, 4): 0.62, on(3, 5): 0.9, on(2, 6): 0.7, on(3, 5, 7): 0.4}
MOVES: dict[frozenset[int], list[int | str]] = {on(): [1, 2, 3], on(2): [4, 6], on(3): [5], on(3, 5): [7]}


def search(worth: Any = WORTH, moves: Any = MOVES, **settings: Any) -> Any:
    policy, tool = Rated(worth, moves), Columns()
    rollout = SegAgent(policy, tool, **{"candidates": 3, **settings}).segment(IMAGE, "bars")
    return rollout, policy, tool


def columns(mask: np.ndarray) -> set[int]:
    return set(np.flatnonzero(mask.any(0)).tolist())


def test_every_candidate_is_tried_and_the_best_rated_mask_goes_on() -> None:
    rollout, policy, tool = search()
    assert columns(rollout.mask) == {2, 6} and rollout.predicted_iou == pytest.approx(0.7)
    assert tool.batches == [0, 3, 2] and policy.asked == [(1, 3), (3, 3), (2, 3)]
    steps = rollout.trajectory.steps
    assert [s.action for s in steps] == [Click(2, 5), Click(6, 5), Finish()]
    assert [s.predicted_iou for s in steps] == [0.0, 0.6, 0.7]
    assert [columns(s.mask) for s in steps] == [set(), {2}, {2, 6}]
    assert steps[0].text == "[] 2" and rollout.stopped == "finish"
    assert rollout.trajectory.meta["masks_tried"] == 6 and rollout.trajectory.meta["tool_calls"] == 5


def test_a_beam_finds_what_greedy_choice_misses() -> None:
    rollout, policy, _ = search(beam=2)
    assert columns(rollout.mask) == {3, 5} and rollout.predicted_iou == pytest.approx(0.9)
    assert policy.asked == [(1, 3), (3, 3), (3, 3), (1, 3)]
    assert [columns(s.mask) for s in rollout.trajectory.steps] == [set(), {3}, {3, 5}]
    assert rollout.stopped == "no gain"  # the last click made it worse: the mask before it is the answer


def test_the_root_counts_too() -> None:
    start = np.zeros((20, 40), bool)
    start[:, 8] = True
    policy = Rated({on(8): 0.8, on(1): 0.2, on(1, 8): 0.3}, {on(8): [1]})
    rollout = SegAgent(policy, Columns(), candidates=3).refine(IMAGE, "bars", start)
    assert columns(rollout.mask) == {8} and rollout.stopped == "no gain"


def test_duplicates_are_merged_and_clicks_not_repeated() -> None:
    _, _, tool = search(moves={on(): [2, 2, 2], on(2): [2, 4]})
    assert tool.batches == [0, 1, 1]


@pytest.mark.parametrize(("calls", "expected"), [(1, {1}), (3, {2}), (4, {2, 4}), (5, {2, 6})])
def test_the_budget_of_tool_calls_is_kept(calls: int, expected: set[int]) -> None:
    rollout, _, tool = search(tool_calls=calls)
    assert sum(tool.batches) == calls and columns(rollout.mask) == expected


def test_ends() -> None:
    assert search(max_clicks=1)[0].stopped == "clicks" and columns(search(max_clicks=1)[0].mask) == {2}
    assert search(max_clicks=0)[0].stopped == "clicks"
    assert search(stop_iou=0.6)[0].stopped == "good enough"
    assert search(time_budget=1e-9)[0].stopped == "time"
    assert search(moves={})[0].stopped == "finish"
    assert search(moves={on(): ["nonsense"]})[0].stopped == "unparsable"
    assert search(moves={on(): [2], on(2): [2]})[0].stopped == "repeated"


def test_unparsable_candidates_do_not_stop_the_others() -> None:
    rollout, _, _ = search(moves={on(): ["nonsense", 2], on(2): ["finish", 6]})
    assert columns(rollout.mask) == {2, 6}


class Trembling(OraclePolicy):
    """The oracle as PRM; its clicks are F_sim's, badly aimed."""

    def __init__(self, samples: Sequence[Sample], noise: float, seed: int = 0) -> None:
        super().__init__(samples)
        self.noise, self.rng = noise, np.random.default_rng(seed)

    def act(self, observations: Sequence[Observation]) -> list[Decision]:
        return [candidates[0] for candidates in self.propose(observations, 1)]

    def propose(self, observations: Sequence[Observation], count: int) -> list[list[Decision]]:
        pairs = zip(observations, super().act(observations), strict=True)
        return [[self._shaken(seen, decision) for _ in range(count)] for seen, decision in pairs]

    def _shaken(self, seen: Observation, decision: Decision) -> Decision:
        click = decision.action
        if not isinstance(click, Click):
            return decision
        height, width = seen.mask.shape
        x, y = np.array([click.x, click.y]) + self.rng.normal(0, self.noise, 2)
        moved = Click(float(np.clip(x, 0, width - 1)), float(np.clip(y, 0, height - 1)), click.positive)
        return Decision(moved, decision.predicted_iou, decision.text)


class Brush(Columns):
    """A click paints a disc, or wipes one out."""

    def predict(
        self, state: ImageState, clicks: Sequence[Click], *, box: Any = None, prior: Any = None
    ) -> Segmentation:
        mask = np.zeros(state.size, bool)
        y, x = np.mgrid[: state.size[0], : state.size[1]]
        for click in clicks:
            mask[np.hypot(x - click.x, y - click.y) < 9] = click.positive
        return Segmentation(mask, 0.5, mask.astype(np.float32))


def test_more_candidates_help_a_policy_that_trembles() -> None:
    y, x = np.mgrid[:60, :90]
    mask = (np.hypot(x - 30, y - 30) < 10) | (np.hypot(x - 62, y - 34) < 10)
    sample = Sample(np.zeros((60, 90, 3), np.uint8), "two", mask)
    means = []
    for candidates in (1, 4):
        found = []
        for seed in range(25):
            agent = SegAgent(Trembling([sample], 8.0, seed), Brush(), max_clicks=3, candidates=candidates)
            found.append(iou(agent.refine(sample.image, "two", np.zeros_like(sample.mask)).mask, sample.mask))
        means.append(np.mean(found))
    assert means[1] > means[0] + 0.1, means


def test_annotators_as_policies_reach_the_end(scene: Sample) -> None:
    policy = OraclePolicy([scene], SimulatedAnnotator(stop_iou=0.9))
    rollout = SegAgent(policy, load_segmenter("embedded"), candidates=3).segment(scene.image, scene.prompt)
    assert rollout.predicted_iou == pytest.approx(iou(rollout.mask, scene.mask))
