from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage

from label_studio_segagent.datasets import load_samples
from label_studio_segagent.datasets.refcoco import refcoco_records
from label_studio_segagent.errors import ConfigError, InputError


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_a_record_for_each_sentence_picture_by_picture(make_refs: Any, protocol: int) -> None:
    records = refcoco_records(make_refs(protocol=protocol))
    assert [(r.id, r.prompt, r.meta["split"]) for r in records] == [
        ("1/10", "left dog", "train"),
        ("1/11", "der Hund 🐕 links", "train"),
        ("3/30", "right dog", "train"),
        ("2/20", "man", "testA"),
        ("4/40", "the crowd", "testB"),
        ("5/50", "person", "train"),
    ]
    samples = list(load_samples(records))
    assert samples[0].image is samples[2].image is not samples[3].image
    assert samples[0].mask[1:6, 2:12].all() and samples[0].mask.sum() == 50
    assert np.array_equal(samples[0].mask, samples[1].mask) and not (samples[0].mask & samples[2].mask).any()
    assert samples[4].mask[:, :3].all() and samples[4].mask.sum() == 30
    assert records[0].outline == records[1].outline and records[0].key != records[1].key


@pytest.mark.parametrize(("split", "ids"), [("testA", ["2/20"]), ("testB", ["4/40"]), ("train", 4)])
def test_splits(make_refs: Any, split: str, ids: Any) -> None:
    records = refcoco_records(make_refs(), split=split)
    assert [r.id for r in records] == ids if isinstance(ids, list) else len(records) == ids
    assert {r.meta["split"] for r in records} == {split} and all(r.meta["expression"] for r in records)


def test_an_unknown_split_names_those_that_there_are(make_refs: Any) -> None:
    with pytest.raises(ConfigError, match="no split 'val'; it has testA, testB, train"):
        refcoco_records(make_refs(), split="val")


def test_several_refs_files_must_be_told_apart(make_refs: Any) -> None:
    make_refs()
    folder = make_refs(name="refs(google).p")
    with pytest.raises(ConfigError, match=re.escape("refs(google).p, refs(unc).p; name the file")):
        refcoco_records(folder)
    assert len(refcoco_records(folder / "refs(unc).p")) == 6
    with pytest.raises(ConfigError, match="no refs"):
        refcoco_records(folder.parent)


def test_images_elsewhere(make_refs: Any, tmp_path: Path) -> None:
    folder = make_refs()
    shutil.move(folder.parent / "images", tmp_path / "coco")
    with pytest.raises(InputError, match=r"COCO_train2014_000000000006\.jpg"):
        next(load_samples(refcoco_records(folder)))
    for place in (tmp_path / "coco", tmp_path / "coco" / "mscoco" / "images" / "train2014"):
        assert len(list(load_samples(refcoco_records(folder, place)))) == 6


def test_the_layout_of_refclef(make_refs: Any, tmp_path: Path) -> None:
    rle = {"size": [10, 20], "counts": [0, 10, 190]}
    refs = [{"ref_id": 0, "ann_id": 1, "image_id": 19579, "split": "val", "sentences": [{"sent": "sky", "sent_id": 2}]}]
    instances = {
        "images": [{"id": 19579, "file_name": "19579.jpg", "width": 20, "height": 10}],
        "annotations": [{"id": 1, "segmentation": [rle]}],
    }
    folder = make_refs(refs, instances)
    place = folder.parent / "images" / "saiapr_tc-12" / "19" / "images"
    place.mkdir(parents=True)
    PilImage.new("RGB", (20, 10)).save(place / "19579.jpg")
    [sample] = load_samples(refcoco_records(folder))
    assert sample.mask[:, 0].all() and sample.mask.sum() == 10


def test_a_ref_without_its_annotation_is_lost_alone(make_refs: Any) -> None:
    folder = make_refs()
    refs = pickle.loads((folder / "refs(unc).p").read_bytes())
    refs[0]["ann_id"] = 999
    records = refcoco_records(make_refs(refs))
    failures: list[str] = []
    assert len(list(load_samples(records, lambda record, error: failures.append(str(error))))) == 4
    assert len(failures) == 2 and "object 1/10" in failures[0]


def test_a_ref_without_its_picture_and_ids_as_texts(make_refs: Any) -> None:
    folder = make_refs()
    refs = pickle.loads((folder / "refs(unc).p").read_bytes())
    refs[1]["image_id"] = 77
    content = json.loads((folder / "instances.json").read_text())
    for row in (*content["images"], *content["annotations"]):
        row["id"] = str(row["id"])
    content["images"][0]["width"] = None
    failures: list[str] = []
    records = refcoco_records(make_refs(refs, content))
    assert len(list(load_samples(records, lambda record, error: failures.append(str(error))))) == 5
    assert len(failures) == 1 and "object 2/20" in failures[0] and "no image 77" in failures[0]


GOOD = {"ref_id": 0, "ann_id": 100, "image_id": 6, "split": "val", "sentences": [{"sent": "sky", "sent_id": 2}]}


@pytest.mark.parametrize(
    "refs",
    [
        {},
        5,
        ["ref"],
        [{}],
        [{**GOOD, "split": 5}],
        [{**GOOD, "split": [[]]}],
        [{**GOOD, "image_id": "6"}],
        [{**GOOD, "image_id": 77}],
        [{**GOOD, "ann_id": [1]}],
        [{**GOOD, "sentences": None}],
        [{**GOOD, "sentences": ["sky"]}],
        [{**GOOD, "sentences": [{"sent": 5, "sent_id": 1}]}],
        b"cos\nsystem\n(S'true'\ntR.",
        b"",
    ],
    ids=lambda refs: str(refs)[-40:],
)
def test_what_is_not_of_the_family(make_refs: Any, refs: Any) -> None:
    with pytest.raises(ConfigError, match=r"refs\(unc\)\.p"):
        refcoco_records(make_refs(refs))


@pytest.mark.parametrize(
    "instances",
    [
        [],
        {},
        {"images": 5, "annotations": []},
        {"images": [{}], "annotations": []},
        {"images": [], "annotations": [{}]},
    ],
)
def test_instances_that_are_none(make_refs: Any, instances: Any) -> None:
    with pytest.raises(ConfigError, match=r"refs\(unc\)\.p and its instances"):
        refcoco_records(make_refs(instances=instances))


def test_lists_that_hold_each_other_do_not_stall(make_refs: Any) -> None:
    """Printed or compared, each level would cost twice the one before."""
    nested: list[Any] = ["x"]
    for _ in range(60):
        nested = [nested, nested]
    for field in ("split", "image_id", "ann_id", "sentences"):
        with pytest.raises(ConfigError):
            refcoco_records(make_refs([{**GOOD, field: nested}]))


def test_no_instances(make_refs: Any) -> None:
    folder = make_refs()
    (folder / "instances.json").unlink()
    with pytest.raises(ConfigError, match=r"instances\.json"):
        refcoco_records(folder)
