from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from label_studio_segagent.errors import ConfigError
from label_studio_segagent.hlmat.actions import GRAMMARS, Click, Finish
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.hlmat.trajectory import Sample, Trajectory
from label_studio_segagent.segmenters import ImageState, Segmentation, Segmenter, load_segmenter
from label_studio_segagent.training.trajectories import (
    TrajectorySettings,
    correction,
    loose_box,
    make_trajectory,
    spoiled_mask,
    trajectories_of,
)

GRAMMAR = GRAMMARS["segagent"]()


class Disks(Segmenter):
    """A tool that paints: a positive click adds a disk, a negative one takes a disk away, from the prior or nothing."""

    version = "disks"

    def __init__(self, radius: float = 12.0, harm_at: int | None = None) -> None:
        self.radius, self.harm_at = radius, harm_at
        self.asked: list[tuple[int, Any, bool]] = []

    def set_image(self, image: Any) -> ImageState:
        return ImageState(image)

    def predict(
        self, state: ImageState, clicks: Sequence[Click], *, box: Any = None, prior: Any = None
    ) -> Segmentation:
        self.asked.append((len(clicks), box, prior is not None))
        height, width = state.size
        mask = np.zeros((height, width), bool) if prior is None else prior > 0
        if box is not None and prior is None:
            mask[round(box[1]) : round(box[3]), round(box[0]) : round(box[2])] = True
        if clicks:
            rows, columns = np.mgrid[:height, :width]
            disk = (rows - clicks[-1].y) ** 2 + (columns - clicks[-1].x) ** 2 <= self.radius**2
            mask = mask | disk if clicks[-1].positive else mask & ~disk
        if self.harm_at is not None and len(clicks) == self.harm_at:
            mask = np.zeros_like(mask)
        return Segmentation(mask, 0.5, np.where(mask, 1, -1).astype(np.float32))


def sample(rows: slice = slice(10, 50), columns: slice = slice(20, 60), **fields: Any) -> Sample:
    mask = np.zeros((60, 90), bool)
    mask[rows, columns] = True
    return Sample(np.zeros((60, 90, 3), np.uint8), "Zelle 细胞", mask, path="/data/x.png", **fields)


def check(trajectory: Trajectory, of: Sample, settings: TrajectorySettings) -> None:
    """What holds for every trajectory, whatever the tool did."""
    *clicked, last = trajectory.steps
    assert trajectory.target is not None and np.array_equal(trajectory.target, of.mask)
    ious = [iou(step.mask, of.mask, of.void) for step in trajectory.steps]
    assert [step.true_iou for step in trajectory.steps] == ious
    assert all(then - now > settings.least_gain for now, then in zip(ious, ious[1:], strict=False))
    assert len(clicked) <= settings.max_clicks and all(now < settings.stop_iou for now in ious[:-1])
    for step in trajectory.steps:
        if step.action is None:
            assert step.text == "" and step is last
            continue
        said = GRAMMAR.parse(step.text, step.mask.shape)
        assert said.predicted_iou == pytest.approx(step.true_iou, abs=0.0051)  # of the mask before the click
        assert type(said.action) is type(step.action)
        if isinstance(step.action, Click) and isinstance(said.action, Click):
            assert said.action.positive == step.action.positive
            assert abs(said.action.x - step.action.x) <= 1 and abs(said.action.y - step.action.y) <= 1
            error = of.mask & ~step.mask if step.action.positive else step.mask & ~of.mask
            assert error[int(step.action.y), int(step.action.x)]
    stopped = trajectory.meta["stopped"]
    assert (stopped == "good enough") == (ious[-1] >= settings.stop_iou)
    assert (stopped == "clicks") <= (len(clicked) == settings.max_clicks)


@pytest.mark.parametrize("tool", ["disks", "grabcut"])
def test_from_nothing(scene: Sample, tool: str) -> None:
    segmenter = Disks() if tool == "disks" else load_segmenter(tool)
    trajectory = make_trajectory(scene, segmenter)
    check(trajectory, scene, TrajectorySettings())
    assert trajectory.box is None and not trajectory.steps[0].mask.any() and trajectory.prompt == "ellipse"
    assert trajectory.steps[0].text.startswith("Current IOU: 0\nPositive point: (")
    assert len(trajectory.steps) > 1


def test_with_the_embedded_segmenter(scene: Sample) -> None:
    trajectory = make_trajectory(scene, load_segmenter("embedded"))
    check(trajectory, scene, TrajectorySettings())
    assert trajectory.steps[-1].true_iou is not None and trajectory.steps[-1].true_iou > 0.9


def test_a_click_that_does_harm_is_left_out_and_ends_it() -> None:
    tool, of = Disks(harm_at=3), sample()
    trajectory = make_trajectory(of, tool, TrajectorySettings(max_clicks=9))
    check(trajectory, of, TrajectorySettings(max_clicks=9))
    assert len(trajectory.clicks) == 2 and trajectory.meta["stopped"] == "no gain"
    assert isinstance(trajectory.steps[-1].action, Finish)
    assert [count for count, _, _ in tool.asked] == [1, 2, 3]


def test_nobody_learns_to_finish_where_no_click_had_helped() -> None:
    of = sample()
    [step] = make_trajectory(of, Disks(harm_at=1)).steps
    assert step.action is None and step.text == "" and not step.mask.any()
    start = sample(columns=slice(30, 70)).mask
    [step] = make_trajectory(of, Disks(harm_at=1), start=start).steps
    assert step.action is None and np.array_equal(step.mask, start)


def test_the_number_of_clicks_is_limited() -> None:
    of = sample()
    for most in (0, 1, 3):
        settings = TrajectorySettings(max_clicks=most)
        trajectory = make_trajectory(of, Disks(8), settings)
        check(trajectory, of, settings)
        assert len(trajectory.clicks) == most and trajectory.meta["stopped"] == "clicks"
        assert trajectory.steps[-1].action is None


def test_tau_stop_and_tau_diff() -> None:
    of = sample()
    curve = [step.true_iou for step in make_trajectory(of, Disks(8), TrajectorySettings(max_clicks=30)).steps]
    assert len(curve) > 5
    gentle = make_trajectory(of, Disks(8), TrajectorySettings(stop_iou=0.5, max_clicks=30))
    assert gentle.meta["stopped"] == "good enough" and isinstance(gentle.steps[-1].action, Finish)
    assert (
        0.5 <= (gentle.steps[-1].true_iou or 0) == next(value for value in curve if value is not None and value >= 0.5)
    )
    strict = TrajectorySettings(least_gain=0.122, max_clicks=30)
    demanding = make_trajectory(of, Disks(8), strict)
    check(demanding, of, strict)
    assert len(demanding.steps) < len(curve) and demanding.meta["stopped"] == "no gain"


def test_without_a_least_gain_harmful_clicks_are_kept() -> None:
    settings = TrajectorySettings(least_gain=-math.inf, max_clicks=3)
    trajectory = make_trajectory(sample(), Disks(harm_at=2), settings)
    assert len(trajectory.clicks) == 3
    ious = [step.true_iou or 0 for step in trajectory.steps]
    assert ious[2] < ious[1]


def test_from_a_box_that_stays_a_prompt() -> None:
    tool, of = Disks(), sample()
    trajectory = make_trajectory(of, tool, box=(15.0, 10.0, 60.0, 50.0))
    check(trajectory, of, TrajectorySettings())
    assert trajectory.box == (15.0, 10.0, 60.0, 50.0)
    assert trajectory.steps[0].mask.sum() == 45 * 40
    assert tool.asked[0] == (0, trajectory.box, False) and all(box == trajectory.box for _, box, _ in tool.asked)


def test_from_a_mask_that_the_tool_is_given() -> None:
    tool, of = Disks(), sample()
    start = sample(columns=slice(20, 80)).mask
    trajectory = make_trajectory(of, tool, start=start)
    check(trajectory, of, TrajectorySettings())
    assert np.array_equal(trajectory.steps[0].mask, start) and tool.asked[0] == (1, None, True)
    first = trajectory.steps[0].action
    assert isinstance(first, Click) and not first.positive and first.x > 60


def test_a_good_start_is_finished_at_once() -> None:
    of = sample()
    [step] = make_trajectory(of, Disks(), start=of.mask).steps
    assert step.action == Finish() and step.text == "Current IOU: 100\nFinish"


def test_void_pixels_do_not_count() -> None:
    void = np.zeros((60, 90), bool)
    void[:, 60:] = True
    of = sample(void=void)
    start = of.mask | void
    [step] = make_trajectory(of, Disks(), start=start).steps
    assert step.true_iou == 1 and step.action == Finish()


@pytest.mark.parametrize("tool", ["disks", "grabcut"])
def test_every_shape(shape: np.ndarray, tool: str) -> None:
    of = Sample(np.repeat(shape[..., None].astype(np.uint8) * 200, 3, 2), "x", shape)
    segmenter = Disks(3) if tool == "disks" else load_segmenter(tool)
    settings = TrajectorySettings(box=1, refine=2, auxiliary=2, max_clicks=4)
    state = segmenter.set_image(of.image)
    made = dict(trajectories_of(of, segmenter, state, [], settings, settings.plan, [1]))
    assert {("empty", 0), ("box", 0)} <= set(made) <= set(settings.plan)
    for (kind, _), trajectory in made.items():
        assert trajectory.meta["kind"] == kind
        if kind != "auxiliary":
            check(trajectory, of, settings)


# corrections


def test_a_correction_is_one_step_to_the_centre_of_the_largest_error() -> None:
    of = sample(slice(10, 51), slice(20, 61))
    mask = of.mask.copy()
    mask[20:35, 30:45] = False
    mask[0:5, 0:5] = True
    trajectory = correction(of, mask)
    [step] = trajectory.steps
    assert step.action == Click(37, 27, True)
    assert step.text == f"Current IOU: {round(100 * iou(mask, of.mask))}\nPositive point: (450, 411)"
    assert np.array_equal(step.mask, mask) and trajectory.target is not None


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 70))
def test_spoiled_masks_can_be_corrected(seed: int, height: int, width: int) -> None:
    of = sample(slice(5, 5 + height), slice(10, 10 + width))
    spoiled = spoiled_mask(of, [sample(slice(0, 9), slice(0, 9)).mask], np.random.default_rng(seed))
    if spoiled is None:
        return
    assert spoiled.any() and spoiled.shape == of.mask.shape and iou(spoiled, of.mask) < 0.98
    assert isinstance(correction(of, spoiled).steps[0].action, Click)


def test_large_masks_are_spoiled_in_no_time() -> None:
    mask = np.zeros((3000, 4000), bool)
    mask[200:2800, 300:3700] = True
    spoiled = [
        spoiled_mask(Sample(np.zeros((1, 1, 3), np.uint8), "x", mask), [], np.random.default_rng(i)) for i in range(3)
    ]
    assert all(each is not None and each.shape == mask.shape for each in spoiled)


def test_what_cannot_be_spoiled() -> None:
    one = Sample(np.zeros((1, 1, 3), np.uint8), "x", np.ones((1, 1), bool))
    assert spoiled_mask(one, [], np.random.default_rng(0)) is None


@given(st.integers(0, 2**32), st.integers(0, 58), st.integers(0, 88), st.integers(1, 60), st.integers(1, 90))
def test_loose_boxes_are_boxes_near_the_object(seed: int, row: int, column: int, height: int, width: int) -> None:
    mask = sample(slice(row, row + height), slice(column, column + width)).mask
    x0, y0, x1, y1 = loose_box(mask, np.random.default_rng(seed))
    assert 0 <= x0 and x0 + 1 <= x1 <= 90 and 0 <= y0 and y0 + 1 <= y1 <= 60
    tight = (column, row, min(column + width, 90), min(row + height, 60))
    assert all(abs(a - b) <= 0.4 * 90 + 1 for a, b in zip((x0, y0, x1, y1), tight, strict=True))


# plans


def test_the_plan_and_what_it_may_be() -> None:
    settings = TrajectorySettings(box=1, refine=2, auxiliary=0)
    assert settings.plan == [("empty", 0), ("box", 0), ("refine", 0), ("refine", 1)]
    assert settings.rules == {"stop_iou": 0.98, "least_gain": 0.0, "max_clicks": 7, "seed": 0}
    for wrong in (
        {"stop_iou": 0},
        {"stop_iou": 1.01},
        {"stop_iou": math.nan},
        {"least_gain": 1},
        {"least_gain": math.nan},
        {"max_clicks": -1},
        {"empty": 2},
        {"refine": -1},
    ):
        with pytest.raises(ConfigError):
            TrajectorySettings(**wrong)  # type: ignore[arg-type]


def test_each_trajectory_depends_on_its_key_and_seed_alone(scene: Sample) -> None:
    segmenter = load_segmenter("embedded")
    settings = TrajectorySettings(box=1, refine=2, auxiliary=1, max_clicks=3)
    others = [np.roll(scene.mask, 60, 1)]

    def made(keys: Sequence[tuple[str, int]], seed: int = 5) -> dict[tuple[str, int], str]:
        state = segmenter.set_image(scene.image)
        segmenter.predict(state, [Click(20, 20)])  # another object on the same image
        found = trajectories_of(scene, segmenter, state, others, settings, keys, [seed])
        return {key: trajectory.to_json() for key, trajectory in found}

    together = made(settings.plan)
    alone = {key: line for each in reversed(settings.plan) for key, line in made([each]).items()}
    assert together == alone and set(together) == set(settings.plan)
    assert together["refine", 0] != together["refine", 1]
    other = made(settings.plan, 6)
    assert other["empty", 0] == together["empty", 0] and other["refine", 0] != together["refine", 0]
