from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flask import Flask

from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.labelstudio.config import LabelConfig
from label_studio_segagent.labelstudio.regions import Region, read_regions, write_region
from label_studio_segagent.server.predictor import Predictor
from label_studio_segagent.server.refiner import TaskRefiner, carried

MaskTask = Callable[..., dict[str, Any]]
HEIGHT, WIDTH = 120, 160
CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="object"/><Label value="shiny"/></BrushLabels>
  <BrushLabels name="notes" toName="image" segagent="ignore"><Label value="object"/></BrushLabels>
  <Choices name="quality" toName="image" perRegion="true"><Choice value="sharp"/></Choices>
</View>"""


@pytest.fixture
def spoilt(scene: Sample) -> np.ndarray:
    """Half of the ellipse, and something beside it."""
    mask = scene.mask.copy()
    mask[:, 90:] = False
    mask[:25, :30] = True
    return mask


def brush(mask: np.ndarray, name: str = "r", *labels: str, **more: Any) -> dict[str, Any]:
    control, label = LabelConfig.parse(CONFIG).outputs("image", {})[0]
    [result] = write_region(mask, control, label, 0.5)
    result["value"]["brushlabels"] = list(labels or ("object",))
    return {**result, "id": name, **more}


@pytest.fixture
def given(task: MaskTask) -> MaskTask:
    """`given(*results)`: a task with an annotation."""

    def make(*results: dict[str, Any], **more: Any) -> dict[str, Any]:
        return task() | {"annotations": [{"id": 5, "result": list(results)}], **more}

    return make


@pytest.fixture
def refiner(predictor: Predictor) -> TaskRefiner:
    return TaskRefiner(predictor.agent, predictor.images, LabelConfig.parse(CONFIG))


def only(results: list[dict[str, Any]]) -> tuple[Region, np.ndarray]:
    [region] = read_regions(results)
    return region, region.mask(HEIGHT, WIDTH)


def test_a_bad_mask_becomes_better(refiner: TaskRefiner, given: MaskTask, scene: Sample, spoilt: np.ndarray) -> None:
    task = given(brush(spoilt))
    before = copy.deepcopy(task)
    done = refiner.refine(task)
    region, mask = only(done.results)
    assert iou(spoilt, scene.mask) < 0.6 and iou(mask, scene.mask) > 0.9
    assert (region.id, region.labels) == ("r", ("object",))
    [change] = done.changes
    assert (change.before == spoilt).all() and (change.after == mask).all() and change.rated[1] > change.rated[0] + 0.2
    assert done.ratings == [change.rated[1]] and not done.failures
    assert task == before  # an annotation is never edited


def test_a_good_mask_stays(refiner: TaskRefiner, given: MaskTask, scene: Sample) -> None:
    task = given(brush(scene.mask))
    done = refiner.refine(task)
    assert done.results == task["annotations"][0]["result"] and not done.changes and done.score > 0.5


def test_what_belongs_to_a_region_stays_with_it(refiner: TaskRefiner, given: MaskTask, spoilt: np.ndarray) -> None:
    """Several labels, a choice for the region, a relation, and what has no mask."""
    choice = {"id": "r", "type": "choices", "from_name": "quality", "to_name": "image", "value": {"choices": ["sharp"]}}
    box = {"id": "b", "type": "rectanglelabels", "from_name": "x", "to_name": "image", "value": {"x": 1, "y": 1}}
    relation = {"type": "relation", "from_id": "r", "to_id": "b", "direction": "right"}
    done = refiner.refine(given(box, brush(spoilt, "r", "object", "shiny"), choice, relation))
    assert len(done.changes) == 1 and len(done.results) == 4
    assert done.results[0] == box and done.results[2] == choice and done.results[3].items() >= relation.items()
    assert done.results[1]["id"] == "r" and done.results[1]["value"]["brushlabels"] == ["object", "shiny"]


def test_a_label_that_is_gone_is_never_rewritten_as_another(
    predictor: Predictor, given: MaskTask, spoilt: np.ndarray
) -> None:
    one = LabelConfig.parse(CONFIG.replace('<Label value="shiny"/>', ""))
    task = given(brush(spoilt, "r", "artefact"), brush(spoilt, "s", "artefact", "object"))
    done = TaskRefiner(predictor.agent, predictor.images, one).refine(task)
    assert done.results[0] == task["annotations"][0]["result"][0]
    assert len(done.failures) == 1 and "region r: label 'artefact' has no" in done.failures[0]
    assert [c.label.name for c in done.changes] == ["object"]
    assert done.results[1]["value"]["brushlabels"] == ["artefact", "object"]


def test_a_suggestion_accepted_with_the_label_of_a_prompt_is_refined_once(
    refiner: TaskRefiner, given: MaskTask, scene: Sample, spoilt: np.ndarray
) -> None:
    main = brush(spoilt)
    twin = {**main, "type": "keypointlabels", "from_name": "point"}
    twin["value"] = {"format": "rle", "rle": main["value"]["rle"], "keypointlabels": ["object"]}
    for results in ([main, twin], [twin, main]):
        done = refiner.refine(given(*results))
        region, mask = only(done.results)
        assert len(done.changes) == 1 and (region.id, region.labels) == ("r", ("object",))
        assert iou(mask, scene.mask) > 0.9 and len(done.results) == 1


def test_regions_are_refined_for_themselves(
    refiner: TaskRefiner, given: MaskTask, scene: Sample, spoilt: np.ndarray
) -> None:
    broken = brush(spoilt, "broken")
    broken["value"] = {"format": "rle", "rle": [1, 2, 3], "brushlabels": ["object"]}
    ignored = brush(spoilt, "note", from_name="notes")
    elsewhere = brush(spoilt, "elsewhere", to_name="other")
    results = [broken, brush(scene.mask, "good"), ignored, brush(spoilt, "bad"), elsewhere]
    done = refiner.refine(given(*results))
    assert [r["id"] for r in done.results] == ["broken", "good", "note", "bad", "elsewhere"]
    assert [r == before for r, before in zip(done.results, results, strict=True)] == [True, True, True, False, True]
    assert len(done.ratings) == 2 and ["broken" in f or "'other'" in f for f in done.failures] == [True, True]


def test_what_there_is_no_time_for_stays(refiner: TaskRefiner, given: MaskTask, spoilt: np.ndarray) -> None:
    done = refiner.refine(given(brush(spoilt)), time.monotonic())
    assert not done.changes and not done.ratings and done.score == 0.0


def test_which_masks_a_task_carries(scene: Sample) -> None:
    def of(number: Any, name: str = "r", **more: Any) -> dict[str, Any]:
        return {"id": number, "result": [brush(scene.mask, name)], **more}

    def found(annotations: Any, predictions: Any = ()) -> list[Any]:
        return [r["id"] for r in carried({"annotations": annotations, "predictions": list(predictions)})]

    assert found([of(1, "old"), of(2, "new")], [of(9, "p")]) == ["new"]
    assert found([of(1, "old"), of(2, "skipped", was_cancelled=True)]) == ["old"]
    assert found([], [of(1, "a", model_version="sam"), of(2, "b", model_version=None)]) == ["b"]
    ours = [of(i, "x", model_version=v) for i, v in enumerate(("segagent-1", "refine-1", "qc-1"))]
    assert found([], ours) == [] and found([], [*ours, of(0, "a", model_version="sam")]) == ["a"]
    assert found([{"id": 1, "result": []}], [of(2)]) == []  # a person says that there is nothing
    assert len(found([of(1, "")])[0]) > 8  # one without an id gets one
    odd: Any
    for odd in (None, 7, [], {}, {"annotations": 7}, {"annotations": [7, {"id": "x"}, {"id": 1, "result": "x"}]}):
        assert carried(odd) == []


def test_retrieve_predictions_starts_from_what_is_there(
    make_app: Callable[..., Flask], predictor: Predictor, body: Any, given: MaskTask, task: MaskTask, scene: Sample,
    spoilt: np.ndarray,
) -> None:  # fmt: skip
    refining = Predictor(predictor.agent, predictor.images, refine_masks=True)
    two = scene.mask.copy()
    two[:10, :10] = True  # nobody who starts from nothing would have drawn this
    tasks = [task(1), given(brush(spoilt), id=2), given(brush(two), id=3)]
    client = make_app(refining).test_client()
    answers = client.post("/predict", json=body(tasks)).get_json()["results"]
    masks = [only(answer["result"])[1] for answer in answers]
    assert iou(masks[0], scene.mask) > 0.9 and iou(masks[1], scene.mask) > 0.9
    assert (masks[2] == two).all()  # no gain is expected
    # Another way of answering is another version, or Label Studio would keep what it has.
    [version] = {answer["model_version"] for answer in answers}
    assert version == client.post("/setup").get_json()["model_version"] != predictor.model_version
    assert all(0 < answer["score"] <= 1 for answer in answers)
    # What is refined counts in the metrics like what starts from nothing.
    counted = [line for line in client.get("/metrics").text.splitlines() if line.startswith("segagent_rollouts_total")]
    assert sum(float(line.rpartition(" ")[2]) for line in counted) == 3
    plain = make_app().test_client().post("/predict", json=body(tasks)).get_json()["results"]
    assert not only(plain[2]["result"])[1][:10, :10].all()


def test_a_refined_task_that_fails_fails_alone(
    make_app: Callable[..., Flask], predictor: Predictor, body: Any, given: MaskTask, task: MaskTask, scene: Sample
) -> None:
    late = Predictor(predictor.agent, predictor.images, refine_masks=True, seconds=1e-6)
    answer = make_app(late).test_client().post("/predict", json=body([given(brush(scene.mask))])).get_json()
    assert answer["results"] == [{}] and answer["unfinished"] == [1]
    gone = given(brush(scene.mask), data={"image": "/nowhere.png"})
    refining = Predictor(predictor.agent, predictor.images, refine_masks=True)
    answer = make_app(refining).test_client().post("/predict", json=body([gone, task(2)])).get_json()
    assert len(answer["results"][1]["result"]) == 1
    assert only(answer["results"][0]["result"])[0].id == "r"  # its mask stays as it is
