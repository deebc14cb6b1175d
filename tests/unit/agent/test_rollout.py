"""One rollout at a time, with a policy and a tool whose every answer the test writes down."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from label_studio_segagent import Click, Finish, SegAgent
from label_studio_segagent.agent import agent as agent_module
from label_studio_segagent.agent.rollout import HARMFUL_DROP, MAX_REJECTED, Rollout
from label_studio_segagent.hlmat.actions import GRAMMARS, Action
from label_studio_segagent.policies import Decision, Observation, Policy, Target
from label_studio_segagent.segmenters import ImageState, Segmentation, Segmenter

IMAGE = np.zeros((10, 30, 3), np.uint8)
BOX = (2.0, 2.0, 8.0, 8.0)


class Bar(Segmenter):
    """The mask has as many columns as there were clicks (plus `boxed` with a box); records every query."""

    version = "bar"
    boxed = 10

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Click, ...], Any, Any]] = []

    def set_image(self, image: np.ndarray) -> ImageState:
        return ImageState(image)

    def predict(
        self, state: ImageState, clicks: Sequence[Click], *, box: Any = None, prior: Any = None
    ) -> Segmentation:
        self.calls.append((tuple(clicks), box, prior))
        columns = len(clicks) + (self.boxed if box is not None else 0)
        # The logits say which call they come from.
        return Segmentation(bar(columns), 0.5, np.full((2, 2), len(self.calls), np.float32))


def bar(columns: int) -> np.ndarray:
    return np.broadcast_to(np.arange(30) < columns, (10, 30)).copy()


Script = Sequence["tuple[float | None, Action | None]"]


class Scripted(Policy):
    """Answers one rollout with a list of (rating, action); records what it was shown."""

    grammar = GRAMMARS["segagent"]()
    version = "scripted"

    def __init__(self, script: Script, target: Target | None) -> None:
        self.script, self.target = list(script), target
        self.seen: list[Observation] = []

    def locate_batch(self, items: Sequence[tuple[np.ndarray, str]]) -> list[list[Target]]:
        return [[self.target] if self.target else [] for _ in items]

    def act(self, observations: Sequence[Observation]) -> list[Decision]:
        assert len(observations) == 1
        self.seen.append(observations[0])
        rating, action = self.script[len(self.seen) - 1]
        return [Decision(action, rating, f"answer {len(self.seen)}")]


ANYWHERE = Target(None, None, 1.0)
Run = Callable[..., "tuple[Rollout, Scripted, Bar]"]


def run(script: Script, target: Target | None = ANYWHERE, start: np.ndarray | None = None, **settings: Any) -> Any:
    policy, tool = Scripted(script, target), Bar()
    agent = SegAgent(policy, tool, **settings)
    rollout = agent.segment(IMAGE, "bar") if start is None else agent.refine(IMAGE, "bar", start)
    assert len(policy.seen) == len(policy.script), "the rollout ended early"
    return rollout, policy, tool


def c(x: float, positive: bool = True) -> Click:
    return Click(x, 1, positive)


def columns(mask: np.ndarray) -> int:
    assert np.array_equal(mask, bar(int(mask[0].sum())))
    return int(mask[0].sum())


def test_the_mask_of_click_i_is_rated_by_answer_i_plus_one() -> None:
    """The mask of two clicks is rated 0.9, in the third answer; an off-by-one would return that of one or three."""
    rollout, policy, _ = run([(0.0, c(1)), (0.5, c(2)), (0.9, c(3)), (0.88, c(4)), (0.89, Finish())])
    assert [columns(seen.mask) for seen in policy.seen] == [0, 1, 2, 3, 4]
    assert columns(rollout.mask) == 2 and rollout.predicted_iou == 0.9
    steps = rollout.trajectory.steps
    assert [(columns(step.mask), step.predicted_iou) for step in steps] == [
        (0, 0.0), (1, 0.5), (2, 0.9), (3, 0.88), (4, 0.89),
    ]  # fmt: skip
    assert [step.action for step in steps] == [c(1), c(2), c(3), c(4), Finish()]
    assert [step.text for step in steps] == [f"answer {i}" for i in range(1, 6)]
    assert not any(step.undone for step in steps)


def test_the_best_mask_is_kept_not_the_last() -> None:
    rollout, _, _ = run([(0.2, c(1)), (0.8, c(2)), (0.79, c(3)), (0.77, Finish())])
    assert columns(rollout.mask) == 1 and rollout.predicted_iou == 0.8


def test_the_mask_after_the_last_click_is_rated_too() -> None:
    rollout, policy, _ = run([(0.2, c(1)), (0.5, c(2)), (0.7, c(3))], max_clicks=2)
    assert rollout.stopped == "clicks"
    assert columns(rollout.mask) == 2 and rollout.predicted_iou == 0.7
    assert rollout.trajectory.steps[-1].predicted_iou == 0.7 and rollout.trajectory.steps[-1].action is None


def test_of_two_equal_ratings_the_later_mask_is_kept() -> None:
    rollout, _, _ = run([(0.5, c(1)), (0.5, c(2)), (0.5, Finish())])
    assert columns(rollout.mask) == 2


def test_a_harmful_click_is_undone_and_marked() -> None:
    rollout, policy, tool = run([(0.1, c(1)), (0.6, c(2)), (0.3, c(3)), (0.6, c(4)), (0.9, Finish())])
    assert [columns(seen.mask) for seen in policy.seen] == [0, 1, 2, 1, 2]
    # After the undo the policy is told; once a click helps it is told no more.
    assert [seen.rejected for seen in policy.seen] == [(), (), (), (c(2),), ()]
    assert [(step.action, step.undone) for step in rollout.trajectory.steps] == [
        (c(1), False), (c(2), True), (c(4), False), (Finish(), False),
    ]  # fmt: skip
    assert rollout.trajectory.clicks == [c(1), c(4)]
    # The tool gets neither the undone click nor its logits.
    assert [(clicks, None if prior is None else prior[0, 0]) for clicks, _, prior in tool.calls] == [
        ((c(1),), None), ((c(1), c(2)), 1), ((c(1), c(4)), 1),
    ]  # fmt: skip
    assert columns(rollout.mask) == 2 and rollout.predicted_iou == 0.9


def test_a_small_drop_is_not_undone() -> None:
    rollout, _, _ = run([(0.5, c(1)), (0.5 - HARMFUL_DROP, Finish())])
    assert rollout.stopped == "finish" and not any(step.undone for step in rollout.trajectory.steps)
    rollout, _, _ = run([(0.5, c(1)), (0.5 - HARMFUL_DROP - 0.001, c(2)), (0.5, Finish())])
    assert rollout.trajectory.steps[0].undone


def test_finish_on_a_harmed_mask_goes_back_as_well() -> None:
    rollout, _, _ = run([(0.5, c(1)), (0.1, Finish()), (0.5, Finish())])
    assert rollout.trajectory.steps[0].undone and columns(rollout.mask) == 0


def test_after_max_rejected_harmful_clicks_it_stops() -> None:
    script: list[tuple[float, Action]] = [(0.1, c(1))]
    for number in range(MAX_REJECTED):
        script += [(0.6, c(10 + number)), (0.2, c(20))]
    rollout, policy, _ = run(script)
    assert rollout.stopped == "no gain"
    assert columns(rollout.mask) == 1 and rollout.predicted_iou == 0.6
    assert sum(step.undone for step in rollout.trajectory.steps) == MAX_REJECTED
    assert columns(rollout.trajectory.steps[-1].mask) == 1 and rollout.trajectory.steps[-1].predicted_iou == 0.6


def test_undone_clicks_count() -> None:
    rollout, _, tool = run([(0.5, c(1)), (0.6, c(2)), (0.2, c(3))], max_clicks=2)
    assert rollout.stopped == "clicks" and len(tool.calls) == 2
    assert columns(rollout.mask) == 1 and rollout.trajectory.clicks == [c(1)]


def test_finish() -> None:
    rollout, _, tool = run([(0.3, Finish())])
    assert rollout.stopped == "finish" and tool.calls == []
    assert rollout.trajectory.steps[-1].action == Finish()


@pytest.mark.parametrize(("rating", "reason"), [(0.9, "good enough"), (0.95, "good enough"), (0.8999, "clicks")])
def test_good_enough(rating: float, reason: str) -> None:
    rollout, _, _ = run([(0.1, c(1)), (rating, c(2))], stop_iou=0.9, max_clicks=1)
    assert rollout.stopped == reason
    assert columns(rollout.mask) == 1


@pytest.mark.parametrize("again", [c(1), c(2)])
def test_the_same_click_again(again: Click) -> None:
    rollout, _, tool = run([(0.1, c(1)), (0.2, c(2)), (0.3, again)])
    assert rollout.stopped == "repeated" and len(tool.calls) == 2
    assert columns(rollout.mask) == 2


def test_the_other_sign_is_another_click() -> None:
    rollout, _, tool = run([(0.1, c(1)), (0.2, c(1, False)), (0.3, Finish())])
    assert rollout.stopped == "finish" and len(tool.calls) == 2


def test_a_rejected_click_again() -> None:
    rollout, _, _ = run([(0.5, c(1)), (0.1, c(2)), (0.5, c(1))])
    assert rollout.stopped == "repeated" and columns(rollout.mask) == 0


def test_unparsable_ends_with_the_best_mask(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rollout, _, _ = run([(0.1, c(1)), (0.7, c(2)), (None, None)])
    assert rollout.stopped == rollout.trajectory.meta["stopped"] == "unparsable"
    assert columns(rollout.mask) == 1 and rollout.predicted_iou == 0.7  # the last mask was never rated
    last = rollout.trajectory.steps[-1]
    assert last.action is None and last.text == "answer 3" and last.predicted_iou is None
    assert "unparsable" in caplog.text and "answer 3" in caplog.text


def test_unparsable_with_a_rating() -> None:
    better, _, _ = run([(0.5, c(1)), (0.8, None)])
    assert better.stopped == "unparsable" and columns(better.mask) == 1 and better.predicted_iou == 0.8
    worse, _, _ = run([(0.5, c(1)), (0.1, None)])  # ends, though the click was harmful
    assert worse.stopped == "unparsable" and columns(worse.mask) == 0 and worse.predicted_iou == 0.5


def test_unparsable_at_once_and_after_an_empty_mask() -> None:
    first, _, _ = run([(None, None)])
    assert first.stopped == "unparsable" and not first.mask.any() and first.predicted_iou == 0
    second, _, _ = run([(0.0, c(1)), (None, None)])
    assert columns(second.mask) == 1  # better than nothing


def test_a_policy_that_never_rates() -> None:
    rollout, _, _ = run([(None, c(1)), (None, c(2)), (None, Finish())])
    assert columns(rollout.mask) == 2 and rollout.predicted_iou == 0 and rollout.stopped == "finish"
    assert [step.predicted_iou for step in rollout.trajectory.steps] == [None, None, None]


def test_a_rating_left_out_is_no_harm() -> None:
    rollout, _, _ = run([(0.6, c(1)), (None, c(2)), (0.7, Finish())])
    assert not any(step.undone for step in rollout.trajectory.steps)
    assert columns(rollout.mask) == 2 and rollout.trajectory.steps[1].predicted_iou is None


def clock(monkeypatch: pytest.MonkeyPatch, *times: float) -> None:
    """Every look at the clock takes the next of these; the last one stays."""
    left = list(times)
    monkeypatch.setattr("time.monotonic", lambda: left.pop(0) if len(left) > 1 else left[0])


def test_time_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 100.0, 101.0, 102.0, 105.0)
    rollout, _, tool = run([(0.1, c(1)), (0.2, c(2)), (0.3, c(3))], time_budget=5)
    assert rollout.stopped == "time" and len(tool.calls) == 2
    assert columns(rollout.mask) == 2 and rollout.predicted_iou == 0.3  # what is there is still rated


def test_time_budget_starts_with_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding and locating are part of the call."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    class Slow(Bar):
        def set_image(self, image: np.ndarray) -> ImageState:
            now[0] += 4
            return super().set_image(image)

    for start in (None, bar(3)):
        policy = Scripted([(0.1, c(1))], ANYWHERE)
        agent = SegAgent(policy, Slow(), time_budget=3)
        rollout = agent.segment(IMAGE, "bar") if start is None else agent.refine(IMAGE, "bar", start)
        assert rollout.stopped == "time"


def test_time_is_up_after_a_harmful_click(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 0.0, 1.0, 9.0)
    rollout, _, _ = run([(0.6, c(1)), (0.2, c(2))], time_budget=5)
    assert rollout.stopped == "time" and columns(rollout.mask) == 0 and rollout.trajectory.steps[0].undone


def test_a_box_is_shown_to_the_tool_first_and_stays() -> None:
    rollout, policy, tool = run([(0.5, c(1)), (0.6, Finish())], Target(BOX, None, 0.9))
    assert [(clicks, box) for clicks, box, _ in tool.calls] == [((), BOX), ((c(1),), BOX)]
    assert [columns(seen.mask) for seen in policy.seen] == [Bar.boxed, Bar.boxed + 1]
    assert all(seen.box == BOX for seen in policy.seen) and rollout.trajectory.box == BOX
    assert rollout.target == Target(BOX, None, 0.9)


def test_a_point_is_the_first_click() -> None:
    rollout, policy, tool = run([(0.5, c(1)), (0.6, Finish())], Target(None, (4.0, 5.0), 0.9))
    assert [clicks for clicks, _, _ in tool.calls] == [(Click(4, 5),), (Click(4, 5), c(1))]
    first = rollout.trajectory.steps[0]
    assert first.action == Click(4, 5) and first.predicted_iou is None and not first.mask.any()
    assert [columns(seen.mask) for seen in policy.seen] == [1, 2]


def test_a_box_with_a_point_is_a_box() -> None:
    _, _, tool = run([(0.5, Finish())], Target(BOX, (4.0, 5.0), 0.9))
    assert [(clicks, box) for clicks, box, _ in tool.calls] == [((), BOX)]


@pytest.mark.parametrize(
    ("target", "boxes", "size"),
    [(ANYWHERE, 0, 0), (Target(BOX, None, 1.0), 1, Bar.boxed), (Target(None, (4.0, 5.0), 1.0), 0, 0)],
)
def test_no_clicks_allowed(target: Target, boxes: int, size: int) -> None:
    rollout, _, tool = run([(0.4, c(1))], target, max_clicks=0)
    assert rollout.stopped == "clicks" and columns(rollout.mask) == size and rollout.predicted_iou == 0.4
    assert [clicks for clicks, _, _ in tool.calls] == [()] * boxes
    assert rollout.trajectory.clicks == []


def test_the_point_counts_as_a_click() -> None:
    rollout, _, tool = run([(0.4, c(1))], Target(None, (4.0, 5.0), 1.0), max_clicks=1)
    assert rollout.stopped == "clicks" and len(tool.calls) == 1


def test_nothing_located() -> None:
    """Who asks for one object gets the policy's clicks all the same; who asks for all of them gets none."""
    rollout, policy, tool = run([(0.0, c(3)), (0.9, Finish())], None)
    assert rollout.target is None and rollout.stopped == "finish" and columns(rollout.mask) == 1
    assert policy.seen[0].box is None and not policy.seen[0].mask.any() and len(tool.calls) == 1
    assert SegAgent(Scripted([], None), Bar()).segment_all(IMAGE, "bar") == []


def test_refining_starts_from_the_mask_without_locating() -> None:
    rollout, policy, tool = run([(0.5, c(1)), (0.6, Finish())], Target(BOX, None, 1.0), start=bar(7))
    assert columns(policy.seen[0].mask) == 7 and policy.seen[0].box is None
    clicks, box, prior = tool.calls[0]
    assert clicks == (c(1),) and box is None and np.array_equal(prior, bar(7))
    assert rollout.predicted_iou == 0.6


def test_refining_is_never_rated_worse() -> None:
    rollout, _, _ = run([(0.7, c(1)), (0.69, c(2)), (0.68, Finish())], start=bar(7))
    assert columns(rollout.mask) == 7 and rollout.predicted_iou == 0.7
    rollout, _, _ = run([(0.7, c(1)), (0.1, c(2)), (0.7, c(3)), (0.2, c(4))], start=bar(7))
    assert columns(rollout.mask) == 7 and rollout.predicted_iou == 0.7 and rollout.stopped == "no gain"
    rollout, _, _ = run([(0.7, c(1)), (None, None)], start=bar(7))
    assert columns(rollout.mask) == 7 and rollout.predicted_iou == 0.7


def test_trajectory_can_be_stored() -> None:
    from label_studio_segagent.hlmat.trajectory import Trajectory

    rollout, _, _ = run([(0.1, c(1)), (0.6, c(2)), (0.3, c(3)), (0.6, Finish())], Target(BOX, None, 1.0))
    again = Trajectory.from_json(rollout.trajectory.to_json())
    assert again.box == BOX and again.prompt == "bar" and again.meta == rollout.trajectory.meta
    assert [(s.action, s.predicted_iou, s.undone) for s in again.steps] == [
        (s.action, s.predicted_iou, s.undone) for s in rollout.trajectory.steps
    ]
    assert agent_module.SegAgent(Scripted([], None), Bar()).version == again.meta["model_version"]
