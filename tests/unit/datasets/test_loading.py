from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage

from label_studio_segagent.datasets import load_dataset, load_samples
from label_studio_segagent.datasets.loading import coco_file
from label_studio_segagent.errors import ConfigError


def coco(image: str = "a.png") -> str:
    return json.dumps({
        "images": [{"id": 1, "file_name": image, "width": 8, "height": 6}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 5, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]]}],
    })  # fmt: skip


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PilImage.new("RGB", (8, 6)).save(path)
    return path


def test_coco_files_and_folders(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "train.json").write_text(coco())
    assert [r.prompt for r in load_dataset(tmp_path / "train.json")] == ["cat"]
    assert len(list(load_samples(load_dataset(str(tmp_path))))) == 1  # the only one
    (tmp_path / "val.json").write_text(coco())
    assert load_dataset(tmp_path, split="val")[0].image == tmp_path / "images" / "a.png"
    with pytest.raises(ConfigError, match="several splits: train, val; say which"):
        load_dataset(tmp_path)
    with pytest.raises(ConfigError, match="no split 'test'; it has train, val"):
        load_dataset(tmp_path, split="test")
    with pytest.raises(ConfigError, match="has no split 'train'"):
        load_dataset(tmp_path / "train.json", split="train")


def test_the_coco_file_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no train\.json"):
        coco_file(tmp_path, "train")
    (tmp_path / "val.json").write_text(coco())
    with pytest.raises(ConfigError, match="no split 'train'; it has val"):  # never trained on what is to be measured
        coco_file(tmp_path, "train")
    assert coco_file(tmp_path / "val.json", "train") == tmp_path / "val.json"
    (tmp_path / "train.json").write_text(coco())
    assert coco_file(tmp_path, "train") == tmp_path / "train.json"
    for name in ("result.json", "annotations/instances_default.json", "train/_annotations.coco.json"):
        root = tmp_path / "sets" / name.replace("/", "-")
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(coco())
        assert coco_file(root, "train") == root / name


def test_what_was_said_about_exif_tags_goes_with_every_record(tmp_path: Path, make_refs: Any) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "train.json").write_text(coco())
    assert load_dataset(tmp_path / "train.json", exif="ignored")[0].meta == {"exif": "ignored"}
    assert all(r.exif == "applied" and r.meta["expression"] for r in load_dataset(make_refs(), exif="applied"))


def test_what_our_commands_wrote_is_read_before_what_lies_beside_it(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "masks").mkdir()
    for name in ("coco.json", "label_studio.json"):
        (tmp_path / name).write_text(coco())
    assert [record.id for record in load_dataset(tmp_path)] == ["5"]


@pytest.mark.parametrize("content", [{"data": []}, {"images": [], "annotations": []}])
def test_no_objects(tmp_path: Path, content: Any) -> None:
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"x\.json has no objects"):
        load_dataset(tmp_path / "x.json")


def test_the_layout_of_coco_itself(tmp_path: Path) -> None:
    picture(tmp_path / "val2017" / "a.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(coco())
    assert len(list(load_samples(load_dataset(tmp_path, split="val2017")))) == 1


def test_images_elsewhere(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "a.png")
    (tmp_path / "train.json").write_text(coco())
    assert len(list(load_samples(load_dataset(tmp_path, images=tmp_path / "photos")))) == 1


def test_the_refcoco_family(make_refs: Any, tmp_path: Path) -> None:
    folder = make_refs()
    assert len(load_dataset(folder)) == 6
    assert [r.prompt for r in load_dataset(folder, split="testA")] == ["man"]
    assert [r.prompt for r in load_dataset(folder / "refs(unc).p", split="testB")] == ["the crowd"]
    shutil.move(folder.parent / "images", tmp_path / "elsewhere")
    assert len(list(load_samples(load_dataset(folder, images=tmp_path / "elsewhere")))) == 6


def test_the_segagent_layout(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    truth = {"caption": None, "segmentation": {"size": [6, 8], "counts": "`1"}}
    content = {"data": [{"image_name": "a.png", "height": 6, "width": 8, "gt_ann": truth, "clicks_list": []}]}
    (tmp_path / "refcoco_val.json").write_text(json.dumps(content))
    [record] = load_dataset(tmp_path / "refcoco_val.json", label="thing")
    assert record.prompt == "thing" and not record.load().mask.any()


def test_mask_folders(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "val"):
        picture(place / "images" / "a.png")
        (place / "masks" / "cat").mkdir(parents=True)
        PilImage.fromarray(np.ones((6, 8), np.uint8)).save(place / "masks" / "cat" / "a.png")
    assert [r.image for r in load_dataset(tmp_path)] == [tmp_path / "images" / "a.png"]
    assert [r.image for r in load_dataset(tmp_path, split="val")] == [tmp_path / "val" / "images" / "a.png"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", "{", "as JSON"),
        ("x.json", "[" * 100_000, "as JSON"),
        ("x.json", "5", "neither"),
        ("x.json", "{}", "neither"),
        ("x.txt", "", "refs(*).p of the RefCOCO family"),
        ("x.p", "", "x.p"),
    ],
)
def test_files_that_are_no_data_set(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_dataset(tmp_path / name)


def test_places_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="images/ and masks/"):
        load_dataset(tmp_path)
    with pytest.raises(ConfigError, match="there is no .*nowhere"):
        load_dataset(tmp_path / "nowhere")
