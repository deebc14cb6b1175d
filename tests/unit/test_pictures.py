from __future__ import annotations

import numpy as np
import pytest

from label_studio_segagent.agent.rollout import Rollout
from label_studio_segagent.hlmat.actions import Click, Finish
from label_studio_segagent.hlmat.trajectory import Sample, Step, Trajectory, encode_mask
from label_studio_segagent.pictures import annotator_strip, result_panel, sheet, trajectory_strip

HEIGHT, CAPTION, GAP = 260, 46, 8


def rollout(sample: Sample, clicks: int = 2, **fields: object) -> Rollout:
    empty = np.zeros_like(sample.mask)
    steps = [Step(empty, Click(90.0, 60.0, i % 2 == 0), 0.3, undone=i == 1) for i in range(clicks)]
    steps.append(Step(sample.mask, Finish(), 0.9))
    return Rollout(sample.mask, 0.9, Trajectory("ellipse", steps=steps, **fields), "finish")  # type: ignore[arg-type]


def panels(strip: np.ndarray) -> int:
    """Number of pictures side by side, counted by the white gaps between them in the picture rows of the first row."""
    row = strip[GAP : GAP + HEIGHT]
    white = (row == 255).all(axis=(0, 2))
    return int(((~white)[1:] & white[:-1]).sum())


def test_a_strip_has_the_start_every_click_and_the_result(scene: Sample) -> None:
    for clicks in (0, 1, 2):
        strip = trajectory_strip(scene.image, rollout(scene, clicks))
        assert strip.dtype == np.uint8 and strip.shape[2] == 3
        assert panels(strip) == 1 + clicks + 2  # the start, a mask for each click, the last mask, the result


def test_long_rollouts_are_wrapped_to_rows(scene: Sample) -> None:
    short, long = (trajectory_strip(scene.image, rollout(scene, clicks)) for clicks in (2, 7))
    row = HEIGHT + CAPTION + GAP
    assert (short.shape[0], long.shape[0]) == (row + GAP, 2 * row + GAP)
    assert long.shape[1] == short.shape[1]


def test_signs_are_told_apart(scene: Sample) -> None:
    def one(positive: bool) -> np.ndarray:
        steps = [Step(np.zeros_like(scene.mask), Click(20.0, 20.0, positive), 0.3), Step(scene.mask, Finish(), 0.9)]
        return trajectory_strip(scene.image, Rollout(scene.mask, 0.9, Trajectory("x", steps=steps), "finish"))

    assert (one(True) != one(False)).any()


def test_a_box_is_drawn_on_the_first_picture(scene: Sample) -> None:
    without = trajectory_strip(scene.image, rollout(scene, 1))
    with_box = trajectory_strip(scene.image, rollout(scene, 1, box=(50.0, 30.0, 130.0, 90.0)))
    changed = (without != with_box).any(axis=2).any(axis=0)
    assert changed.any() and np.flatnonzero(changed).max() < without.shape[1] / 2


def test_the_true_iou_is_written_when_it_is_known(scene: Sample) -> None:
    known, unknown = (trajectory_strip(scene.image, rollout(scene), value) for value in (0.77, None))
    differing = (known != unknown).any(axis=2)
    assert differing.any() and not differing[: GAP + HEIGHT].any()  # in the caption only


def test_a_strip_does_not_draw_on_its_image(scene: Sample) -> None:
    before = scene.image.copy()
    trajectory_strip(scene.image, rollout(scene, 3, box=(1.0, 2.0, 50.0, 60.0)))
    result_panel(scene.image, [scene.mask], "a", "b")
    assert (scene.image == before).all()


def test_a_panel_outlines_every_mask(scene: Sample) -> None:
    other = np.zeros_like(scene.mask)
    other[5:25, 5:25] = True
    none, one, two = (result_panel(scene.image, masks, "t", "s") for masks in ([], [scene.mask], [scene.mask, other]))
    assert none.shape == one.shape == two.shape
    assert none.shape[0] == HEIGHT + CAPTION
    assert (none != one).any() and (one != two).any()
    corner = (slice(0, 60), slice(0, 60))
    assert (none[corner] == one[corner]).all() and (two[corner] != one[corner]).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (3, 100_000), (30, 20), (2000, 3000)])
@pytest.mark.parametrize("text", ["", "a label much longer than the picture is wide " * 5, "日本語 ✂"])
def test_any_image_fits_a_panel(shape: tuple[int, int], text: str) -> None:
    image = np.full((*shape, 3), 120, np.uint8)
    panel = result_panel(image, [np.ones(shape, bool), np.zeros(shape, bool)], text, text)
    assert panel.shape[0] == HEIGHT + CAPTION and 190 <= panel.shape[1] <= 1040


def test_a_sheet_keeps_every_picture_whole() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    pictures = [np.full((10 + 5 * i, 20 + i, 3), colour, np.uint8) for i, colour in enumerate(colours)]
    out = sheet(pictures, columns=2)
    for picture, colour in zip(pictures, colours, strict=True):
        assert (out == colour).all(axis=2).sum() == picture.shape[0] * picture.shape[1]
    assert out.shape == (GAP + 15 + GAP + 20 + GAP, GAP + 20 + GAP + 21 + GAP, 3)
    assert (out[0] == 255).all() and (out[:, 0] == 255).all()


def test_the_simulated_annotators_strip(scene: Sample) -> None:
    empty = np.zeros_like(scene.mask)
    steps = [Step(empty, Click(90.0, 60.0), true_iou=0.0), Step(scene.mask, Finish(), true_iou=1.0)]
    meta = {"kind": "empty", "stopped": "good enough", "target": encode_mask(scene.mask)}
    trajectory = Trajectory("ellipse 🥚", steps=steps, meta=meta)
    strip = annotator_strip(scene.image, trajectory)
    assert panels(strip) == 1 + 2  # the target, a mask for each step
    other = annotator_strip(
        scene.image, Trajectory("ellipse 🥚", steps=steps, meta={**meta, "target": encode_mask(empty)})
    )
    changed = np.flatnonzero((strip != other).any(axis=2).any(axis=0))
    assert changed.size and changed.max() < strip.shape[1] / 2
    unknown = Trajectory("x", steps=[Step(empty, None)])
    assert panels(annotator_strip(scene.image, unknown)) == 2


def test_small_objects_are_shown_larger() -> None:
    mask = np.zeros((600, 800), bool)
    mask[300:320, 500:530] = True
    image = np.full((600, 800, 3), 90, np.uint8)
    image[mask] = (200, 30, 30)
    steps = [Step(np.zeros_like(mask), Click(515.0, 310.0), true_iou=0.0), Step(mask, Finish(), true_iou=1.0)]
    trajectory = Trajectory("x", box=(495, 295, 535, 325), steps=steps, meta={"target": encode_mask(mask)})
    strip = annotator_strip(image, trajectory)
    green = (strip[..., 1] > strip[..., 0] + 30) & (strip[..., 1] > strip[..., 2] + 30)
    assert green[:, -300:].sum() > 5000  # of a mask of 600 pixels
