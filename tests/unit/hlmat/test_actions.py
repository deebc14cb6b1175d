from __future__ import annotations

import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from label_studio_segagent.errors import GrammarError
from label_studio_segagent.hlmat.actions import (
    GRAMMARS,
    ActionGrammar,
    Answer,
    Click,
    Finish,
    JsonGrammar,
    LineGrammar,
    PerMille,
    ResizedPixels,
    RowColumnPerMille,
)


def patches_of_28(size: tuple[int, int]) -> tuple[int, int]:
    """Like Qwen2.5-VL's processor: sides are multiples of 28, neither aspect ratio nor size quite kept."""
    height, width = (max(28, round(side / 28) * 28) for side in size)
    scale = min(1.0, math.sqrt(1_000_000 / (height * width)))
    return max(28, int(height * scale) // 28 * 28), max(28, int(width * scale) // 28 * 28)


def all_grammars() -> dict[str, ActionGrammar]:
    grammars = {name: make() for name, make in GRAMMARS.items()}
    grammars["qwen2.5 lines"] = LineGrammar(ResizedPixels(patches_of_28))
    grammars["qwen2.5 json"] = JsonGrammar(ResizedPixels(patches_of_28))
    return grammars


def unit(name: str, size: tuple[int, int]) -> tuple[float, float]:
    """(vertical, horizontal) pixels that one step of the last digit of a convention is worth."""
    if name.startswith("qwen2.5"):
        seen = patches_of_28(size)
        return size[0] / seen[0], size[1] / seen[1]
    if "pixels" in name:
        return 1.0, 1.0
    return size[0] / 1000, size[1] / 1000


names = pytest.mark.parametrize("name", all_grammars())
sizes = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


@st.composite
def images_with_clicks(draw: st.DrawFn) -> tuple[tuple[int, int], Click]:
    size = draw(sizes)
    x = draw(st.one_of(st.integers(0, size[1] - 1), st.floats(0, size[1] - 1)))
    y = draw(st.one_of(st.integers(0, size[0] - 1), st.floats(0, size[0] - 1)))
    return size, Click(x, y, draw(st.booleans()))


@names
@given(images_with_clicks(), st.none() | st.floats(0, 1))
def test_click_survives_format_then_parse(name: str, case: tuple[tuple[int, int], Click], rating: float | None) -> None:
    size, click = case
    grammar = all_grammars()[name]
    got = grammar.parse(grammar.format(Answer(click, rating), size), size)
    assert isinstance(got.action, Click)
    assert got.action.positive is click.positive
    down, right = unit(name, size)
    # SegAgent's own conventions also round to a whole pixel; 0.999 stands for 1.000 in the decimals.
    slack = 0.5 if name.startswith("segagent") else 1e-6
    slack_decimals = 1.0 if name == "segagent-decimals" else 0.5
    assert abs(got.action.y - click.y) <= slack_decimals * down + slack
    assert abs(got.action.x - click.x) <= slack_decimals * right + slack
    assert 0 <= got.action.x <= size[1] - 1 and 0 <= got.action.y <= size[0] - 1
    if rating is None:
        assert got.predicted_iou is None
    else:
        assert got.predicted_iou == pytest.approx(rating, abs=0.005 + 1e-9)


@names
@given(sizes, st.none() | st.floats(0, 1))
def test_finish_survives_format_then_parse(name: str, size: tuple[int, int], rating: float | None) -> None:
    grammar = all_grammars()[name]
    got = grammar.parse(grammar.format(Answer(Finish(), rating), size), size)
    assert got.action == Finish()
    assert (got.predicted_iou is None) == (rating is None)


@pytest.mark.parametrize("name", ["segagent", "segagent-decimals", "per-mille", "json"])
@given(
    st.tuples(st.integers(1001, 4000), st.integers(1001, 4000)),
    st.integers(0, 998),
    st.integers(0, 998),
    st.booleans(),
    st.integers(0, 100),
)
def test_text_survives_parse_then_format(
    name: str, size: tuple[int, int], first: int, second: int, positive: bool, rating: int
) -> None:
    """On images of more than a thousand pixels every text stands for a pixel of its own."""
    sign = "Positive" if positive else "Negative"
    if name == "json":
        text = json.dumps({"current_iou": rating, "point_2d": [first, second], "label": sign.lower()})
    elif name == "segagent-decimals":
        text = f"Current IOU: {rating}\n{sign} point: ({first / 1000:g}, {second / 1000:g})"
    else:
        text = f"Current IOU: {rating}\n{sign} point: ({first}, {second})"
    grammar = all_grammars()[name]
    assert grammar.format(grammar.parse(text, size), size) == text


@pytest.mark.parametrize("name", ["pixels", "json-pixels"])
@given(sizes, st.data())
def test_pixel_text_survives_parse_then_format(name: str, size: tuple[int, int], data: st.DataObject) -> None:
    x, y = data.draw(st.integers(0, size[1] - 1)), data.draw(st.integers(0, size[0] - 1))
    text = f"Negative point: ({x}, {y})"
    if name == "json-pixels":
        text = json.dumps({"point_2d": [x, y], "label": "negative"})
    grammar = all_grammars()[name]
    answer = grammar.parse(text, size)
    assert answer.action == Click(x, y, False)
    assert grammar.format(answer, size) == text


@names
@given(st.text(max_size=200))
def test_junk_is_an_answer_or_a_grammar_error(name: str, text: str) -> None:
    try:
        answer = all_grammars()[name].parse(text, (48, 64))
    except GrammarError:
        return
    assert isinstance(answer.action, (Click, Finish))


pieces = st.sampled_from(
    'Current IOU mIoU : , Positive Negative point Finish ( ) [ ] { } " - + . % 0 1 7 999 1000 0.5 1e308 NaN Infinity '
    '\n ``` json "point_2d" "current_iou" "label" "positive" "finish" true null \\ \x00 \ud800 ٣ 𝟗'.split(" ")
) | st.integers().map(str)


@names
@given(st.lists(pieces, max_size=30), st.sampled_from(["", " "]), sizes)
def test_junk_near_the_grammar_is_an_answer_or_a_grammar_error(
    name: str, words: list[str], between: str, size: tuple[int, int]
) -> None:
    try:
        answer = all_grammars()[name].parse(between.join(words), size)
    except GrammarError:
        return
    if isinstance(answer.action, Click):
        assert 0 <= answer.action.x <= size[1] - 1 and 0 <= answer.action.y <= size[0] - 1
    else:
        assert answer.action == Finish()
    assert answer.predicted_iou is None or 0 <= answer.predicted_iou <= 1


# 1000 wide and 500 high: rows and columns cannot be mistaken for each other.
@pytest.mark.parametrize(
    ("name", "text", "action", "rating"),
    [
        ("segagent", "Current IOU: 74\nPositive point: (175, 483)", Click(483, 88, True), 0.74),
        ("segagent", "Current IOU: 85.2, Positive point: (0.5, 0.3)", Click(300, 250, True), 0.852),
        ("segagent", "Current mIoU: 0\nPositive point: (500, 250)", Click(250, 250, True), 0.0),
        ("segagent", "Current mIoU: 0, Negative point: (500, 250)", Click(250, 250, False), 0.0),
        ("segagent", "Negative point: (0.25, 0.75)", Click(750, 125, False), None),
        ("segagent", "Finish", Finish(), None),
        ("segagent", "Current IOU: 96\nFinish", Finish(), 0.96),
        ("segagent", "Current IOU: 96. Finished.", Finish(), 0.96),
        ("segagent", "current iou is 12%\npositive POINT at [ 0 , 1000 ]", Click(999, 0, True), 0.12),
        ("segagent", "IoU=7 Positive point: (0, 0)", Click(0, 0, True), 0.07),
        ("segagent", "Current IOU: 250\nFinish", Finish(), 1.0),
        ("segagent", "Current IOU: -3\nFinish", Finish(), 0.0),
        ("segagent", "Positive point: (1000, 1000)", Click(999, 499, True), None),
        ("segagent", "Positive point: (1, 0.5)", Click(0, 0, True), None),  # 1 is no decimal in [0, 1)
        ("segagent", "Positive point: (0, 0.5)", Click(500, 0, True), None),
        ("segagent-decimals", "Positive point: (0.999, 0.999)", Click(999, 499, True), None),
        ("per-mille", "Current IOU: 50\nNegative point: (175, 483)", Click(175, 241.5, False), 0.5),
        ("per-mille", "Positive point: (0.5, 0.5)", Click(0.5, 0.25, True), None),
        ("pixels", "Positive point: (175, 483)", Click(175, 483, True), None),
        ("json", '{"point_2d": [175, 483], "label": "negative"}', Click(175, 241.5, False), None),
        ("json", '{"point_2d": [175, 483]}', Click(175, 241.5, True), None),
        ("json", '{"current_iou": 101, "finish": true}', Finish(), 1.0),
        ("json", '{"current_iou": NaN, "finish": true}', Finish(), None),
        ("json", '{"current_iou": "74", "finish": true}', Finish(), 0.74),
        ("json-pixels", '{"point_2d": [999, 499], "label": "POSITIVE"}', Click(999, 499, True), None),
    ],
)
def test_forms(name: str, text: str, action: Click | Finish, rating: float | None) -> None:
    answer = GRAMMARS[name]().parse(text, (500, 1000))
    assert answer.action == action
    assert answer.predicted_iou == (None if rating is None else pytest.approx(rating))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("segagent", "Current IOU: 74\nNegative point: (500, 250)"),
        ("segagent-decimals", "Current IOU: 74\nNegative point: (0.5, 0.25)"),
        ("per-mille", "Current IOU: 74\nNegative point: (250, 500)"),
        ("pixels", "Current IOU: 74\nNegative point: (250, 250)"),
        ("json", '{"current_iou": 74, "point_2d": [250, 500], "label": "negative"}'),
        ("json-pixels", '{"current_iou": 74, "point_2d": [250, 250], "label": "negative"}'),
    ],
)
def test_written_form(name: str, expected: str) -> None:
    assert GRAMMARS[name]().format(Answer(Click(250, 250, False), 0.74), (500, 1000)) == expected


def test_resized_pixels_are_those_the_model_saw() -> None:
    grammar = LineGrammar(ResizedPixels(lambda size: (280, 140)))
    text = grammar.format(Answer(Click(500, 100, True)), (200, 1000))
    assert text == "Positive point: (70, 140)"
    assert grammar.parse(text, (200, 1000)).action == Click(500, 100, True)


@pytest.mark.parametrize(
    "text",
    [
        'Sure! The next click: {"current_iou": 30, "point_2d": [500, 500], "label": "positive"} - that should help.',
        '```json\n{"current_iou": 30, "point_2d": [500, 500]}\n```',
        '[{"current_iou": 30, "point_2d": [500, 500]}]',
        'a set {1, 2} and {"broken": then {"current_iou": 30, "point_2d": [500, 500]}',
        '{"current_iou": 0.3, "point_2d": [500, 500], "label": "positive"}',
        '{"current_iou": 30, "point_2d": [500.0, 5e2], "extra": {"deep": [1, {"x": null}]}}',
    ],
)
def test_json_in_company(text: str) -> None:
    assert GRAMMARS["json"]().parse(text, (100, 200)) == Answer(Click(100, 50, True), 0.3)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("segagent", ""),
        ("segagent", "I cannot see a horse."),
        ("segagent", "Current IOU: 74"),
        ("segagent", "Positive point: (175)"),
        ("segagent", "Positive point: (1200, 10)"),
        ("segagent", "Positive point: (-30, 10)"),
        ("segagent", f"Positive point: ({'9' * 400}, 1)"),
        ("segagent", f"Positive point: (1{'0' * 308}, 1)"),
        ("pixels", "Positive point: (1000000, 1)"),
        ("json", "no braces"),
        ("json", "{}"),
        ("json", '{"finish": false}'),
        ("json", '{"finish": 1}'),
        ("json", '{"point_2d": [1, NaN]}'),
        ("json", '{"point_2d": [Infinity, 1]}'),
        ("json", '{"point_2d": [true, false]}'),
        ("json", '{"point_2d": ["1", "two"]}'),
        ("json", '{"point_2d": ["1", "inf"]}'),
        ("json", '{"point_2d": ["%s", "1"]}' % ("9" * 5000)),
        ("json", '{"point_2d": [1, 2, 3]}'),
        ("json", '{"point_2d": [%s, 1]}' % ("9" * 400)),
        ("json", '{"point_2d": [%s, 1]}' % ("9" * 5000)),
        ("json", '{"answer": {"point_2d": [1, 2]}}'),
    ],
)
def test_unreadable(name: str, text: str) -> None:
    with pytest.raises(GrammarError):
        GRAMMARS[name]().parse(text, (100, 200))


@pytest.mark.parametrize(
    ("text", "click", "iou"),
    [
        ('{"point_2d": [500, 500], "label": "horse"}', Click(99.5, 49.5), None),
        ('{"point_2d": [500, 500], "label": "Negative point"}', Click(99.5, 49.5, False), None),
        ('{"point_2d": ["500", " 500 "]}', Click(99.5, 49.5), None),
        ('{"current_iou": "74%", "point_2d": [500, 500]}', Click(99.5, 49.5), 0.74),
        ('{"current_iou": "0.74", "point_2d": [500, 500]}', Click(99.5, 49.5), 0.74),
        ('{"current_iou": "good", "point_2d": [500, 500]}', Click(99.5, 49.5), None),
    ],
)
def test_how_general_models_write(text: str, click: Click, iou: float | None) -> None:
    answer = GRAMMARS["json"]().parse(text, (100, 200))
    assert isinstance(answer.action, Click) and answer.action.positive == click.positive
    assert abs(answer.action.x - click.x) < 1 and abs(answer.action.y - click.y) < 1
    assert answer.predicted_iou == (None if iou is None else pytest.approx(iou))


def test_out_of_image_message_names_the_point_and_the_convention() -> None:
    with pytest.raises(GrammarError, match=r"\(300, 20\).*x=300.*outside the 200x100 image.*ResizedPixels"):
        GRAMMARS["pixels"]().parse("Positive point: (300, 20)", (100, 200))


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 100_000,
        '{"point_2d":' + "[" * 100_000,
        "{" * 100_000,
        '{"' * 50_000,
        "Positive point: (" + "1" * 100_000,
        "IoU" + " " * 100_000 + "x",
        "IoU is " * 30_000,
        "positive " * 30_000 + "(",
    ],
    ids=lambda text: text[:20],
)
@names
def test_hostile_text_is_refused_quickly(name: str, text: str) -> None:
    start = time.process_time()
    with pytest.raises(GrammarError) as caught:
        all_grammars()[name].parse(text, (100, 200))
    assert time.process_time() - start < 1
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["segagent", "segagent-decimals", "per-mille", "pixels", "json", "json-pixels"])
def test_one_pixel_image(name: str) -> None:
    grammar = GRAMMARS[name]()
    answer = Answer(Click(0, 0, True), 0.5)
    assert grammar.parse(grammar.format(answer, (1, 1)), (1, 1)) == answer


def test_any_thousandth_is_inside_a_tiny_image() -> None:
    for first in range(0, 1001, 37):
        action = LineGrammar(RowColumnPerMille()).parse(f"Positive point: ({first}, {1000 - first})", (2, 3)).action
        assert isinstance(action, Click)
        assert action.x in (0, 1, 2) and action.y in (0, 1)


@given(st.floats(-10, 400), st.floats(-10, 400), st.integers(1, 300), st.integers(1, 300))
def test_pixel_is_the_nearest_inside(x: float, y: float, height: int, width: int) -> None:
    row, column = Click(x, y).pixel(height, width)
    assert 0 <= row < height and 0 <= column < width
    assert abs(row - min(max(y, 0), height - 1)) <= 0.5
    assert abs(column - min(max(x, 0), width - 1)) <= 0.5


def test_far_edge_is_clamped_but_beyond_it_is_refused() -> None:
    grammar = LineGrammar(PerMille())
    assert grammar.parse("Positive point: (1000, 0)", (100, 200)).action == Click(199, 0, True)
    with pytest.raises(GrammarError):
        grammar.parse("Positive point: (1001, 0)", (100, 200))
