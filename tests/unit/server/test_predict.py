from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from flask.testing import FlaskClient

from label_studio_segagent.agent.rollout import Rollout
from label_studio_segagent.errors import ConfigError
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.hlmat.trajectory import Sample, Step, Trajectory
from label_studio_segagent.labelstudio.images import ImageLoader
from label_studio_segagent.labelstudio.regions import read_regions
from label_studio_segagent.segmenters import EmbeddingCache
from label_studio_segagent.server.predictor import Predictor

Body = Callable[..., dict[str, Any]]
Task = Callable[..., dict[str, Any]]
Check = Callable[[Any], list[dict[str, Any]]]


def predict(client: FlaskClient, body: dict[str, Any]) -> Any:
    response = client.post("/predict", json=body)
    assert response.status_code == 200, response.text
    return response.json


def mask_of(region: dict[str, Any], scene: Sample) -> np.ndarray:
    (read,) = read_regions([region])
    return read.mask(*scene.mask.shape)


def test_the_object_is_found(client: FlaskClient, body: Body, check_prediction: Check, scene: Sample) -> None:
    answer = predict(client, body())
    (region,) = check_prediction(answer["results"][0])
    assert (region["type"], region["from_name"], region["to_name"]) == ("brushlabels", "brush", "image")
    assert (region["original_width"], region["original_height"]) == (160, 120)
    assert region["value"]["brushlabels"] == ["object"] and region["origin"] == "prediction"
    assert iou(mask_of(region, scene), scene.mask) > 0.9
    assert answer["failures"] == answer["unfinished"] == []


def mirrored(scene: Sample, uri: Any) -> str:
    return str(uri(np.ascontiguousarray(scene.image[:, ::-1])))


def test_answers_come_in_the_order_of_the_tasks(
    client: FlaskClient, body: Body, task: Task, check_prediction: Check, scene: Sample, uri: Any
) -> None:
    tasks = [task(i) if i % 3 else task(i, image=mirrored(scene, uri)) for i in range(20)]  # three lockstep groups
    results = predict(client, body(tasks))["results"]
    assert len(results) == 20
    for i, result in enumerate(results):
        (region,) = check_prediction(result)
        truth = scene.mask if i % 3 else scene.mask[:, ::-1]
        assert iou(mask_of(region, scene), truth) > 0.9


BAD_TASKS: dict[str, Any] = {
    "null": None,
    "a list": [1, 2],
    "a number": 7,
    "text": "task",
    "empty": {},
    "no data": {"id": 5},
    "data null": {"id": 5, "data": None},
    "data a list": {"id": 5, "data": ["x"]},
    "no image": {"id": 5, "data": {"text": "hello"}},
    "image null": {"id": 5, "data": {"image": None}},
    "image a number": {"id": 5, "data": {"image": 3}},
    "image an object": {"id": 5, "data": {"image": {"url": "x"}}},
    "image empty": {"id": 5, "data": {"image": ""}},
    "image list empty": {"id": 5, "data": {"image": []}},
    "a file": {"id": 5, "data": {"image": "file:///etc/passwd"}},
    "id NaN": {"id": float("nan"), "data": {"image": "file:///x"}},
    "id an object": {"id": {"a": [float("inf")]}, "data": {"image": "x"}},
}


@pytest.mark.parametrize("bad", BAD_TASKS.values(), ids=BAD_TASKS)
def test_a_failed_task_is_an_empty_object_and_the_others_are_kept(
    client: FlaskClient, body: Body, task: Task, check_prediction: Check, bad: Any
) -> None:
    answer = predict(client, body([task(1), bad, task(3)]))
    assert answer["results"][1] == {}
    assert len(check_prediction(answer["results"][0])) == len(check_prediction(answer["results"][2])) == 1
    (failure,) = answer["failures"]
    number = bad.get("id") if isinstance(bad, dict) else None
    assert failure["task"] == (5 if number == 5 else None)
    assert failure["error"] and "internal error" not in failure["error"]


def test_one_bad_task_alone(client: FlaskClient, body: Body) -> None:
    assert predict(client, body([None]))["results"] == [{}]


def test_a_task_without_an_object_gets_an_empty_prediction_with_a_score(
    client: FlaskClient, body: Body, task: Task, check_prediction: Check, uri: Any
) -> None:
    answer = predict(client, body([task(1, image=uri(np.full((60, 80, 3), 90, np.uint8)))]))
    assert check_prediction(answer["results"][0]) == []
    assert answer["results"][0]["score"] == 0.0


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 3)])
def test_tiny_images(
    client: FlaskClient, body: Body, task: Task, check_prediction: Check, uri: Any, shape: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    answer = predict(client, body([task(1, image=uri(image)), task(2)]))
    check_prediction(answer["results"][0])
    assert len(check_prediction(answer["results"][1])) == 1


def test_versions_agree_and_ids_are_fresh_on_every_call(
    client: FlaskClient, body: Body, task: Task, check_prediction: Check
) -> None:
    version = client.post("/setup").json["model_version"]
    ids: list[str] = []
    for _ in range(2):
        for result in predict(client, body([task(1), task(2)]))["results"]:
            assert result["model_version"] == version
            ids += [region["id"] for region in check_prediction(result)]
    assert len(set(ids)) == len(ids) == 4


def test_the_same_request_gives_the_same_masks(client: FlaskClient, body: Body) -> None:
    first, second = (predict(client, body())["results"][0] for _ in range(2))
    assert first["score"] == second["score"]
    assert first["result"][0]["value"] == second["result"][0]["value"]


def test_earlier_annotations_and_predictions_ride_along(
    client: FlaskClient, body: Body, task: Task, check_prediction: Check
) -> None:
    earlier = predict(client, body())["results"][0]
    full = task(1) | {
        "annotations": [{"id": 1, "result": earlier["result"]}, {"id": 2, "result": None}, None, 5],
        "predictions": [earlier, None],
        "drafts": "garbage",
        "meta": {},
        "unknown_field": 1,
    }
    assert len(check_prediction(predict(client, body([full]))["results"][0])) == 1


def test_two_labels_and_two_images(
    client: FlaskClient, body: Body, task: Task, check_prediction: Check, scene: Sample, uri: Any
) -> None:
    config = """<View>
      <Image name="left" value="$a"/><Image name="right" value="$b"/>
      <PolygonLabels name="poly" toName="left"><Label value="cat"/><Label value="dog" alias="d"/></PolygonLabels>
      <BrushLabels name="brush" toName="right"><Label value="cat"/></BrushLabels>
    </View>"""
    tasks = [task(1, a=uri(scene.image), b=mirrored(scene, uri)), task(2, a=uri(scene.image))]
    both, half = predict(client, body(tasks, config))["results"]
    found = [
        (r["to_name"], r["from_name"], r["type"], r["value"].get("polygonlabels") or r["value"]["brushlabels"])
        for r in check_prediction(both)
    ]
    assert found == [
        ("left", "poly", "polygonlabels", ["cat"]),
        ("left", "poly", "polygonlabels", ["d"]),
        ("right", "brush", "brushlabels", ["cat"]),
    ]
    masks = [mask_of(region, scene) for region in both["result"]]
    assert all(iou(mask, scene.mask) > 0.88 for mask in masks[:2])
    assert iou(masks[2], scene.mask[:, ::-1]) > 0.9
    assert [region["to_name"] for region in check_prediction(half)] == ["left", "left"]


def test_a_value_list(
    client: FlaskClient, body: Body, task: Task, check_prediction: Check, scene: Sample, uri: Any, config: str
) -> None:
    config = config.replace('value="$image"', 'valueList="$pages"')
    pages = [uri(scene.image), uri(np.full((50, 40, 3), 9, np.uint8)), mirrored(scene, uri)]
    regions = check_prediction(predict(client, body([task(1, pages=pages)], config))["results"][0])
    assert [region["item_index"] for region in regions] == [0, 2]
    assert iou(mask_of(regions[1], scene), scene.mask[:, ::-1]) > 0.9


REPEATED = """<View><Repeater on="$document" indexFlag="{{idx}}">
  <Image name="page_{{idx}}" value="$document[{{idx}}].page"/>
  <BrushLabels name="labels_{{idx}}" toName="page_{{idx}}">
        <Label value="cat" hint="$document[{{idx}}].what"/></BrushLabels>
</Repeater></View>"""


def test_nested_fields_and_repeaters(
    client: FlaskClient, body: Body, task: Task, check_prediction: Check, scene: Sample, uri: Any, config: str
) -> None:
    """As Label Studio's page finds them in the data of a task."""
    scene_uri, other = uri(scene.image), mirrored(scene, uri)
    for source, data in (
        ('value="$photo.url"', {"photo": {"url": scene_uri}}),
        ('value="$photos[1].page"', {"photos": [{"page": other}, {"page": scene_uri}]}),
        ('valueList="$doc.pages"', {"doc": {"pages": [scene_uri]}}),
        ('value="data:image/png;$rest"', {"rest": scene_uri.partition(";")[2]}),
    ):
        nested = config.replace('value="$image"', source)
        [region] = check_prediction(predict(client, body([task(1, **data)], nested))["results"][0])
        assert iou(mask_of(region, scene), scene.mask) > 0.9, source
    pages = [{"page": scene_uri, "what": "the left one"}, {"page": other}]
    tasks = [task(1, document=pages), task(2, document=[]), task(3, document=pages[:1])]
    answer = predict(client, body(tasks, REPEATED))
    found = [[(r["to_name"], r["from_name"]) for r in p["result"]] if p else None for p in answer["results"]]
    assert found == [[("page_0", "labels_0"), ("page_1", "labels_1")], None, [("page_0", "labels_0")]]
    assert "no image URL in 'document[0].page'" in answer["failures"][0]["error"]


def test_every_output_shape(client: FlaskClient, body: Body, check_prediction: Check, scene: Sample) -> None:
    for tag, kind, floor in (
        ("BitmaskLabels", "bitmasklabels", 0.9),
        ("PolygonLabels", "polygonlabels", 0.88),
        ("RectangleLabels", "rectanglelabels", 0.6),
    ):
        config = f'<View><Image name="i" value="$image"/><{tag} name="c" toName="i"><Label value="x"/></{tag}></View>'
        (region,) = check_prediction(predict(client, body(config=config))["results"][0])
        assert region["type"] == kind and iou(mask_of(region, scene), scene.mask) > floor


def test_labels_beside_a_bare_shape(client: FlaskClient, body: Body, check_prediction: Check, scene: Sample) -> None:
    config = """<View><Image name="i" value="$image"/>
      <Labels name="l" toName="i"><Label value="x"/></Labels><Brush name="b" toName="i"/></View>"""
    shape, label = check_prediction(predict(client, body(config=config))["results"][0])
    assert (shape["type"], label["type"], shape["id"]) == ("brush", "labels", label["id"])
    assert label["value"]["labels"] == ["x"] and label["from_name"] == "l"


# Faults of the model


class Doubled(Predictor):
    """A predictor whose model is `double`: a function of the items."""

    def __init__(self, images: ImageLoader, double: Callable[[Sequence[tuple[Any, str]]], Any], **options: Any) -> None:
        self.asked: list[dict[str, Any]] = []

        def segment_all_batch(items: Sequence[tuple[Any, str]], **asked: Any) -> Any:
            self.asked.append(asked)
            return double(items)

        agent = SimpleNamespace(version="double-1", segment_all_batch=segment_all_batch, cache=EmbeddingCache())
        super().__init__(agent, images, **options)  # type: ignore[arg-type]


def rollout(image: np.ndarray, rating: float) -> Rollout:
    mask = np.zeros(image.shape[:2], bool)
    mask[:5, :5] = True
    return Rollout(mask, rating, Trajectory("x", steps=[Step(mask, None, rating)]), "finish")


def test_a_failing_batch_is_tried_one_by_one(
    make_app: Any, predictor: Predictor, body: Body, task: Task, uri: Any, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def double(items: Sequence[tuple[np.ndarray, str]]) -> list[list[Rollout]]:
        calls.append(len(items))
        if any(image.shape[0] == 13 for image, _ in items):
            raise MemoryError("swordfish")
        return [[rollout(image, 0.5)] for image, _ in items]

    tasks = [task(1), task(2, image=uri(np.zeros((13, 20, 3), np.uint8))), task(3)]
    client = make_app(Doubled(predictor.images, double)).test_client()
    answer = predict(client, body(tasks))
    assert calls == [3, 1, 1, 1]
    assert [bool(result) for result in answer["results"]] == [True, False, True]
    assert answer["failures"] == [{"task": 2, "error": "internal error (MemoryError); see the server's log"}]
    assert "swordfish" in caplog.text  # for the operator


@pytest.mark.parametrize("found", [[], [[], []], None], ids=["too few", "too many", "nothing"])
def test_a_model_that_answers_nonsense(make_app: Any, predictor: Predictor, body: Body, task: Task, found: Any) -> None:
    client = make_app(Doubled(predictor.images, lambda items: found)).test_client()
    answer = predict(client, body([task(1)]))
    assert answer["results"] == [{}] and answer["failures"][0]["task"] == 1


@pytest.mark.parametrize(
    ("rating", "score"),
    [(float("nan"), 0.0), (float("inf"), 0.0), (-0.5, 0.0), (17.5, 1.0), (np.float32(0.25), 0.25), (1, 1.0)],
)
def test_scores_are_numbers_between_0_and_1(
    make_app: Any, predictor: Predictor, body: Body, rating: float, score: float
) -> None:
    double = Doubled(predictor.images, lambda items: [[rollout(image, rating)] for image, _ in items])
    (result,) = predict(make_app(double).test_client(), body())["results"]
    assert result["score"] == result["result"][0]["score"] == score
    assert isinstance(result["score"], float)


def test_the_agent_is_told_how_many_instances_and_how_long(make_app: Any, predictor: Predictor, body: Body) -> None:
    double = Doubled(predictor.images, lambda items: [[] for _ in items], max_instances=4, seconds=50)
    predict(make_app(double).test_client(), body())
    (asked,) = double.asked
    assert asked["max_instances"] == 4 and 0 < asked["seconds"] <= 50


# Time


def test_what_there_was_no_time_for_is_unfinished_and_not_failed(
    make_app: Any, predictor: Predictor, body: Body, task: Task
) -> None:
    def slow(items: Sequence[tuple[np.ndarray, str]]) -> list[list[Rollout]]:
        time.sleep(0.2)
        return [[rollout(image, 0.5)] for image, _ in items]

    double = Doubled(predictor.images, slow, batch_size=2, seconds=0.1)
    answer = predict(make_app(double).test_client(), body([task(i) for i in range(1, 6)]))
    assert [bool(result) for result in answer["results"]] == [True, True, False, False, False]
    assert answer["results"][2:] == [{}, {}, {}]
    assert answer["unfinished"] == [3, 4, 5] and answer["failures"] == []


def test_trying_one_by_one_has_no_more_time_than_the_batch(
    make_app: Any, predictor: Predictor, body: Body, task: Task
) -> None:
    calls = []

    def slow(items: Sequence[tuple[np.ndarray, str]]) -> list[list[Rollout]]:
        calls.append(len(items))
        time.sleep(0.2)
        raise RuntimeError("always")

    double = Doubled(predictor.images, slow, batch_size=8, seconds=0.1)
    answer = predict(make_app(double).test_client(), body([task(i) for i in range(8)]))
    assert calls == [8]
    assert answer["unfinished"] == list(range(8)) and answer["results"] == [{}] * 8


# Requests that concern all tasks


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "not valid XML"),
        ("<View>", "not valid XML"),
        ("hello", "not valid XML"),
        ("<View/>", "no <Image"),
        ('<View><Text name="t" value="$t"/></View>', "no <Image"),
        ('<View><Image name="i" value="$image"/></View>', "no control can hold a result"),
        (
            '<View><Image name="i" value="$image"/><BrushLabels name="b" toName="other"><Label value="x"/>'
            "</BrushLabels></View>",
            "no control can hold a result",
        ),
        ('<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><View>&a;</View>', "not valid XML"),
    ],
)
def test_a_config_that_cannot_be_used(client: FlaskClient, body: Body, config: str, message: str) -> None:
    response = client.post("/predict", json=body(config=config))
    assert response.status_code == 422 and message in response.json["error"]


def test_a_control_that_is_not_known_does_no_harm(
    client: FlaskClient, body: Body, check_prediction: Check, config: str
) -> None:
    more = (
        '<Hologram name="h" toName="image" smart="true"/><Choices name="c" toName="image"><Choice value="a"/></Choices>'
    )
    answer = predict(client, body(config=config.replace("</View>", more + "</View>")))
    assert len(check_prediction(answer["results"][0])) == 1


def test_a_prompt_text_replaces_the_label(
    make_app: Any, predictor: Predictor, body: Body, task: Task, config: str
) -> None:
    asked: list[str] = []

    def double(items: Sequence[tuple[np.ndarray, str]]) -> list[list[Rollout]]:
        asked.extend(prompt for _, prompt in items)
        return [[] for _ in items]

    config = config.replace("</View>", '<TextArea name="prompt" toName="image"/></View>')
    text = {"type": "textarea", "from_name": "prompt", "to_name": "image", "value": {"text": ["the left", "one"]}}
    tasks = [task(1), task(2) | {"annotations": [{"result": [text]}]}, task(3) | {"drafts": [{"result": [text]}]}]
    predict(make_app(Doubled(predictor.images, double)).test_client(), body(tasks, config))
    assert asked == ["object", "the left one", "the left one"]


def test_the_whole_batch_fails_when_the_agent_says_so_for_the_config(predictor: Predictor, task: Task) -> None:
    with pytest.raises(ConfigError):
        predictor.predict([task()], "<View/>")


def test_a_large_photograph(client: FlaskClient, body: Body, task: Task, check_prediction: Check, uri: Any) -> None:
    image = np.full((900, 1400, 3), (40, 80, 170), np.uint8)
    cv2.circle(image, (700, 450), 250, (230, 140, 40), -1)
    (region,) = check_prediction(predict(client, body([task(1, image=uri(image))]))["results"][0])
    (read,) = read_regions([region])
    assert abs(int(read.mask(900, 1400).sum()) - np.pi * 250**2) < 0.05 * np.pi * 250**2
