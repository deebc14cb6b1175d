from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from benchmarks.segmenter import annotate, measure
from label_studio_segagent import Click, Finish, SegAgent
from label_studio_segagent.agent.rollout import Rollout
from label_studio_segagent.evaluation.clicking import JITTER, Blind, click_curve, simulated_curve
from label_studio_segagent.hlmat.actions import GRAMMARS, Action
from label_studio_segagent.hlmat.metrics import noc, nof
from label_studio_segagent.hlmat.trajectory import Sample, Step, Trajectory, encode_mask
from label_studio_segagent.policies import Decision, Observation, Policy, Target
from label_studio_segagent.segmenters import ImageState, Segmentation, Segmenter
from label_studio_segagent.segmenters.grabcut import GrabCutSegmenter

TARGET = np.broadcast_to(np.arange(10) < 8, (4, 10))


def bar(columns: int) -> np.ndarray:
    return np.broadcast_to(np.arange(10) < columns, (4, 10)).copy()


def rollout(*steps: tuple[int, Action | None, float | None, bool], result: int) -> Rollout:
    made = [Step(bar(columns), action, rating, undone=undone) for columns, action, rating, undone in steps]
    return Rollout(bar(result), 0.9, Trajectory("bar", steps=made), "finish")


CLICK = Click(1.0, 1.0, True)


def test_the_mask_of_a_click_is_rated_by_the_next_answer() -> None:
    done = rollout((0, CLICK, 0.0, False), (6, CLICK, 0.7, False), (2, Finish(), 0.2, False), result=6)
    ious, ratings, rated = click_curve(done, TARGET)
    assert ious == [0.0, 0.75, 0.25]
    assert ratings == [0.0, 0.7, 0.2]
    assert rated == [0.0, 0.75, 0.75]


def test_clicks_that_were_undone_do_not_count() -> None:
    done = rollout(
        (0, CLICK, 0.0, False), (6, CLICK, 0.7, True), (6, CLICK, 0.7, False), (7, None, 0.8, False), result=7
    )
    ious, ratings, rated = click_curve(done, TARGET)
    assert ious == rated == [0.0, 0.75, 0.875] and ratings == [0.0, 0.7, 0.8]


def test_without_ratings_the_last_mask_counts() -> None:
    done = rollout((0, CLICK, None, False), (6, CLICK, None, False), (2, Finish(), None, False), result=2)
    assert click_curve(done, TARGET)[2] == [0.0, 0.75, 0.25]


def test_the_result_ends_the_curve_and_void_pixels_do_not_count() -> None:
    done = rollout((0, CLICK, None, False), (6, None, None, False), result=7)
    void = np.broadcast_to(np.arange(10) == 7, (4, 10))
    ious, _, rated = click_curve(done, TARGET & ~void, void)
    assert ious == [0.0, 6 / 7] and rated == [0.0, 1.0]


class Bar(Segmenter):
    """As many columns as clicks, but none on the third one."""

    version = "bar"

    def set_image(self, image: np.ndarray) -> ImageState:
        return ImageState(image)

    def predict(self, state: ImageState, clicks: Sequence[Click], *, box=None, prior=None) -> Segmentation:  # type: ignore[no-untyped-def]
        columns = 0 if len(clicks) == 3 else len(clicks)
        return Segmentation(bar(columns), 0.5, np.zeros((2, 2), np.float32))


class Rating(Policy):
    """Always another click, and the true IoU."""

    version = "rating"
    grammar = GRAMMARS["segagent"]()

    def locate_batch(self, items: Sequence[tuple[np.ndarray, str]]) -> list[list[Target]]:
        return [[] for _ in items]

    def act(self, observations: Sequence[Observation]) -> list[Decision]:
        return [
            Decision(
                Click(float(o.mask.sum() // 4 + len(o.rejected)), 0.0, True), float((o.mask & TARGET).sum() / 32), ""
            )
            for o in observations
        ]


def test_blind_is_what_the_agent_does_without_undoing() -> None:
    image = np.zeros((4, 10, 3), np.uint8)
    seeing = SegAgent(Rating(), Bar(), max_clicks=3).segment(image, "bar")
    blind = SegAgent(Blind(Rating()), Bar(), max_clicks=3).segment(image, "bar")
    assert click_curve(seeing, TARGET)[0] == [0.0, 0.125, 0.25]
    assert [s.undone for s in seeing.trajectory.steps] == [False, False, True, False]
    assert click_curve(blind, TARGET)[0] == [0.0, 0.125, 0.25, 0.0]
    assert seeing.mask.sum() == 8 and not blind.mask.any()


def test_simulated_clicks_are_those_of_the_benchmark(scene: Sample, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(-110, 111, scene.image.shape)
    image = np.clip(scene.image + noise, 0, 255).astype(np.uint8)
    PilImage.fromarray(image).save(tmp_path / "scene.png")
    tool = GrabCutSegmenter()
    state = tool.set_image(image)
    curves = [simulated_curve(tool, state, replace(scene, image=image))]
    assert len(curves[0]) > 1 and curves[0] == annotate(tool, state, scene.mask, 0.0)["ious"]
    jittered = simulated_curve(tool, state, replace(scene, image=image), JITTER)
    assert jittered == annotate(tool, state, scene.mask, JITTER)["ious"]
    figures = measure(tool, [(tmp_path / "scene.png", encode_mask(scene.mask))])
    assert (noc(curves, 0.85), noc(curves, 0.90), nof(curves, 0.90)) == (
        figures["noc85"], figures["noc90"], figures["failed90"],
    )  # fmt: skip


def test_jittered_clicks_miss_the_middle_a_little(scene: Sample) -> None:
    first: list[Click] = []

    class Deaf(Bar):
        def predict(self, state: ImageState, clicks: Sequence[Click], **named: object) -> Segmentation:  # type: ignore[override]
            first.extend(clicks if len(clicks) == 1 else ())
            return Segmentation(np.zeros_like(scene.mask), 0.5, np.zeros((2, 2), np.float32))

    for jitter in (0.0, JITTER, JITTER):
        simulated_curve(Deaf(), ImageState(scene.image), scene, jitter)
    middle, off, again = first
    extent = float(np.sqrt(scene.mask.sum()))
    assert 0 < np.hypot(off.x - middle.x, off.y - middle.y) < 4 * JITTER * extent and off == again


def test_twenty_clicks_at_most() -> None:
    class Nothing(Bar):
        def predict(self, state: ImageState, clicks: Sequence[Click], **named: object) -> Segmentation:  # type: ignore[override]
            return Segmentation(bar(0), 0.5, np.zeros((2, 2), np.float32))

    image = np.zeros((4, 10, 3), np.uint8)
    assert simulated_curve(Nothing(), ImageState(image), Sample(image, "bar", bar(8))) == 20 * [0.0]


@pytest.mark.parametrize("columns", [1, 4])
def test_it_clicks_five_times_even_when_the_mask_is_good(columns: int) -> None:
    image = np.zeros((4, 10, 3), np.uint8)
    curve = simulated_curve(Bar(), ImageState(image), Sample(image, "bar", bar(columns)))
    assert max(curve[:columns]) >= 0.9 or columns == 4
    assert columns == 4 or curve == [1.0]  # nothing is left to click on
