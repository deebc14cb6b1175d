from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage

from label_studio_segagent import SegAgent, load_policy, load_segmenter
from label_studio_segagent.datasets import load_dataset, load_samples
from label_studio_segagent.datasets.record import Record
from label_studio_segagent.errors import InputError
from label_studio_segagent.hlmat.trajectory import Sample, decode_mask, encode_mask
from label_studio_segagent.quality.calibration import Calibration
from label_studio_segagent.quality.export import export, judge, rightly_empty
from label_studio_segagent.quality.issues import Thresholds
from label_studio_segagent.quality.project import (
    Annotated,
    Finding,
    FindingStore,
    WrittenLog,
    group_records,
    inspect_all,
)
from label_studio_segagent.quality.report import write_report

QUIET = Thresholds("missing_object=off")


@pytest.fixture(scope="module")
def agent() -> SegAgent:
    return SegAgent(load_policy("saliency"), load_segmenter("grabcut"), max_clicks=1)


@pytest.fixture
def picture(scene: Sample, tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    PilImage.fromarray(scene.image).save(path)
    return path


def record(picture: Path, mask: np.ndarray, annotation: int, region: str = "r", **meta: Any) -> Record:
    fields = {"task": 1, "annotation": annotation, "region": region, "by": 5, "updated": "now", **meta}
    return Record(picture, "object", encode_mask(mask), f"{annotation}/{region}", (*mask.shape,), fields)


def run(
    agent: SegAgent, annotated: list[Annotated], store: FindingStore, failed: list[Any] | None = None,
    tasks: set[int] | None = None,
) -> tuple[list[Finding], int]:  # fmt: skip
    fresh: list[bool] = []
    found = inspect_all(
        agent, annotated, store, thresholds=QUIET, calibration=Calibration(),
        failed=lambda task, reason: (failed if failed is not None else []).append((task, reason)),
        progress=lambda finding, new: fresh.append(new), tasks=tasks,
    )  # fmt: skip
    return found, sum(fresh)


def test_records_are_grouped_by_annotation(picture: Path, scene: Sample) -> None:
    mask = scene.mask
    rows = [
        record(picture, mask, 1),
        record(picture, mask, 1, "s"),
        record(picture, mask, 1, absent=True),
        record(picture, mask, 2),
    ]
    first, second = group_records(rows)
    assert [r.meta["region"] for r in first.records] == ["r", "s"] and first.absent == ("object",)
    assert second.meta["annotation"] == 2 and len(second.records) == 1


def test_only_what_changed_is_inspected_again(agent: SegAgent, picture: Path, scene: Sample, tmp_path: Path) -> None:
    store = FindingStore(tmp_path / "quality.jsonl")
    half = scene.mask.copy()
    half[:, : half.shape[1] // 2] = False
    annotated = list(group_records([record(picture, scene.mask, 1), record(picture, half, 2)]))
    found, fresh = run(agent, annotated, store)
    assert fresh == 2 and [f.annotation for f in found] == [1, 2] and found[0].regions[0]["id"] == "r"
    assert 0 <= found[1].score <= 1 and json.dumps(found[0].regions)
    assert run(agent, annotated, store) == (found, 0)
    changed = list(group_records([record(picture, scene.mask, 1), record(picture, scene.mask, 2)]))
    assert run(agent, changed, store)[1] == 1
    # One that is gone is forgotten.
    assert len(run(agent, changed[:1], store)[0]) == 1 and set(store.read()) == {(1, str(picture))}


def test_some_tasks_leave_the_findings_of_the_others(
    agent: SegAgent, picture: Path, scene: Sample, tmp_path: Path
) -> None:
    store = FindingStore(tmp_path / "quality.jsonl")
    rows = [record(picture, scene.mask, n, task=task) for n, task in ((1, 1), (2, 1), (3, 2), (4, 3))]
    run(agent, list(group_records(rows)), store)
    # One of the two annotations of task 1 was deleted; task 3 was not looked at.
    found, fresh = run(agent, list(group_records([rows[0], rows[2]])), store, tasks={1, 2})
    assert [f.annotation for f in found] == [1, 3] and fresh == 0
    assert sorted(annotation for annotation, _ in store.read()) == [1, 3, 4]


def test_a_run_that_was_killed_goes_on(agent: SegAgent, picture: Path, scene: Sample, tmp_path: Path) -> None:
    store = FindingStore(tmp_path / "quality.jsonl")
    annotated = list(group_records([record(picture, scene.mask, 1), record(picture, scene.mask, 2)]))
    found, _ = run(agent, annotated, store)
    store.replace(found[:1])
    with (tmp_path / "quality.jsonl").open("a") as file:
        file.write('{"task": 1, "annotation": 2, "ima')
    assert run(agent, annotated, store) == (found, 1)
    assert len(store.read()) == 2


def test_what_was_written_is_remembered(tmp_path: Path) -> None:
    log = WrittenLog(tmp_path / "written.jsonl")
    assert log.read() == {}
    log.add(1, "a")
    log.add(2, "b")
    with (tmp_path / "written.jsonl").open("a") as file:
        file.write('[3, "c')
    log.add(1, "d")
    assert log.read() == {1: "d", 2: "b"}
    log.clear()
    assert log.read() == {}


def test_what_cannot_be_inspected_does_not_end_the_run(
    agent: SegAgent, picture: Path, scene: Sample, tmp_path: Path
) -> None:
    gone = tmp_path / "gone.png"
    rows = [record(gone, scene.mask, 1), record(picture, np.ones((3, 3), bool), 2), record(picture, scene.mask, 3)]
    failed: list[tuple[Any, str]] = []
    found, _ = run(agent, list(group_records(rows)), FindingStore(tmp_path / "q.jsonl"), failed)
    assert [f.annotation for f in found] == [3] and len(failed) == 2
    assert "gone.png" in failed[0][1] and "size" in failed[1][1]


def test_verdicts_data_sets_and_the_report(agent: SegAgent, picture: Path, scene: Sample, tmp_path: Path) -> None:
    mask = scene.mask
    rows = [record(picture, mask, 1), record(picture, mask, 1, "s"), record(picture, np.zeros_like(mask), 2)]
    annotated = list(group_records(rows))
    [one, two] = run(agent, annotated, FindingStore(tmp_path / "q.jsonl"))[0]
    issue = {"name": "incomplete", "note": "<b>half</b>", "regions": ["s"], "box": [1, 2, 9, 9], "label": "object"}
    scored = [{**one.regions[0], "score": 0.9}, {**one.regions[1], "score": 0.3}]
    findings = [replace(one, regions=scored, issues=[issue]), two]
    verdicts = judge(annotated, findings, 0.8)
    assert [v.kept for v in verdicts] == [True, False, False]
    assert verdicts[1].reasons == ("score 0.30 is below 0.80", "incomplete: <b>half</b>")
    assert "not inspected" in verdicts[2].reasons[0]
    assert export(verdicts, tmp_path / "out", "coco") == (1, 2)
    with (tmp_path / "out" / "rejected.csv").open() as file:
        assert [row["region"] for row in csv.DictReader(file)] == ["s", "r"]
    write_report(verdicts, tmp_path / "report.html", "A <i>title</i>", 0.8)
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;half" in page and "<b>half" not in page and "&lt;i&gt;title" in page
    with pytest.raises(InputError, match="unknown format"):
        export(verdicts, tmp_path, "xml")


def test_odd_texts_end_nothing(agent: SegAgent, picture: Path, scene: Sample, tmp_path: Path) -> None:
    prompts = ["two\u2028lines\x85", "half \ud83d a pair", "\u732b" * 200, "../up"]
    rows = [
        Record(picture, prompt, encode_mask(scene.mask), f"{n}/r", (*scene.mask.shape,),
               {"task": 1, "annotation": n, "region": f"r{n} \ud83d", "by": 5, "updated": "now"})
        for n, prompt in enumerate(prompts, 1)
    ]  # fmt: skip
    annotated, store = list(group_records(rows)), FindingStore(tmp_path / "q.jsonl")
    found, fresh = run(agent, annotated, store)
    assert fresh == 4 and run(agent, annotated, store) == (found, 0)
    for kind, least in (("coco", 0.0), ("masks", 0.0), ("coco", 1.1), ("labelstudio", 0.0)):
        verdicts = judge(annotated, found, least)
        task = {"data": {}, "annotations": [{"id": 2, "updated_at": "now", "result": [{"id": "r2 \ud83d"}]}]}
        assert sum(export(verdicts, tmp_path / kind, kind, tasks=[task])) == 4
        write_report(verdicts, tmp_path / kind / "report.html", "\ud83d", least)
    folders = [path.name for path in (tmp_path / "masks" / "masks").iterdir()]
    assert len(folders) == 4 and all(len(name.encode()) < 256 for name in folders)


@pytest.mark.parametrize("kind", ["coco", "masks"])
def test_what_is_exported_is_read_again(
    agent: SegAgent, picture: Path, scene: Sample, tmp_path: Path, kind: str
) -> None:
    labels = ["cat", "cat", "red/green", "red_green", "Red_green", "half \ud83d", "\u732b" * 200, "../up", "..", "7-1"]
    rows = [
        replace(record(picture, np.roll(scene.mask, number, 1), number, region=f"r{number}"), prompt=label)
        for number, label in enumerate(labels)
    ]
    annotated = list(group_records(rows))
    found, _ = run(agent, annotated, FindingStore(tmp_path / "q.jsonl"))
    out = tmp_path / "out"
    assert export(judge(annotated, found, 0.0), out, kind) == (len(labels), 0)
    samples = list(load_samples(load_dataset(out)))
    assert sorted(sample.prompt for sample in samples) == sorted(labels)
    for sample in samples:
        masks = [decode_mask(row.mask) for row in rows if row.prompt == sample.prompt]
        assert any(np.array_equal(sample.mask, mask) for mask in masks)
        assert np.array_equal(sample.image, scene.image)
    # What is rejected later does not stay behind.
    assert export(judge(annotated[:1], found, 0.0), out, kind) == (1, 0)
    assert [sample.prompt for sample in load_samples(load_dataset(out))] == ["cat"]


def test_what_was_edited_after_the_check_is_not_exported_with_its_old_score(
    agent: SegAgent, picture: Path, scene: Sample, tmp_path: Path
) -> None:
    annotated = list(group_records([record(picture, scene.mask, n) for n in (1, 2, 3)]))
    found, _ = run(agent, annotated, FindingStore(tmp_path / "q.jsonl"))
    results = [{"id": n, "updated_at": updated, "result": [{"id": "r"}]} for n, updated in ((1, "now"), (2, "later"))]
    verdicts = judge(annotated, found, 0.0)
    # 2 was edited meanwhile, 3 deleted.
    assert export(verdicts, tmp_path, "labelstudio", tasks=[{"data": {}, "annotations": results}]) == (1, 2)
    [task] = json.loads((tmp_path / "tasks.json").read_text())
    assert len(task["annotations"]) == 1
    with (tmp_path / "rejected.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["annotation"] for row in rows] == ["2", "3"] and all("edited since" in row["reasons"] for row in rows)


def test_what_was_not_judged_stays_in_the_annotation(
    agent: SegAgent, picture: Path, scene: Sample, tmp_path: Path
) -> None:
    """Without its box of a hound, it would say that there is none; a region without an id is known by its place."""
    nothing = np.zeros_like(scene.mask)
    rows = [record(picture, scene.mask, 1, region="#0"), record(picture, nothing, 1, region="bad")]
    annotated = list(group_records(rows))
    found, _ = run(agent, annotated, FindingStore(tmp_path / "q.jsonl"))
    kept: list[dict[str, Any]] = [
        {"type": "brushlabels", "value": {"rle": []}},
        {"id": "box", "type": "rectanglelabels", "value": {"rectanglelabels": ["hound"]}},
        {"id": "c", "type": "choices", "value": {"choices": ["blurred"]}},
        {"type": "relation", "from_id": "box", "to_id": "c"},
    ]
    gone: list[dict[str, Any]] = [
        {"id": "bad", "type": "brushlabels", "value": {"rle": []}},
        {"id": "bad", "type": "textarea", "value": {"text": ["?"]}},
        {"type": "relation", "from_id": "bad", "to_id": "box"},
    ]
    one = {"id": 1, "updated_at": rows[0].meta.get("updated"), "result": [*kept, *gone]}
    assert (
        export(judge(annotated, found, 0), tmp_path, "labelstudio", tasks=[{"data": {}, "annotations": [one]}])[0] == 1
    )
    [task] = json.loads((tmp_path / "tasks.json").read_text())
    assert task["annotations"][0]["result"] == kept


def test_one_that_was_saved_again_as_it_was_is_not_edited(
    agent: SegAgent, picture: Path, scene: Sample, tmp_path: Path
) -> None:
    store = FindingStore(tmp_path / "q.jsonl")
    run(agent, list(group_records([record(picture, scene.mask, 1)])), store)
    [found], fresh = run(agent, list(group_records([record(picture, scene.mask, 1, updated="later")])), store)
    assert fresh == 0 and found.updated == "later" and store.read()[1, str(picture)].updated == "later"


def test_pictures_that_are_rightly_empty_are_in_the_data_set(
    agent: SegAgent, picture: Path, scene: Sample, tmp_path: Path
) -> None:
    nothing = np.zeros_like(scene.mask)
    annotated = list(group_records([record(picture, nothing, n, absent=True, task=n) for n in (1, 2)]))
    found, _ = run(agent, annotated, FindingStore(tmp_path / "q.jsonl"))
    found[1] = replace(found[1], score=0.2)  # something is missing there
    empty = rightly_empty(annotated, found, 0.8)
    assert [finding.annotation for finding in empty] == [1]
    assert export([], tmp_path, "coco", empty=empty) == (0, 0)
    content = json.loads((tmp_path / "coco.json").read_text())
    [image], (height, width) = content["images"], scene.mask.shape
    assert (image["width"], image["height"]) == (width, height) and content["annotations"] == []
    assert (tmp_path / "images" / image["file_name"]).exists()
    tasks = [{"data": {}, "annotations": [{"id": n, "updated_at": "now", "result": []}]} for n in (1, 2)]
    export([], tmp_path, "labelstudio", empty=empty, tasks=tasks)
    assert [task["annotations"][0]["result"] for task in json.loads((tmp_path / "tasks.json").read_text())] == [[]]
    export([], tmp_path / "masks", "masks", empty=empty)
    assert len(list((tmp_path / "masks" / "images").iterdir())) == 1


def test_no_cell_of_a_table_is_a_formula(agent: SegAgent, picture: Path, scene: Sample, tmp_path: Path) -> None:
    evil = '=HYPERLINK("http://evil")'
    rows = [replace(record(picture, scene.mask, 1, region="@r"), prompt=evil)]
    annotated = list(group_records(rows))
    found, _ = run(agent, annotated, FindingStore(tmp_path / "q.jsonl"))
    export(judge(annotated, found, 1.1), tmp_path, "coco")
    with (tmp_path / "rejected.csv").open() as file:
        [row] = csv.DictReader(file)
    assert (row["label"], row["region"]) == (f"'{evil}", "'@r")
