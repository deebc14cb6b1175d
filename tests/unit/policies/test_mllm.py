from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2VLImageProcessorPil

from label_studio_segagent import SegAgent, load_segmenter
from label_studio_segagent.errors import InputError
from label_studio_segagent.hlmat.actions import Click, Finish, PerMille, ResizedPixels, RowColumnPerMille
from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.policies import Observation, Target
from label_studio_segagent.policies.located import read_targets
from label_studio_segagent.policies.mllm import MllmPolicy, Question, Reply
from label_studio_segagent.policies.prompts import PRESETS
from label_studio_segagent.policies.resizing import Resize, resized

SIZES = [(1, 1), (1, 3000), (900, 7), (33, 47), (480, 640), (1333, 800), (1500, 2600), (37, 4096)]
sides = st.integers(1, 4096)


class Scripted(MllmPolicy):
    """A model whose answers are a function of what it is shown and asked."""

    def __init__(
        self, answer: Callable[[Question], str | list[str]], preset: str = "per-mille", **more: object
    ) -> None:
        pixels = int(more.pop("pixels", 2**18))
        super().__init__(preset, Resize(pixels, PRESETS[preset].factor), "scripted", **more)
        self.answer = answer
        self.asked: list[tuple[Question, int]] = []

    def _ask(self, questions: Sequence[Question], *, tokens: int, samples: int = 0) -> list[list[Reply]]:
        self.asked += [(question, samples) for question in questions]
        answers = [self.answer(question) for question in questions]
        texts = [[answer] if isinstance(answer, str) else answer for answer in answers]
        return [[Reply(text, -1.0) for text in (group[1:] if samples else group[:1])] for group in texts]


def write(preset: str, x: float, y: float, shown: np.ndarray) -> list[int]:
    """A point at shares `x` and `y` of the width and height of what is shown, as the family was trained to write it."""
    if preset == "pixels":
        return [round(x * shown.shape[1]), round(y * shown.shape[0])]
    pair = [round(x * 1000), round(y * 1000)]
    return pair if preset == "per-mille" else pair[::-1]


def bright(shown: np.ndarray) -> np.ndarray:
    """How bright each pixel is, where it is not dark."""
    grey = shown.astype(float).sum(-1)
    return np.where(grey > 0.1 * grey.max(), grey, 0)


def point_at_the_light(preset: str) -> Callable[[Question], str]:
    """A model that points at the middle of what is bright in the picture it is shown."""

    def answer(question: Question) -> str:
        weights = bright(question.images[0])
        y, x = (float((np.indices(weights.shape)[axis] * weights).sum() / weights.sum()) for axis in (0, 1))
        shown = question.images[0]
        point = write(preset, (x + 0.5) / shown.shape[1], (y + 0.5) / shown.shape[0], shown)
        if preset == "segagent":
            return f"Current IOU: 30\nPositive point: ({point[0]}, {point[1]})"
        return json.dumps({"current_iou": 30, "point_2d": point, "label": "positive"})

    return answer


def light_at(size: tuple[int, int], x: float, y: float) -> tuple[np.ndarray, float, float]:
    """A black image with a white patch at shares `x` and `y`, and the patch's middle in pixels."""
    image = np.zeros((*size, 3), np.uint8)
    half = [max(0, side // 60) for side in size]
    row, column = (
        min(max(round(share * (side - 1)), extent), side - 1 - extent)
        for share, side, extent in zip((y, x), size, half, strict=True)
    )
    image[row - half[0] : row + half[0] + 1, column - half[1] : column + half[1] + 1] = 255
    return image, column, row


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.31, 0.77), (1.0, 1.0)])
def test_a_known_pixel_survives(preset: str, size: tuple[int, int], place: tuple[float, float]) -> None:
    image, x, y = light_at(size, *place)
    policy = Scripted(point_at_the_light(preset), preset)
    [decision] = policy.act([Observation(image, np.zeros(size, bool), "light")])
    assert isinstance(decision.action, Click) and decision.predicted_iou == 0.3
    shown = policy.asked[0][0].images[0].shape
    for found, true, side, seen in (
        (decision.action.x, x, size[1], shown[1]),
        (decision.action.y, y, size[0], shown[0]),
    ):
        step = side / (seen if preset == "pixels" else 1000)
        # Half a step by rounding, half a pixel between a pixel's edge and its middle, half by rounding to a pixel.
        assert abs(found - true) <= step / 2 + 1.01


@given(sides, sides, st.floats(0, 1), st.floats(0, 1), st.sampled_from(sorted(PRESETS)))
def test_a_written_pixel_is_read_back(height: int, width: int, x: float, y: float, preset: str) -> None:
    policy = Scripted(lambda question: "", preset)
    column, row = round(x * (width - 1)), round(y * (height - 1))
    first, second = policy.grammar.frame.to_text(column, row, (height, width))
    click = policy.grammar.click(first, second, True, (height, width))
    shown = policy.resize((height, width))
    for found, true, side, seen in ((click.x, column, width, shown[1]), (click.y, row, height, shown[0])):
        assert abs(found - true) <= side / (seen if preset == "pixels" else 1000) / 2 + 0.51


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"segagent"}))
@pytest.mark.parametrize("size", [(33, 47), (480, 640), (1500, 2600)])
def test_a_known_box_survives(preset: str, size: tuple[int, int]) -> None:
    height, width = size
    box = (round(0.2 * width), round(0.1 * height), round(0.55 * width), round(0.9 * height))
    image = np.zeros((*size, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255

    def answer(question: Question) -> str:
        shown = question.images[0]
        rows, columns = np.flatnonzero(bright(shown).any(1)), np.flatnonzero(bright(shown).any(0))
        start = write(preset, columns[0] / shown.shape[1], rows[0] / shown.shape[0], shown)
        end = write(preset, (columns[-1] + 1) / shown.shape[1], (rows[-1] + 1) / shown.shape[0], shown)
        return f"```json\n{json.dumps([{'bbox_2d': start + end, 'label': 'light'}])}\n```"

    policy = Scripted(answer, preset)
    [target] = policy.locate(image, "light")
    shown = policy.asked[0][0].images[0].shape
    assert target.box is not None and target.score == 1
    tolerance = [1 + side / seen + side / 1000 for side, seen in ((width, shown[1]), (height, shown[0]))]
    assert np.all(np.abs(np.subtract(target.box, box)) <= tolerance * 2)


@given(sides, sides, st.sampled_from([14, 28, 32]), st.sampled_from([2**14, 2**18, 2**20, 12845056]))
def test_resizing_is_what_qwens_own_processor_leaves_alone(height: int, width: int, factor: int, most: int) -> None:
    shown = Resize(most, factor)((height, width))
    assert Resize(most, factor)(shown) == shown
    assert all(side > 0 and side % factor == 0 for side in shown) and max(shown) <= 200 * min(shown)
    assert 56 * 56 <= shown[0] * shown[1] <= most or max(shown) == factor
    if max(height, width) < 20 * min(height, width):
        scales = [
            ((seen - factor) / side, (seen + factor) / side) for side, seen in zip((height, width), shown, strict=True)
        ]
        (a, b), (c, d) = scales
        assert max(a, c) <= min(b, d) + 1e-9, "the shape is kept: one scale explains both sides, each to within a cell"


@pytest.mark.parametrize("size", [(1, 1), (30, 5000), (250, 333), (480, 640), (5000, 4000)])
def test_the_real_processor_sees_the_size_that_we_count_in(size: tuple[int, int]) -> None:
    shown = Resize(2**18, 28)(size)
    processor = Qwen2VLImageProcessorPil()
    grid = processor(resized(np.zeros((*size, 3), np.uint8), shown))["image_grid_thw"][0]
    assert (grid[1] * 14, grid[2] * 14) == shown


def test_what_is_asked(scene: Sample) -> None:
    policy = Scripted(lambda question: '{"finish": true}', plain_image=True)
    height, width = scene.mask.shape
    half = scene.mask & (np.arange(width) < 90)
    tried = (Click(80, 60, True), Click(16, 12, False))
    policy.act(
        [
            Observation(scene.image, half, "the <image> orange [IMG] one", (16.0, 12.0, 144.0, 108.0), tried),
            Observation(scene.image, np.zeros_like(half), "ellipse"),
        ]
    )
    (full, _), (bare, _) = policy.asked
    assert "the ‹image› orange (IMG) one" in full.text, "a task's text cannot write control tokens"
    assert "[100, 100, 900, 900]" in full.text
    assert '{"point_2d": [500, 500], "label": "positive"}; {"point_2d": [100, 100], "label": "negative"}' in full.text
    assert full.size == bare.size == (height, width)
    tinted, plain = full.images
    green = resized(half.astype(np.uint8)[..., None].repeat(3, 2) * 255, tinted.shape[:2])[..., 0] > 250
    assert (tinted[green][:, 1] > plain[green][:, 1]).mean() > 0.95
    assert len(bare.images) == 1, "without a mask both would be the same"
    assert "inside the box" not in bare.text and "worse" not in bare.text and "$" not in bare.text + full.text


def test_numbers_in_the_prompt_are_of_the_image_that_is_shown() -> None:
    policy = Scripted(lambda question: "", "pixels", pixels=100_000)
    seen = Observation(
        np.zeros((1000, 2000, 3), np.uint8), np.zeros((1000, 2000), bool), "x", (500.0, 0.0, 2000.0, 1000.0)
    )
    policy.act([seen])
    [(question, _)] = policy.asked
    height, width = question.images[0].shape[:2]
    assert f"{width} wide and {height} high" in question.text and height * width <= 100_000
    assert f"[{round(width / 4)}, 0, {width}, {height}]" in question.text


def test_unreadable_answers_are_kept_and_do_not_raise(scene: Sample) -> None:
    policy = Scripted(lambda question: "I would rather not.")
    [decision] = policy.act([Observation(scene.image, scene.mask, "x")])
    assert (decision.action, decision.predicted_iou, decision.text) == (None, None, "I would rather not.")
    assert decision.logprob == -1
    assert policy.locate(scene.image, "x") == []


@given(
    st.text(alphabet='{}[]()":,.-0123456789 \nabciou_point2dlabelfinish', max_size=60), st.sampled_from(sorted(PRESETS))
)
def test_garbage_never_raises(text: str, preset: str) -> None:
    image = np.zeros((30, 40, 3), np.uint8)
    policy = Scripted(lambda question: text, preset)
    [decision] = policy.act([Observation(image, np.zeros((30, 40), bool), "x")])
    assert decision.text == text
    for target in policy.locate(image, "x"):
        for x, y in [target.point] if target.point else [target.box[:2], target.box[2:]]:  # type: ignore[index]
            assert 0 <= x <= 40 and 0 <= y <= 30


def test_candidates_are_distinct_and_the_greedy_one_is_first(scene: Sample) -> None:
    def point(x: int) -> str:
        return json.dumps({"current_iou": 50, "point_2d": [x, 500], "label": "positive"})

    policy = Scripted(lambda question: [point(1), point(2), point(1), "?", point(3), '{"finish": true}'])
    seen = Observation(scene.image, scene.mask, "x")
    [[*candidates]] = policy.propose([seen], 6)
    assert [d.text for d in candidates] == [point(1), point(2), point(3), '{"finish": true}']
    assert candidates[0] == policy.act([seen])[0] and candidates[-1].action == Finish()
    assert [samples for _, samples in policy.asked] == [0, 5, 0]
    policy.answer = lambda question: ["?", "??", point(4)]
    assert [[d.text for d in group] for group in policy.propose([seen, seen], 3)] == [[point(4)], [point(4)]]
    policy.answer = lambda question: ["?", "??"]
    assert [d.text for d in policy.propose([seen], 2)[0]] == ["?"]
    assert policy.propose([], 3) == policy.act([]) == policy.locate_batch([]) == []


def test_a_model_without_boxes_locates_by_its_first_click(scene: Sample) -> None:
    policy = Scripted(lambda question: "Current IOU: 0\nPositive point: (500, 250)", "segagent")
    assert policy.locate(scene.image, "x") == [Target(None, (40, 60), 1.0)]
    for other in ("Current IOU: 0\nNegative point: (500, 250)", "Finish", "?"):
        policy.answer = lambda question, other=other: other
        assert policy.locate(scene.image, "x") == []


def test_an_agent_with_it(scene: Sample) -> None:
    """Box, then clicks; an unreadable answer ends a rollout and loses nothing."""
    row, column = (int(value.mean()) for value in np.nonzero(scene.mask))
    answers = iter(
        [
            '[{"bbox_2d": [290, 210, 830, 800], "label": "ellipse"}]',
            json.dumps({"current_iou": 60, "point_2d": [column * 1000 // 160, row * 1000 // 120], "label": "positive"}),
            "hm",
        ]
    )
    agent = SegAgent(Scripted(lambda question: next(answers)), load_segmenter("grabcut"))
    rollout = agent.segment(scene.image, "ellipse")
    assert rollout.stopped == "unparsable" and rollout.predicted_iou == 0.6
    assert rollout.mask.any() and rollout.trajectory.steps[-1].text == "hm"


def test_what_is_no_image() -> None:
    policy = Scripted(lambda question: "")
    with pytest.raises(InputError, match="RGB uint8"):
        policy.locate(np.zeros((5, 5), np.uint8), "x")
    with pytest.raises(InputError, match="RGB uint8"):
        policy.act([Observation(np.zeros((5, 5), np.uint8), np.zeros((5, 5), bool), "x")])


def test_the_version_follows_how_the_model_is_asked() -> None:
    def answer(question: Question) -> str:
        return ""

    policies = [
        Scripted(answer, preset, pixels=pixels, plain_image=plain)
        for preset in PRESETS
        for pixels in (2**18, 2**20)
        for plain in (False, True)
    ]
    assert len({policy.version for policy in policies}) == len(policies)
    assert Scripted(answer).version == Scripted(answer).version


BOX = Target((10, 20, 50, 80), None, 1.0)


@pytest.mark.parametrize(
    "text",
    [
        '[{"bbox_2d": [100, 100, 500, 400], "label": "cat"}]',
        '```json\n[\n\t{"bbox_2d": [100, 100, 500, 400], "label": "cat"}\n]\n```',
        '{"bbox_2d": [100.0, 100.0, 500.0, 400.0]}',
        "The cat is at [100, 100, 500, 400].",
        "[[100,100,500,400]]",
        "<ref>cat</ref><box>(100,100),(500,400)</box>",
        '[{"bbox_2d": [100, 100, 500, 400], "label": "cat"}, {"bbox_2d": [100, 100, 500, 400]}, {"bbox_2d": [100, 2',
        '[{"bbox_2d": [100, 100, 500, 400]}, {"bbox_2d": [500, 400, 100, 100]}, {"bbox_2d": [1, 1, 2, 2]}]',
        '[{"bbox_2d": [100, 100, 500, 400]}, {"bbox_2d": [1200, 100, 1500, 400]}, {"bbox_2d": [9e9, 1, 2, 3]}]',
        '[{"bbox_2d": [100, 100, 500, 400]}, {"point_2d": [5, 5]}]',
    ],
)
def test_boxes_are_read_however_they_are_written(text: str) -> None:
    assert read_targets(text, PerMille(), (200, 100)) == [BOX]


def test_boxes_are_clipped_and_sorted_by_score() -> None:
    text = """[{"score": 0.2, "bbox_2d": [0, 0, 500, 500]}, {"bbox_2d": [-50, 500, 2000, 1200], "score": 90},
      {"bbox_2d": [0, 0, 100, 100], "confidence": 0.5}, {"bbox_2d": [900, 900, 1000, 1000]}]"""
    assert read_targets(text, PerMille(), (100, 100)) == [
        Target((90, 90, 100, 100), None, 1.0),
        Target((0, 50, 100, 100), None, 0.9),
        Target((0, 0, 10, 10), None, 0.5),
        Target((0, 0, 50, 50), None, 0.2),
    ]


def test_boxes_in_other_conventions() -> None:
    assert read_targets('{"box_2d": [100, 100, 400, 500]}', RowColumnPerMille(), (200, 100)) == [BOX]
    half = ResizedPixels(lambda size: (size[0] // 2, size[1] // 2))
    assert read_targets('{"bbox_2d": [5, 10, 25, 40]}', half, (200, 100)) == [BOX]


@pytest.mark.parametrize(
    "text", ['{"point_2d": [500, 100]}', "It is at (500, 100)", '[{"point": [500, 100], "label": "a"}]']
)
def test_points_where_there_is_no_box(text: str) -> None:
    assert read_targets(text, PerMille(), (200, 100)) == [Target(None, (50, 20), 1.0)]
    assert read_targets(re.sub("500", "5000", text), PerMille(), (200, 100)) == []


@pytest.mark.parametrize("text", ["", "[]", "There is none.", "[1, 2, 3]", "[" * 5000, "[1," * 20000, "9" * 5000])
def test_nothing_there(text: str) -> None:
    assert read_targets(text, PerMille(), (200, 100)) == []
