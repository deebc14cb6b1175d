"""Against a small server that answers /api/tasks as Label Studio does; tests/e2e reads a real project."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage
from studio import CONFIG, ELLIPSE, HEIGHT, OUTPUTS, RECTANGLE, WIDTH, Studio, annotation, drawn, ring, shape, task

from label_studio_segagent.datasets import load_samples
from label_studio_segagent.errors import ApiError, ConfigError
from label_studio_segagent.hlmat.trajectory import read_trajectories
from label_studio_segagent.labelstudio.project import ACCEPTED_WEIGHT
from label_studio_segagent.labelstudio.regions import write_region
from label_studio_segagent.training.generation import generate
from label_studio_segagent.training.trainer import open_image


def test_brush_masks_keep_holes_and_parts(read: Any) -> None:
    [record] = read(task(1, annotation(5, drawn(ring()))))
    assert not read.failures
    sample = record.load()
    assert np.array_equal(sample.mask, ring()) and sample.image.shape == (HEIGHT, WIDTH, 3)
    assert record.prompt == "the cat 🐈"
    region = record.meta["region"]
    assert record.id == f"1/5/{region}"
    assert record.meta == {
        "task": 1,
        "annotation": 5,
        "region": region,
        "label": "Katze",
        "shape": "brush",
        "to_name": record.meta["to_name"],
        "item_index": None,
        "by": None,
        "ground_truth": False,
        "updated": "2025-11-23T05:41:09Z",
        "weight": 1.0,
    }


def test_what_is_not_there_is_said_when_asked_for(read: Any) -> None:
    records = read(task(1, annotation(5, drawn(ring()))), task(2, annotation(6, [])), absent=True)
    assert not read.failures
    there = [r for r in records if not r.meta.get("absent")]
    assert [r.meta["task"] for r in there] == [1]
    gone = {(r.meta["task"], r.meta["label"]) for r in records if r.meta.get("absent")}
    assert (1, "Katze") not in gone and (2, "Katze") in gone
    assert not any(r.load().mask.any() for r in records if r.meta.get("absent"))


def test_every_shape(read: Any) -> None:
    polygon = drawn(ring()[:, ::-1] & (np.arange(WIDTH) > 20), "flag")
    result = [
        *drawn(ring(), "hound"),
        *polygon,
        *drawn(ring(20), "bowl"),
        *shape("rectangle", "sign", **RECTANGLE),
        *shape("ellipse", "sign", **ELLIPSE),
    ]
    records = read(task(1, annotation(5, result)))
    assert not read.failures and len(records) == len(result)
    by_prompt = {record.prompt: record.load().mask for record in records}
    assert set(by_prompt) == {"hound", "flag", "bowl", "sign"}
    assert np.array_equal(by_prompt["bowl"], ring(20)) and np.array_equal(by_prompt["hound"], ring())
    rectangle = next(r.load().mask for r in records if r.meta["region"] == "rectangle1")
    assert rectangle[3:18, 10:30].all() and rectangle.sum() == 15 * 20
    assert 0.9 < by_prompt["sign"].sum() / (np.pi * 10 * 9) < 1.1


def test_rectangles_and_ellipses_of_labels_with_outlines_are_prompts(read: Any) -> None:
    prompts = [*shape("rectangle", "Katze", **RECTANGLE), *shape("ellipse", "Katze", **ELLIPSE)]
    point = shape("keypoint", "Katze", x=5, y=5, width=1)
    assert len(read(task(1, annotation(5, [*prompts, *point, *drawn(ring())])))) == 1
    assert not read.failures


def test_controls_that_are_ignored(read: Any) -> None:
    noted = [{**result, "from_name": "note"} for result in drawn(ring())]
    assert read(task(1, annotation(5, noted))) == [] and not read.failures


def test_other_results_are_passed_over(read: Any, studio: Studio) -> None:
    studio.config = CONFIG.replace("</View>", '<Text name="text" value="$text"/></View>')
    other = [{"type": "choices", "value": {"choices": ["ok"]}, "from_name": "c", "to_name": "image"}, None, 5]
    elsewhere = [{**result, "to_name": "text"} for result in drawn(ring())]
    assert len(read(task(1, annotation(5, [*other, *elsewhere, *drawn(ring())])))) == 1 and not read.failures


def test_cancelled_annotations_and_older_versions_are_left_out(read: Any) -> None:
    records = read(
        task(
            1,
            annotation(1, drawn(ring())),
            annotation(2, drawn(ring(20)), was_cancelled=True),
            annotation(3, drawn(ring(25)), parent_annotation=1),
            annotation(4, drawn(ring(30)), parent_annotation=77),
        )
    )
    assert [record.meta["annotation"] for record in records] == [3, 4]


def test_what_somebody_else_made_a_copy_of_is_still_what_its_author_says(read: Any) -> None:
    one = task(
        1,
        annotation(1, drawn(ring()), completed_by=7),
        annotation(2, drawn(ring(20)), completed_by={"id": 7}, parent_annotation=1),  # his own newer version
        annotation(3, drawn(ring(25)), completed_by=8, parent_annotation=2),
    )
    assert [r.meta["annotation"] for r in read(one)] == [3]
    assert [(r.meta["annotation"], r.meta["by"]) for r in read(one, copied=True)] == [(2, 7), (3, 8)]


# accepted predictions


def renamed(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As the editor saves what it got from a prediction."""
    return [
        {**{k: v for k, v in r.items() if k not in ("score", "meta")}, "id": f"new{i}"} for i, r in enumerate(results)
    ]


def test_an_accepted_prediction_weighs_less(read: Any) -> None:
    predicted = [*drawn(ring()), *drawn(ring(25), "hound")]
    prediction = {"id": 9, "result": predicted}
    corrected = ring()
    corrected[10:20, 5:12] = False
    cases = {
        "as it was": (renamed(predicted), 9, ACCEPTED_WEIGHT),
        "in another order": (renamed(predicted)[::-1], 9, ACCEPTED_WEIGHT),
        "hand-drawn": (renamed(predicted), None, 1.0),
        "corrected": ([*renamed(drawn(corrected)), *renamed(predicted)[1:]], 9, 1.0),
        "one deleted": (renamed(predicted)[:1], 9, 1.0),
        "one added": ([*renamed(predicted), *drawn(ring(30))], 9, 1.0),
        "another label": (renamed([*drawn(ring(), "hound"), *predicted[1:]]), 9, 1.0),
        "of a prediction that is gone": (renamed(predicted), 10, 1.0),
    }
    for name, (result, parent, weight) in cases.items():
        records = read(task(1, annotation(5, result, parent_prediction=parent), predictions=[prediction]))
        assert records and {record.meta["weight"] for record in records} == {weight}, name


def test_a_mask_written_twice_is_the_same(read: Any) -> None:
    """The editor may write anti-aliased edges; a pixel more does not make a mask drawn by hand."""
    mask = cv2.circle(np.zeros((HEIGHT, WIDTH), np.uint8), (25, 15), 14, 1, -1).astype(bool)
    moved = mask.copy()
    moved[15, np.flatnonzero(mask[15]).max() + 1] = True
    prediction = {"id": 9, "result": drawn(mask)}
    [record] = read(task(1, annotation(5, drawn(moved), parent_prediction=9), predictions=[prediction]))
    assert record.meta["weight"] == ACCEPTED_WEIGHT and np.array_equal(record.load().mask, moved)


# prompts


def test_a_typed_prompt_is_used_where_there_is_one_label(read: Any, studio: Studio) -> None:
    studio.config = """<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/>
      <BrushLabels name="brush" toName="image"><Label value="Katze" hint="$what"/></BrushLabels></View>"""
    typed = {"type": "textarea", "from_name": "prompt", "to_name": "image", "value": {"text": ["the left", "one"]}}
    data = {"image": "/data/upload/1/a-cat.png", "what": "striped cat"}
    first, second = read(
        task(1, annotation(5, [*drawn(ring()), typed]), data=data), task(2, annotation(6, drawn(ring())), data=data)
    )
    assert (first.prompt, second.prompt) == ("the left one", "striped cat")


def test_each_label_of_a_region(read: Any) -> None:
    [result] = drawn(ring())
    result["value"]["brushlabels"] = ["Katze", "hound"]
    records = read(task(1, annotation(5, [result])))
    assert [(r.prompt, r.id.split("/")[-1]) for r in records] == [("the cat 🐈", "Katze"), ("hound", "hound")]


def test_a_label_that_is_gone(read: Any) -> None:
    [result] = drawn(ring())
    result["value"]["brushlabels"] = ["mouse"]
    assert len(read(task(1, annotation(5, [result, *drawn(ring())])))) == 1
    assert read.failures[0][0] == 1 and "annotation 5: label 'mouse'" in read.failures[0][1]


# pages, pictures, failures


def test_pages_by_the_last_id(read: Any, studio: Studio) -> None:
    records = read(*(task(3 * number, annotation(number, drawn(ring()))) for number in range(1, 116)))
    assert [record.meta["task"] for record in records] == [3 * number for number in range(1, 116)]
    assert len(studio.queries) == 4 and all(query["page"] == "1" for query in studio.queries)
    # Or Label Studio asks ML backends for predictions, and signs addresses that only it can sign again.
    assert all((query["review"], query["resolve_uri"]) == ("true", "false") for query in studio.queries)


def test_some_tasks(read: Any, studio: Studio) -> None:
    tasks = [task(number, annotation(number, drawn(ring()))) for number in range(1, 60)]
    records = read(*tasks, tasks=[50, 3, 3, 77, *range(10, 35)])
    assert [record.meta["task"] for record in records] == [3, *range(10, 35), 50]
    assert len(studio.queries) == 1
    assert read(*tasks, tasks=[]) == []


def test_images_are_fetched_once_and_kept_as_a_browser_shows_them(read: Any, studio: Studio, tmp_path: Path) -> None:
    upright = PilImage.open(io.BytesIO(studio.photo))
    file, exif = io.BytesIO(), PilImage.Exif()
    exif[0x0112] = 6  # stored on its side
    upright.transpose(PilImage.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    studio.photo = file.getvalue()
    tasks = [task(1, annotation(5, [*drawn(ring()), *drawn(ring(20))])), task(2, annotation(6, drawn(ring())))]
    records = read(*tasks)
    assert len(records) == 3 and len({record.image for record in records}) == 1
    assert np.array_equal(records[0].load().image, np.asarray(upright))
    assert studio.web.paths().count("/data/upload/1/a-cat.png") == 1
    for file_ in (tmp_path / "cache").iterdir():
        file_.unlink()
    read(*tasks)
    assert studio.web.paths().count("/data/upload/1/a-cat.png") == 1
    assert [path.suffix for path in (tmp_path / "images").iterdir()] == [".png"]


def test_several_pictures_of_a_task(read: Any, studio: Studio) -> None:
    studio.config = CONFIG.replace('value="$image"', 'valueList="$images"')
    data = {"images": ["/data/upload/1/a-cat.png", "/data/upload/1/b-cat.png"]}
    result = [
        *write_region(ring(), *OUTPUTS["Katze"], 1, 1),
        *write_region(ring(20), *OUTPUTS["Katze"], 1, 0),
        *write_region(ring(25), *OUTPUTS["Katze"], 1, 1),
        *write_region(ring(25), *OUTPUTS["Katze"], 1, 2),
    ]
    records = read(task(1, annotation(5, result), data=data))
    assert len(records) == 3 and len({record.image for record in records}) == 2
    assert records[0].image == records[1].image or records[1].image == records[2].image  # neighbours
    assert "no image in 'images' at index 2" in read.failures[0][1]


def test_what_fails_is_reported_and_the_rest_goes_on(read: Any, studio: Studio) -> None:
    small = write_region(np.ones((5, 5), bool), *OUTPUTS["Katze"], 1)
    [broken] = drawn(ring())
    broken["value"]["rle"] = [1, 2, 3]
    records = read(
        task(1, annotation(5, [*small, broken, *drawn(ring())])),
        task(2, annotation(6, drawn(ring())), data={"image": "file:///etc/passwd"}),
        task(3, annotation(7, drawn(ring())), data={"image": "/data/upload/1/missing.png"}),
        task(4, annotation(8, drawn(ring())), data=None),
        task(5, annotation(9, "nothing"), 5, {"result": []}, annotation(10, drawn(ring())), predictions="none"),
        task(6, annotation(11, drawn(ring())), annotations_extra=1),
    )
    assert [record.meta["task"] for record in records] == [1, 5, 6]
    assert [number for number, _ in read.failures] == [1, 1, 2, 3, 4]
    assert "refused" in read.failures[2][1]
    assert all("annotation" in reason for _, reason in read.failures)


def test_failures_are_logged_by_default(read: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert read(task(1, annotation(5, drawn(ring())), data={"image": "ftp://x"}), failed=None) == []
    assert "task 1: annotation 5" in caplog.text


def test_an_empty_project(read: Any) -> None:
    assert read() == []


def test_what_concerns_the_whole_project_raises(read: Any, studio: Studio, web_answer: Any) -> None:
    studio.config = "<View/>"
    with pytest.raises(ConfigError, match="labelling config"):
        read()
    studio.config = CONFIG
    for answer in ({"tasks": 5}, {"tasks": [{"id": "x"}]}, [], {"detail": "no"}):
        studio.web.routes["/api/tasks"] = answer
        with pytest.raises(ApiError, match="something else than tasks"):
            read()
    studio.web.routes["/api/projects/7/"] = web_answer(b'{"detail": "Not found."}', 404)
    with pytest.raises(ApiError, match="404"):
        read()


def test_hostile_urls_do_not_leave_the_folder(read: Any, tmp_path: Path) -> None:
    pixel = base64.b64encode(b"no picture").decode()
    for url in (
        f"data:image/png;base64,{pixel}",
        "/data/upload/../../../x.png",
        "/data/\ud83d.png",
        "http://[::1/x.png",
    ):
        assert read(task(1, annotation(5, drawn(ring())), data={"image": url})) == []
        assert len(read.failures) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"images", "cache"}


def test_from_a_project_to_trajectories(read: Any, tmp_path: Path) -> None:
    """What a training job does: read, make trajectories, and open their images without Label Studio."""
    tasks = [task(n, annotation(n, drawn(ring(10 + n)), parent_prediction=9)) for n in (1, 2, 3)]
    tasks[0]["predictions"] = [{"id": 9, "result": drawn(ring(11))}]
    made = generate(read(*tasks), "grabcut", tmp_path / "t.jsonl")
    found = list(read_trajectories(tmp_path / "t.jsonl"))
    assert made.made == len(found) >= 6 and not made.failures
    assert {t.meta["weight"] for t in found if t.meta["task"] == 1} == {ACCEPTED_WEIGHT}
    assert {t.meta["weight"] for t in found if t.meta["task"] != 1} == {1.0}
    assert all(open_image(t).shape == (HEIGHT, WIDTH, 3) and t.prompt == "the cat 🐈" for t in found)
    assert generate(read(*tasks), "grabcut", tmp_path / "t.jsonl").known == 3


def test_samples_can_be_loaded(read: Any) -> None:
    samples = list(load_samples(read(task(1, annotation(5, [*drawn(ring()), *drawn(ring(20))])))))
    assert samples[0].image is samples[1].image and samples[0].meta["task"] == 1
