from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from flask.testing import FlaskClient

from label_studio_segagent.agent.rollout import Rollout
from label_studio_segagent.errors import InputError
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.hlmat.trajectory import Sample, Step, Trajectory
from label_studio_segagent.labelstudio.brush import encode_brush
from label_studio_segagent.labelstudio.config import Control, Label
from label_studio_segagent.labelstudio.regions import read_regions, write_region
from label_studio_segagent.segmenters import EmbeddingCache
from label_studio_segagent.server.predictor import Predictor

Body = Callable[..., dict[str, Any]]
Check = Callable[[Any], list[dict[str, Any]]]
WIDTH, HEIGHT = 160, 120
INSIDE, OUTSIDE = (56.25, 50.0), (5.0, 5.0)
"""Percent of the scene; inside is the middle of its ellipse."""
TWO = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="a"/><Label value="b"/></BrushLabels>
  <KeyPointLabels name="point" toName="image" smart="true"><Label value="a"/><Label value="b"/></KeyPointLabels>
</View>"""


def key_point(x: Any, y: Any, positive: bool = True, label: str = "object", **more: Any) -> dict[str, Any]:
    return {
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "value": {"x": x, "y": y, "width": 0.3, "labels": [label], "keypointlabels": [label]},
        "is_positive": positive,
        "id": f"k{x}-{y}-{positive}",
        "from_name": "point",
        "to_name": "image",
        "type": "keypointlabels",
        "origin": "manual",
    } | more


def shape(kind: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    fields = {"id": f"s-{kind}", "from_name": kind, "to_name": "image", "type": f"{kind}labels", "image_rotation": 0}
    return fields | {"value": {**value, f"{kind}labels": ["object"]}} | more


def box(x: Any = 25, y: Any = 20, width: Any = 62, height: Any = 60) -> dict[str, Any]:
    return shape("rectangle", {"x": x, "y": y, "width": width, "height": height, "rotation": 0})


def drawn(mask: np.ndarray, kind: str) -> dict[str, Any]:
    control = Control("drawn", kind, "image", (Label("object", "object"),))
    return write_region(mask, control, Label("object", "object"), 0.5)[0]


@pytest.fixture
def interact(client: FlaskClient, body: Body) -> Callable[..., Any]:
    """`interact(result)`: the response to a smart tool whose context has this result."""

    def ask(result: Any, tasks: Any = None, config: str | None = None) -> Any:
        request = body(tasks, *([config] if config else []), context={"result": result})
        return client.post("/predict", json=request)

    return ask


@pytest.fixture
def suggested(interact: Callable[..., Any], check_prediction: Check) -> Callable[..., np.ndarray]:
    """`suggested(*regions)`: the one mask that is suggested for them."""

    def ask(*regions: Any, **options: Any) -> np.ndarray:
        response = interact(list(regions), **options)
        assert response.status_code == 200, response.text
        (prediction,) = response.json["results"]
        (region,) = check_prediction(prediction)
        assert (region["type"], region["from_name"]) == ("brushlabels", "brush")
        (read,) = read_regions([region])
        return read.mask(HEIGHT, WIDTH)

    return ask


Suggested = Callable[..., np.ndarray]


def test_a_positive_key_point(suggested: Suggested, scene: Sample) -> None:
    assert iou(suggested(key_point(*INSIDE)), scene.mask) > 0.9


def test_a_key_point_elsewhere_selects_something_else(suggested: Suggested, scene: Sample) -> None:
    mask = suggested(key_point(*OUTSIDE))
    assert mask[6, 8] and iou(mask, scene.mask) < 0.2


def test_a_negative_key_point_takes_its_place_out(suggested: Suggested, scene: Sample) -> None:
    x, y = 70.0, 50.0
    before = suggested(key_point(*INSIDE))
    after = suggested(key_point(*INSIDE), key_point(x, y, positive=False))
    at = int(y / 100 * HEIGHT), int(x / 100 * WIDTH)
    assert before[at] and not after[at]
    assert after[60, 90]


@pytest.mark.parametrize(("x", "y"), [(0, 0), (100, 100), (100, 0), (0, 100)])
def test_corners_belong_to_the_image(suggested: Suggested, x: float, y: float) -> None:
    mask = suggested(key_point(x, y))
    assert mask[-1 if y else 0, -1 if x else 0]


def test_a_rectangle(suggested: Suggested, scene: Sample) -> None:
    mask = suggested(box())
    assert iou(mask, scene.mask) > 0.9
    assert not mask[:, : int(0.24 * WIDTH)].any()


def test_an_ellipse_is_a_box(suggested: Suggested, scene: Sample) -> None:
    ellipse = shape("ellipse", {"x": 56, "y": 50, "radiusX": 30, "radiusY": 30, "rotation": 0})
    assert iou(suggested(ellipse), scene.mask) > 0.9


@pytest.mark.parametrize("kind", ["brush", "polygon", "bitmask"])
def test_a_drawn_area_is_refined(suggested: Suggested, scene: Sample, kind: str) -> None:
    coarse = cv2.dilate(scene.mask.astype(np.uint8), np.ones((13, 13), np.uint8)).astype(bool)
    refined = suggested(drawn(coarse, kind))
    assert iou(refined, scene.mask) > max(0.85, iou(coarse, scene.mask))


def test_the_last_region_is_the_new_one(suggested: Suggested, scene: Sample) -> None:
    """Label Studio sends older regions of the same label first, pre-annotations among them."""
    old = drawn(np.roll(scene.mask, 40, axis=0), "brush") | {"origin": "prediction", "score": 0.4, "meta": {"text": []}}
    assert iou(suggested(old, box()), scene.mask) > 0.9


class Recorder:
    """An agent that remembers what it was asked."""

    version = "recorder-1"
    cache = EmbeddingCache()

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def _answer(self, image: np.ndarray, prompt: str, kind: str, detail: Any) -> Rollout:
        self.asked.append((kind, detail))
        mask = np.zeros(image.shape[:2], bool)
        mask[0, 0] = True
        return Rollout(mask, 0.5, Trajectory(prompt, steps=[Step(mask, None, 0.5)]), "given")

    def follow(self, image: Any, prompt: str, clicks: Any, box: Any = None, prior: Any = None) -> Rollout:
        return self._answer(image, prompt, "follow", (prompt, list(clicks), box, prior))

    def refine(self, image: Any, prompt: str, mask: Any) -> Rollout:
        return self._answer(image, prompt, "refine", (prompt, mask))

    def segment_all_batch(self, items: Any, **_: Any) -> list[list[Rollout]]:
        return [[self._answer(image, prompt, "segment", prompt) for _ in range(2)] for image, prompt in items]


@pytest.fixture
def recorder(predictor: Predictor) -> Recorder:
    return Recorder()


@pytest.fixture
def recorded(predictor: Predictor, recorder: Recorder, task: Any, config: str) -> Callable[..., Any]:
    """`recorded(*regions)`: what the agent was asked for these regions."""
    double = Predictor(recorder, predictor.images)  # type: ignore[arg-type]

    def ask(*regions: Any, given: Any = None, config: str = config) -> Any:
        recorder.asked.clear()
        double.interact(given or task(), config, {"result": list(regions)})
        (asked,) = recorder.asked[:1]
        return asked

    return ask


def test_clicks_arrive_in_pixels_oldest_first(recorded: Callable[..., Any]) -> None:
    kind, (prompt, clicks, box_, prior) = recorded(key_point(10, 20), key_point(90, 80, positive=False))
    assert (kind, prompt, box_, prior) == ("follow", "object", None, None)
    assert [(c.x, c.y, c.positive) for c in clicks] == [(15.5, 23.5, True), (143.5, 95.5, False)]


def test_a_key_point_inside_an_old_area_keeps_that_area_as_prior(recorded: Callable[..., Any], scene: Sample) -> None:
    _, (_, clicks, box_, prior) = recorded(drawn(scene.mask, "brush"), key_point(*INSIDE))
    assert len(clicks) == 1 and box_ is None and (prior == scene.mask).all()


def test_a_key_point_with_an_old_box_keeps_the_box(recorded: Callable[..., Any]) -> None:
    _, (_, _, box_, prior) = recorded(box(25, 25, 50, 50), key_point(*INSIDE))
    assert box_ == pytest.approx((40, 30, 120, 90), abs=1) and prior is None


def test_areas_of_another_label_are_not_taken(recorded: Callable[..., Any], scene: Sample) -> None:
    other = drawn(scene.mask, "brush")
    other["value"]["brushlabels"] = ["something else"]
    assert recorded(other, key_point(*INSIDE))[1][3] is None


def test_the_prompt_is_the_hint(recorded: Callable[..., Any]) -> None:
    config = TWO.replace('<Label value="a"/>', '<Label value="a" hint="the red one"/>')
    assert recorded(key_point(*INSIDE, label="a"), config=config)[1][0] == "the red one"


def test_a_text_area_asks_for_every_instance(recorded: Callable[..., Any], recorder: Recorder, config: str) -> None:
    config = config.replace("</View>", '<TextArea name="what" toName="image" segagent="prompt" smart="true"/></View>')
    text = {"type": "textarea", "from_name": "what", "to_name": "image", "value": {"text": ["the left ellipse"]}}
    assert recorded(text, config=config) == ("segment", "the left ellipse")
    kind, (prompt, *_) = recorded(key_point(*INSIDE), text, config=config)
    assert (kind, prompt) == ("follow", "the left ellipse")


def test_the_picture_of_a_value_list(
    recorded: Callable[..., Any], task: Any, scene: Sample, uri: Any, config: str
) -> None:
    config = config.replace('value="$image"', 'valueList="$pages"')
    given = task(1, pages=[uri(scene.image), uri(np.zeros((50, 70, 3), np.uint8))])
    for index, expected in ((1, (34.5, 24.5)), (0, (79.5, 59.5)), (None, (79.5, 59.5))):
        old = key_point(1, 1, id="other picture", item_index=1 - (index or 0))
        _, (_, clicks, *_) = recorded(old, key_point(50, 50, item_index=index), given=given, config=config)
        assert [(c.x, c.y) for c in clicks] == [expected]


def test_a_click_on_a_page_of_a_repeater(recorded: Callable[..., Any], task: Any, scene: Sample, uri: Any) -> None:
    config = """<View><Repeater on="$pages" indexFlag="{{idx}}"><Image name="page_{{idx}}" value="$pages[{{idx}}].url"/>
      <BrushLabels name="b_{{idx}}" toName="page_{{idx}}">
        <Label value="object" hint="$pages[{{idx}}].what"/></BrushLabels>
      <KeyPointLabels name="k_{{idx}}" toName="page_{{idx}}">
        <Label value="object"/></KeyPointLabels></Repeater></View>"""
    given = task(1, pages=[{"url": "no image"}, {"url": uri(scene.image), "what": "the second"}])
    click = key_point(*INSIDE, to_name="page_1", from_name="k_1")
    assert recorded(click, given=given, config=config)[1][0] == "the second"
    with pytest.raises(InputError, match="no Image 'page_2'; it has: 'page_0', 'page_1'"):
        recorded({**click, "to_name": "page_2"}, given=given, config=config)


def test_an_item_index_on_a_single_picture(recorded: Callable[..., Any]) -> None:
    assert recorded(key_point(*INSIDE, item_index=0))[0] == "follow"


def test_ids_are_fresh_and_versions_agree(interact: Callable[..., Any], client: FlaskClient) -> None:
    answers = [interact([key_point(*INSIDE)]).json["results"][0] for _ in range(3)]
    assert len({answer["result"][0]["id"] for answer in answers}) == 3
    assert {answer["model_version"] for answer in answers} == {client.post("/setup").json["model_version"]}


def test_a_magic_wand_is_corrected_like_a_brush(interact: Callable[..., Any], task: Any, scene: Sample) -> None:
    old = {**drawn(scene.mask, "brush"), "id": "old", "type": "magicwand"}
    twin = {**old, "type": "keypointlabels", "value": {**old["value"], "keypointlabels": ["object"]}}
    for there in ([old, twin], [twin, old]):
        there[0]["value"]["labels"] = ["object"]
        [region] = interact([key_point(*INSIDE)], [task() | {"annotations": [{"id": 9, "result": there}]}]).json[
            "results"
        ][0]["result"]
        assert region["id"] == "old"


def test_a_prompt_with_a_label_of_its_own_corrects_the_region_of_the_output(
    interact: Callable[..., Any], task: Any, scene: Sample
) -> None:
    there = [task() | {"annotations": [{"id": 9, "result": [drawn(scene.mask, "brush") | {"id": "old"}]}]}]
    [region] = interact([key_point(*INSIDE, label="click here")], there).json["results"][0]["result"]
    assert region["id"] == "old" and region["value"]["brushlabels"] == ["object"]


def test_each_label_has_its_own_output(interact: Callable[..., Any]) -> None:
    for label in ("a", "b"):
        response = interact([key_point(*INSIDE, label=label)], config=TWO)
        assert response.json["results"][0]["result"][0]["value"]["brushlabels"] == [label]


def test_a_click_on_a_region_and_a_box_around_it_take_its_place(
    interact: Callable[..., Any], task: Any, scene: Sample
) -> None:
    half = scene.mask.copy()
    half[:, 90:] = False
    old = drawn(half, "brush") | {"id": "old"}
    there = [task() | {"drafts": [{"id": 1, "result": [old]}]}]
    for new, redone in ((key_point(*INSIDE), True), (box(), True), (box(90, 0, 10, 20), False)):
        [region] = interact([new], there).get_json()["results"][0]["result"]
        assert (region["id"] == "old") == redone
        if new["type"] == "rectanglelabels" and redone:  # from the box, not from the mask that was not good enough
            [read] = read_regions([region])
            assert iou(half, scene.mask) < 0.6 and iou(read.mask(HEIGHT, WIDTH), scene.mask) > 0.9


# Nothing to do


@pytest.mark.parametrize("context", [{}, {"result": []}, {"result": None}, {"result": "x"}, {"result": {}}, {"a": 1}])
def test_an_empty_context_gives_an_empty_suggestion(
    client: FlaskClient, body: Body, check_prediction: Check, context: Any
) -> None:
    response = client.post("/predict", json=body(context=context))
    assert response.status_code == 200
    (prediction,) = response.json["results"]
    assert check_prediction(prediction) == [] and prediction["score"] == 0.0


@pytest.mark.parametrize("params", [None, {}, {"context": None}, {"context": []}, {"context": "x"}, [], "x"])
def test_without_a_context_it_is_a_batch(client: FlaskClient, body: Body, check_prediction: Check, params: Any) -> None:
    response = client.post("/predict", json=body() | {"params": params})
    assert response.status_code == 200
    assert len(check_prediction(response.json["results"][0])) == 1


@pytest.mark.parametrize(
    "result",
    [
        [None],
        [7],
        ["x"],
        [{}],
        [{"type": "choices", "value": {"choices": ["a"]}, "from_name": "c", "to_name": "image"}],
        [key_point(50, 50, type="hologramlabels")],
        [key_point(50, 50, value=None)],
    ],
    ids=str,
)
def test_results_that_are_no_regions_are_left_out(
    interact: Callable[..., Any], check_prediction: Check, result: Any
) -> None:
    response = interact(result)
    assert response.status_code == 200
    assert check_prediction(response.json["results"][0]) == []
    assert len(interact([*result, key_point(*INSIDE)]).json["results"][0]["result"]) == 1


# What is wrong is said


NAN, INF = float("nan"), float("inf")
WRONG_SIZE = shape("brush", {"format": "rle", "rle": encode_brush(np.ones((40, 60), bool))})
BAD_REGIONS: dict[str, tuple[Any, str]] = {
    "unknown label": (key_point(*INSIDE, label="dragon"), "label 'dragon'"),
    "no label": (
        key_point(*INSIDE, value={"x": 50, "y": 50}),
        "no label: choose one before you click or draw, here 'a', 'b'",
    ),
    "click left of the image": (key_point(-1, 50), r"(-1 %, 50 %) is outside"),
    "click below the image": (key_point(50, 101.5), r"(50 %, 101.5 %) is outside"),
    "another image": (key_point(50, 50, to_name="photo"), "no Image 'photo'; it has: 'image'"),
    "click far away": (key_point(1e5, 50), "(100000 %, 50 %) is outside"),
    "click NaN": (key_point(NAN, 50), "'nan', not a finite number"),
    "click infinite": (key_point(50, INF), "'inf', not a finite number"),
    "click without y": (key_point(50, None), "y of keypointlabels region"),
    "click as text": (key_point("50", 50), "'50', not a finite number"),
    "click true": (key_point(True, 50), "'True', not a finite number"),
    "box NaN": (box(x=NAN), "'nan', not a finite number"),
    "box infinite": (box(width=-INF), "'-inf', not a finite number"),
    "box outside": (box(x=200), "covers no pixel"),
    "box huge": (box(width=1e300), "far outside the image"),
    "box empty": (box(width=0, height=0), "covers no pixel"),
    "rotation NaN": (shape("rectangle", {"x": 1, "y": 1, "width": 9, "height": 9, "rotation": NAN}), "rotation is"),
    "ellipse NaN": (shape("ellipse", {"x": 50, "y": 50, "radiusX": NAN, "radiusY": 9}), "radiusX of ellipse"),
    "RLE of another size": (WRONG_SIZE, "brush RLE is for 9600 bytes, but the image of 160x120 has 76800"),
    "RLE empty": (shape("brush", {"format": "rle", "rle": []}), "brush RLE is for -1 bytes"),
    "RLE not a list": (shape("brush", {"format": "rle", "rle": "AAAA"}), "list of bytes"),
    "RLE not bytes": (shape("brush", {"format": "rle", "rle": [256, -1]}), "list of bytes"),
    "RLE cut": (shape("brush", {"rle": encode_brush(np.eye(120, 160, dtype=bool))[:40]}), "brush RLE ends"),
    "brush without pixels": (shape("brush", {"rle": encode_brush(np.zeros((120, 160), bool))}), "covers no pixel"),
    "polygon with two points": (shape("polygon", {"points": [[1, 1], [50, 50]]}), "fewer than 3 points"),
    "polygon without points": (shape("polygon", {"points": None}), "fewer than 3 points"),
    "polygon NaN": (shape("polygon", {"points": [[1, 1], [50, NAN], [1, 50]]}), "'nan', not a finite number"),
    "polygon of triples": (shape("polygon", {"points": [[1, 1, 1]] * 3}), "a point must be [x, y]"),
    "polygon outside": (shape("polygon", {"points": [[200, 200], [300, 200], [300, 300]]}), "covers no pixel"),
    "bitmask no PNG": (shape("bitmask", {"imageDataURL": "data:image/png;base64,AAAA"}), "cannot be decoded"),
    "bitmask a URL": (shape("bitmask", {"imageDataURL": "http://127.0.0.1/x.png"}), "must start with 'data:image/png"),
    "open vector": (shape("vector", {"vertices": [{"x": 1, "y": 1}], "closed": False}), "not closed"),
}


@pytest.mark.parametrize(("region", "message"), BAD_REGIONS.values(), ids=BAD_REGIONS)
def test_a_bad_region_is_a_clear_422(interact: Callable[..., Any], region: Any, message: str) -> None:
    config = TWO if message.startswith(("label ", "no label")) else None
    response = interact([region], config=config)
    assert response.status_code == 422, response.text
    assert message in response.json["error"]
    assert set(response.json) == {"error"}


def test_a_label_that_only_the_prompt_control_has(suggested: Suggested, scene: Sample) -> None:
    """With a single output, `<KeyPointLabels>` may have a label of its own, such as "click here"."""
    assert iou(suggested(key_point(*INSIDE, label="click here")), scene.mask) > 0.9


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (None, "a task must be an object with 'data', got None"),
        ([1], "a task must be an object with 'data', got [1]"),
        ({"id": 1}, "a task must be an object with 'data'"),
        ({"id": 1, "data": {"other": "x"}}, "no image in 'image'"),
        ({"id": 1, "data": {"image": "file:///etc/passwd"}}, "file:///etc/passwd"),
        ({"id": 1, "data": {"image": "data:image/png;base64,AAAA"}}, "not an image"),
    ],
)
def test_a_bad_task_is_a_clear_422(interact: Callable[..., Any], task: Any, message: str) -> None:
    response = interact([key_point(*INSIDE)], tasks=[task])
    assert response.status_code == 422 and message in response.json["error"]


def test_an_index_beyond_the_pictures(interact: Callable[..., Any]) -> None:
    response = interact([key_point(*INSIDE, item_index=4)])
    assert response.status_code == 422 and "no image in 'image' at index 4" in response.json["error"]


def test_a_rating_that_is_no_number(
    make_app: Any, predictor: Predictor, recorder: Recorder, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = recorder._answer
    monkeypatch.setattr(recorder, "_answer", lambda *args: _rated(original(*args), NAN))
    client = make_app(Predictor(recorder, predictor.images)).test_client()  # type: ignore[arg-type]
    response = client.post("/predict", json=body(context={"result": [key_point(*INSIDE)]}))
    assert response.status_code == 200 and response.json["results"][0]["score"] == 0.0


def _rated(rollout: Rollout, rating: float) -> Rollout:
    rollout.predicted_iou = rating
    return rollout
