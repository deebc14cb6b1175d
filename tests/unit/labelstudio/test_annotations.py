"""What annotators did is read as they meant it: one region of several results, what is there, what is not there."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studio import ELLIPSE, HEIGHT, RECTANGLE, WIDTH, Studio, annotation, drawn, ring, shape, task

from label_studio_segagent import SegAgent, load_policy, load_segmenter
from label_studio_segagent.labelstudio.config import LabelConfig
from label_studio_segagent.labelstudio.regions import write_region
from label_studio_segagent.quality.calibration import Calibration
from label_studio_segagent.quality.export import export, judge, rightly_empty
from label_studio_segagent.quality.issues import Thresholds
from label_studio_segagent.quality.project import FindingStore, group_records, inspect_all

CAT = "the cat 🐈"
ALL = {"Katze", "hound", "flag", "bowl", "sign"}


def absent(records: list[Any]) -> set[str]:
    return {record.meta["label"] for record in records if record.meta.get("absent")}


def there(records: list[Any]) -> list[Any]:
    return [record for record in records if not record.meta.get("absent")]


# several results, one region


def accepted(mask: np.ndarray, *prompts: str, label: str = "Katze") -> list[dict[str, Any]]:
    """A suggestion as Label Studio saves it when labels of prompts were selected too: the mask in each result."""
    [main] = drawn(mask)
    value = {name: field for name, field in main["value"].items() if name != "brushlabels"}
    twins = [
        {**main, "from_name": prompt, "type": f"{prompt}labels", "value": {**value, f"{prompt}labels": [label]}}
        for prompt in prompts
    ]
    return [main, *twins]


@pytest.mark.parametrize("prompts", [["keypoint"], ["rectangle"], ["ellipse"], ["polygon"], ["keypoint", "rectangle"]])
def test_a_suggestion_accepted_with_the_label_of_a_prompt_is_one_region(read: Any, prompts: list[str]) -> None:
    for results in itertools.permutations(accepted(ring(), *prompts)):
        [record] = there(read(task(1, annotation(5, list(results))), absent=True))
        assert not read.failures and np.array_equal(record.load().mask, ring())
        assert (record.prompt, record.meta["shape"], record.meta["label"]) == (CAT, "brush", "Katze")


@pytest.mark.parametrize("shape_", ["brush", "bitmask", "polygon"])
def test_whatever_shape_was_accepted(read: Any, studio: Studio, shape_: str) -> None:
    tag = {"brush": "BrushLabels", "bitmask": "BitmaskLabels", "polygon": "PolygonLabels"}[shape_]
    studio.config = f"""<View><Image name="image" value="$image"/>
      <{tag} name="m" toName="image"><Label value="cat"/></{tag}>
      <EllipseLabels name="e" toName="image"><Label value="here"/></EllipseLabels></View>"""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:20, 10:40] = True
    [main] = write_region(mask, *LabelConfig.parse(studio.config).outputs("image", {})[0], 1)
    value = {name: field for name, field in main["value"].items() if not name.endswith("labels")}
    twin = {**main, "from_name": "e", "type": "ellipselabels", "value": {**value, "ellipselabels": ["here"]}}
    for results in ([main, twin], [twin, main]):
        [record] = there(read(task(1, annotation(5, results)), absent=True))
        assert not read.failures and record.load().mask.sum() == pytest.approx(mask.sum(), rel=0.02)
        assert record.prompt == "cat"


def test_a_mask_that_has_the_label_of_a_prompt_only_is_a_mask(read: Any) -> None:
    """The label of the brush was taken away again in the region list."""
    [record] = there(read(task(1, annotation(5, accepted(ring(), "keypoint")[1:])), absent=True))
    assert record.meta["shape"] == "brush" and np.array_equal(record.load().mask, ring())


def test_labels_are_joined_and_answers_about_a_region_stay_out_of_it(read: Any) -> None:
    main, twin = accepted(ring(), "keypoint", label="hound")
    choice = {**main, "from_name": "q", "type": "choices", "value": {**main["value"], "choices": ["blurred"]}}
    note = {**main, "from_name": "n", "type": "textarea", "value": {**main["value"], "text": ["Katze?"]}}
    general = {**main, "from_name": "l", "type": "labels", "value": {**main["value"], "labels": ["Katze", "hound"]}}
    for results in itertools.permutations([main, twin, choice, note, general]):
        records = there(read(task(1, annotation(5, list(results)))))
        assert not read.failures and sorted(r.meta["label"] for r in records) == ["Katze", "hound"]
        assert all(np.array_equal(r.load().mask, ring()) for r in records)


def test_a_note_on_a_region_does_not_hide_it(read: Any) -> None:
    """A control that is ignored: its results go, the region of another control stays."""
    main, twin = accepted(ring(), "note")
    assert len(there(read(task(1, annotation(5, [twin, main]))))) == 1
    assert there(read(task(1, annotation(5, [{**twin, "type": "brushlabels"}])))) == []


# what is not there


UNREADABLE: dict[str, list[dict[str, Any]]] = {
    "a box": shape("rectangle", "Katze", **RECTANGLE),
    "an ellipse": shape("ellipse", "Katze", **ELLIPSE),
    "a key point": shape("keypoint", "Katze", x=5, y=5, width=1),
    "a damaged brush": shape("brush", "Katze", rle=[1, 2, 3], format="rle"),
    "an empty brush": [
        {
            **drawn(ring())[0],
            "value": {**drawn(ring())[0]["value"], "rle": drawn(np.eye(5, dtype=bool))[0]["value"]["rle"]},
        }
    ],
    "a damaged bitmap": shape("bitmask", "Katze", imageDataURL="data:image/png;base64,AAAA"),
    "an empty polygon": shape("polygon", "Katze", points=[]),
    "a polygon in pixels": shape("polygon", "Katze", points=[[300, 300], [400, 300], [400, 400]]),
    "an open vector": shape("vector", "Katze", vertices=[{"x": 1, "y": 1}, {"x": 9, "y": 1}, {"x": 9, "y": 9}]),
    "a brush on an unknown page": [{**drawn(ring())[0], "item_index": 3}],
    "a brush on an unknown Image": [{**drawn(ring())[0], "to_name": "image-2"}],
    "a noted cat": [{**drawn(ring())[0], "from_name": "note"}],
    "a choice": [{"type": "choices", "from_name": "q", "to_name": "image", "value": {"choices": ["Katze"]}}],
    "a taxonomy": [{"type": "taxonomy", "from_name": "t", "to_name": "image", "value": {"taxonomy": [["x", "Katze"]]}}],
}


@pytest.mark.parametrize("results", UNREADABLE.values(), ids=UNREADABLE)
def test_what_somebody_pointed_at_is_not_absent(read: Any, results: list[dict[str, Any]]) -> None:
    records = read(task(1, annotation(5, results)), absent=True)
    assert there(records) == [] and absent(records) == ALL - {"Katze"}
    assert {tuple(r.meta["unsaid"]) for r in records} == {("Katze",)}


def test_a_label_is_absent_where_no_result_carries_it(read: Any) -> None:
    assert absent(read(task(1, annotation(5, [])), absent=True)) == ALL
    records = read(task(1, annotation(5, drawn(ring()))), absent=True)
    assert absent(records) == ALL - {"Katze"} and not any("unsaid" in r.meta for r in records)
    # By its value where results have the alias, and by the alias where they have the value.
    for name in ("dog", "hound"):
        assert absent(read(task(1, annotation(5, shape("keypoint", name, x=1, y=1))), absent=True)) == ALL - {"hound"}


@pytest.mark.parametrize("labels", [[], ["mouse"]])
def test_a_region_that_may_be_of_any_label_leaves_nothing_to_say(read: Any, labels: list[str]) -> None:
    """One without a label, or with one that the config had once, under which it may be another today."""
    [result] = drawn(ring())
    result["value"]["brushlabels"] = labels
    assert read(task(1, annotation(5, [result])), absent=True) == []
    assert len(read.failures) == 1 and ("'mouse'" in read.failures[0][1]) == bool(labels)


@pytest.mark.parametrize("value", [None, [], "x"])
def test_a_region_of_which_nothing_is_left_leaves_nothing_to_say(read: Any, value: Any) -> None:
    assert absent(read(task(1, annotation(5, [{**drawn(ring())[0], "value": value}])), absent=True)) == set()


def test_only_what_was_submitted_says_that_something_is_absent(read: Any) -> None:
    skipped = annotation(5, [], was_cancelled=True)
    for one in (skipped, annotation(5, None), annotation(5, "x")):
        assert read(task(1, one, annotation(6, drawn(ring()))), absent=True, failed=None)[0].meta["annotation"] == 6
    drafts = task(1, annotation(6, drawn(ring())), drafts=[annotation(7, [])])
    assert {r.meta["annotation"] for r in read(drafts, absent=True)} == {6}


def test_pages_are_said_something_about_one_by_one(read: Any, studio: Studio) -> None:
    studio.config = studio.config.replace('value="$image"', 'valueList="$images"')
    data = {"images": ["/data/upload/1/a-cat.png", "/data/upload/1/b-cat.png", "/data/upload/1/gone.png"]}
    box = [{**shape("rectangle", "Katze", **RECTANGLE)[0], "item_index": 1}]
    records = read(task(1, annotation(5, box), data=data), absent=True)
    silent = {i: ALL - absent([r for r in records if r.meta["item_index"] == i]) for i in (0, 1)}
    assert silent == {0: set(), 1: {"Katze"}}
    assert len(read.failures) == 1 and "gone.png" in read.failures[0][1]  # and the other pages go on


# labels that the config does not have


ONE = """<View><Image name="image" value="$image"/>
  <{tag}Labels name="m" toName="image"><Label value="tumour"/></{tag}Labels>
  <EllipseLabels name="e" toName="image"><Label value="dirt"/></EllipseLabels></View>"""


@pytest.mark.parametrize("tag", ["Brush", "Polygon", "Rectangle"])
def test_a_label_is_never_taken_for_another(read: Any, studio: Studio, tag: str) -> None:
    studio.config = ONE.format(tag=tag)
    for label, results in (
        ("artefact", drawn(ring())),
        ("artefact", shape("rectangle", "artefact", **RECTANGLE)),
        ("dirt", [{**shape("ellipse", "dirt", **ELLIPSE)[0], "from_name": "e"}]),
    ):
        if label == "artefact" and results[0]["type"] == "brushlabels":
            results[0]["value"]["brushlabels"] = ["artefact"]
        records = read(task(1, annotation(5, results)))
        assert records == [] and f"label '{label}' has no brush" in read.failures[0][1]


def test_what_is_beside_an_unknown_label_is_read(read: Any, studio: Studio) -> None:
    studio.config = ONE.format(tag="Brush")
    [result] = drawn(ring())
    result["value"]["brushlabels"] = ["artefact", "tumour"]
    [record] = read(task(1, annotation(5, [result])))
    assert record.prompt == "tumour" and "'artefact'" in read.failures[0][1]
    result["value"]["brushlabels"] = ["tumour", "dirt"]  # of a prompt that the config has
    assert len(read(task(1, annotation(5, [result])))) == 1 and not read.failures


def test_an_image_that_the_config_does_not_have_is_named(read: Any) -> None:
    elsewhere = [{**drawn(ring())[0], "to_name": "photo"}]
    assert len(read(task(1, annotation(5, [*elsewhere, *drawn(ring())])))) == 1
    assert "annotation 5: the labelling config has no Image 'photo'; it has: 'image'" in read.failures[0][1]


def test_a_label_with_a_variable_is_what_the_task_has_for_it(read: Any, studio: Studio) -> None:
    studio.config = """<View><Image name="image" value="$photo.url"/>
      <BrushLabels name="brush" toName="image"><Label value="$v"/><Label value="$w"/></BrushLabels></View>"""
    [result] = drawn(ring())
    data = {"photo": {"url": "/data/upload/1/a-cat.png"}, "v": "horse", "w": "cow"}
    for saved in ("$v", "horse"):  # as Label Studio saves it, and as others write it
        result["value"]["brushlabels"] = [saved]
        records = read(task(1, annotation(5, [result]), data=data), absent=True)
        assert not read.failures and [(r.prompt, r.meta["label"]) for r in records] == [
            ("horse", "horse"),
            ("cow", "cow"),
        ]
        assert absent(records) == {"cow"}


def test_pages_of_a_repeater(read: Any, studio: Studio) -> None:
    studio.config = """<View><Repeater on="$document" indexFlag="{{idx}}">
      <Image name="page_{{idx}}" value="$document[{{idx}}].page"/>
      <BrushLabels name="b_{{idx}}" toName="page_{{idx}}">
        <Label value="cat" hint="$document[{{idx}}].what"/></BrushLabels>
      </Repeater></View>"""
    pages = [{"page": f"/data/upload/1/{name}-cat.png", "what": f"cat of {name}"} for name in "ab"]
    [result] = drawn(ring())
    result |= {"to_name": "page_1", "from_name": "b_1", "value": {**result["value"], "brushlabels": ["cat"]}}
    gone = {**result, "id": "gone", "to_name": "page_2"}
    records = read(task(1, annotation(5, [result, gone]), data={"document": pages}), absent=True)
    assert [(r.prompt, bool(r.meta.get("absent"))) for r in records if r.meta["to_name"] == "page_1"] == [
        ("cat of b", False)
    ]
    assert len(read.failures) == 1 and "no Image 'page_2'; it has: 'page_0', 'page_1'" in read.failures[0][1]


# what becomes of it


def test_a_lost_mask_is_neither_scored_nor_exported_as_an_empty_picture(read: Any, tmp_path: Path) -> None:
    agent = SegAgent(load_policy("saliency"), load_segmenter("grabcut"), max_clicks=1)
    tasks = [task(1, annotation(5, UNREADABLE["a damaged brush"])), task(2, annotation(6, UNREADABLE["a box"])),
             task(3, annotation(7, [])), task(4, annotation(8, accepted(ring(), "keypoint")))]  # fmt: skip
    annotated = list(group_records(read(*tasks, absent=True)))
    found = inspect_all(
        agent, annotated, FindingStore(tmp_path / "q.jsonl"), thresholds=Thresholds("missing_object=off"),
        calibration=Calibration(), failed=lambda *why: pytest.fail(str(why)),
    )  # fmt: skip
    assert [f.annotation for f in found] == [7, 8] and found[0].score == 1 and found[1].score < 1
    assert [f.annotation for f in rightly_empty(annotated, found, 0.8)] == [7]
    counts = export(judge(annotated, found, 0), tmp_path / "out", "masks", empty=rightly_empty(annotated, found, 0.8))
    assert counts == (1, 0) and len(list((tmp_path / "out" / "images").iterdir())) == 2
