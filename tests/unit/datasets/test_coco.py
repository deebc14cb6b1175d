from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage

from label_studio_segagent.datasets import load_dataset, load_samples
from label_studio_segagent.datasets.coco import coco_records, read_coco, read_coco_file
from label_studio_segagent.errors import ConfigError, InputError
from label_studio_segagent.hlmat.trajectory import encode_mask


def coco(**changes: Any) -> dict[str, Any]:
    """Two images, 20 x 10 and 8 x 6; a rectangle as polygon, a crowd, a compressed and an uncompressed RLE."""
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:7] = True
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 20, "height": 10},
            {"id": 3, "file_name": "b.jpg", "width": 8, "height": 6},
            {"id": 9, "file_name": "never opened.png", "width": 8, "height": 6},
        ],
        "categories": [{"id": 1, "name": "Katze 🐈"}, {"id": 5, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "segmentation": [[2, 1, 12, 1, 12, 6, 2, 6]]},
            {
                "id": 2,
                "image_id": 7,
                "category_id": 1,
                "iscrowd": 1,
                "segmentation": {"size": [10, 20], "counts": [200]},
            },
            {"id": 5, "image_id": 3, "category_id": 1, "segmentation": {"size": [6, 8], "counts": [0, 6, 42]}},
            {"id": 4, "image_id": 3, "category_id": 5, "segmentation": encode_mask(mask)},
        ],
        **changes,
    }


def save(folder: Path, content: Any, images: str = "images") -> Path:
    (folder / images).mkdir()
    PilImage.new("RGBA", (20, 10), (10, 20, 30, 128)).save(folder / images / "a.png")
    PilImage.new("L", (8, 6), 200).save(folder / images / "b.jpg")
    path = folder / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def one(segmentation: Any) -> dict[str, Any]:
    return coco(annotations=[{"id": 11, "image_id": 3, "category_id": 5, "segmentation": segmentation}])


def test_samples_in_file_order_without_crowds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = list(read_coco(save(tmp_path, coco())))
    assert [(s.id, s.prompt) for s in samples] == [("1", "Katze 🐈"), ("5", "Katze 🐈"), ("4", "dog")]
    assert [s.image.shape for s in samples] == [(10, 20, 3), (6, 8, 3), (6, 8, 3)]
    assert all(s.image.dtype == np.uint8 and s.mask.dtype == bool and s.void is None for s in samples)
    assert samples[0].mask[1:6, 2:12].all() and samples[0].mask.sum() == 50
    assert samples[1].mask[:, 0].all() and samples[1].mask.sum() == 6
    assert samples[2].mask[1:3, 2:7].all() and samples[2].mask.sum() == 10
    assert tuple(samples[0].image[0, 0]) == (132, 137, 142)  # half transparent, on white
    assert capsys.readouterr().out == ""  # pycocotools prints


def test_images_elsewhere(tmp_path: Path) -> None:
    path = save(tmp_path, coco(), "photos")
    assert len(list(read_coco(path, tmp_path / "photos"))) == 3
    with pytest.raises(ConfigError, match="images"):
        list(read_coco(path))


def test_reading_is_lazy(tmp_path: Path) -> None:
    path = save(tmp_path, coco())
    (tmp_path / "images" / "b.jpg").unlink()
    samples = read_coco(path)
    assert next(samples).id == "1"
    with pytest.raises(ConfigError, match=r"b\.jpg"):
        next(samples)


@pytest.mark.parametrize("annotations", [[], [coco()["annotations"][1]]], ids=["none", "crowds only"])
def test_no_objects_are_an_error_that_counts(tmp_path: Path, annotations: list[Any]) -> None:
    counted = f"no objects: it has 3 images and {len(annotations)} annotations, of which {len(annotations)} are crowds"
    with pytest.raises(ConfigError, match=counted):
        list(read_coco(save(tmp_path, coco(annotations=annotations))))


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "",
        "[]",
        "5",
        "{}",
        '{"images": 5}',
        '{"images": [{}], "annotations": [{}]}',
        coco(images=None),
        coco(categories=[]),
        coco(images=[{"id": 7}]),
        coco(annotations=[{"id": 1, "image_id": 7, "category_id": 1}]),
        one([]),
        one([[]]),
        one({"size": [6, 8], "counts": "1"}),
        one({"size": [6, 8], "counts": [1, 2]}),
        one({"size": [10**6, 10**6], "counts": "1"}),
        one({"size": [8, 6], "counts": [48]}),
        one("polygon"),
    ],
    ids=lambda content: str(content)[-60:],
)
def test_what_is_no_coco_file(tmp_path: Path, content: Any) -> None:
    path = save(tmp_path, content)
    with pytest.raises(ConfigError, match=r"instances\.json"):
        list(read_coco(path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        list(read_coco(tmp_path / "nowhere.json"))


def test_image_of_another_size(tmp_path: Path) -> None:
    path = save(tmp_path, coco())
    PilImage.new("RGB", (10, 20)).save(tmp_path / "images" / "a.png")
    with pytest.raises(ConfigError, match=r"\(10, 20\).*\(20, 10\)"):
        list(read_coco(path))


def test_broken_image(tmp_path: Path) -> None:
    path = save(tmp_path, coco())
    (tmp_path / "images" / "a.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ConfigError, match=r"a\.png"):
        list(read_coco(path))


def test_the_demo_photographs(photos: list) -> None:
    assert len(photos) >= 6
    for sample in photos:
        assert sample.mask.shape == sample.image.shape[:2]
        assert sample.mask.any() and not sample.mask.all() and sample.prompt
    assert len({sample.id for sample in photos}) == len(photos)


# How different programs lay it out


def laid_out(root: Path, name: str, json_file: str, picture: str) -> Path:
    """A data set of one object: what the file calls the picture, and where both are."""
    (root / picture).parent.mkdir(parents=True, exist_ok=True)
    PilImage.new("RGB", (20, 10), (9, 8, 7)).save(root / picture)
    (root / json_file).parent.mkdir(parents=True, exist_ok=True)
    content = coco(annotations=coco()["annotations"][:1])
    content["images"][0]["file_name"] = name
    (root / json_file).write_text(json.dumps(content), encoding="utf-8")
    return root / json_file


@pytest.mark.parametrize(
    ("name", "json_file", "picture"),
    [
        ("images/a.png", "result.json", "images/a.png"),
        ("images\\a.png", "result.json", "images/a.png"),
        ("images\\sub\\a.png", "result.json", "images/sub/a.png"),
        ("C:\\Users\\me\\images\\a.png", "result.json", "images/a.png"),
        ("/data/upload/1/0a1b-a.png", "result.json", "images/0a1b-a.png"),
        ("/data/local-files/?d=set/a%20b.png", "result.json", "images/a b.png"),
        ("http://images.example.org/train/a%20b.png?size=1", "result.json", "images/train/a b.png"),
        ("a_jpg.rf.0a1b.png", "train/_annotations.coco.json", "train/a_jpg.rf.0a1b.png"),
        ("a.png", "annotations/instances_default.json", "images/a.png"),
        ("a.png", "annotations/instances_default.json", "images/default/a.png"),
        ("sub/a.png", "annotations/instances_default.json", "images/sub/a.png"),
        ("a.png", "annotations/instances_val2017.json", "val2017/a.png"),
        ("a.png", "train.json", "train/a.png"),
        ("a.png", "train.json", "images/train/a.png"),
        ("./a.png", "train.json", "a.png"),
        ("bu\u0308cher.png", "train.json", "images/b\u00fccher.png"),
        ("a\\b.png", "train.json", "images/a\\b.png"),
    ],
)
def test_pictures_are_found_where_programs_put_them(tmp_path: Path, name: str, json_file: str, picture: str) -> None:
    path = laid_out(tmp_path, name, json_file, picture)
    [sample] = read_coco(path)
    assert sample.path == str((tmp_path / picture).resolve()) and sample.mask.sum() == 50
    assert [record.image for record in load_dataset(tmp_path)] == [tmp_path / picture]


def test_the_whole_name_counts_before_its_end(tmp_path: Path) -> None:
    for folder in ("images/x", "images/y", "images"):
        laid_out(tmp_path, "y\\a.png", "result.json", f"{folder}/a.png")
    assert [record.image for record in load_dataset(tmp_path)] == [tmp_path / "images" / "y" / "a.png"]


def test_two_names_that_lead_to_one_file_are_no_use(tmp_path: Path) -> None:
    path = save(tmp_path, coco())
    content = coco()
    content["images"][0]["file_name"], content["images"][1]["file_name"] = "d1/a.png", "d2/a.png"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"d1/a\.png, d2/a\.png would all be the file .*a\.png; --images"):
        coco_records(path)
    content["images"][0]["file_name"] = "a.png"  # the other one is not there
    path.write_text(json.dumps(content))
    assert [record.problem == "" for record in coco_records(path)] == [True, False, False]
    content["images"][0]["file_name"] = "d1/a.png"
    path.write_text(json.dumps(content))
    for folder in ("d1", "d2"):
        (tmp_path / "images" / folder).mkdir()
        PilImage.new("RGB", (20, 10)).save(tmp_path / "images" / folder / "a.png")
    assert len({record.image for record in coco_records(path)}) == 2


def test_splits_in_folders_of_their_own(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        laid_out(tmp_path, "a.png", f"{split}/_annotations.coco.json", f"{split}/a.png")
    assert load_dataset(tmp_path, split="valid")[0].image == tmp_path / "valid" / "a.png"
    with pytest.raises(ConfigError, match="no split 'val'; it has train, valid"):
        load_dataset(tmp_path, split="val")


def test_a_picture_that_is_nowhere_is_named_with_the_folders(tmp_path: Path) -> None:
    path = save(tmp_path, coco())
    (tmp_path / "images" / "b.jpg").unlink()
    failures: list[str] = []
    assert len(list(load_samples(coco_records(path), lambda r, error: failures.append(str(error))))) == 1
    assert len(failures) == 2 and all(
        "no picture 'b.jpg' in" in words and str(tmp_path / "images") in words and "--images" in words
        for words in failures
    )


# Rows that are odd


def read_all(path: Path) -> tuple[list[str], dict[str, str]]:
    """Ids of the objects that are read, and why the others are not."""
    failures: dict[str, str] = {}
    records = coco_records(path)
    samples = load_samples(records, lambda record, error: failures.update({record.id: str(error)}))
    return [sample.id for sample in samples], failures


def as_text(content: dict[str, Any], rows: str, key: str) -> dict[str, Any]:
    for row in content[rows]:
        if key in row:
            row[key] = str(row[key])
    return content


@pytest.mark.parametrize(
    ("rows", "key"),
    [
        ("images", "id"), ("annotations", "image_id"), ("categories", "id"), ("annotations", "category_id"),
        ("annotations", "id"), ("annotations", "iscrowd"), ("images", "width"), ("images", "height"),
    ],
)  # fmt: skip
def test_numbers_may_be_texts(tmp_path: Path, rows: str, key: str) -> None:
    assert read_all(save(tmp_path, as_text(coco(), rows, key))) == (["1", "5", "4"], {})


@pytest.mark.parametrize("number", [7.0, " 7", "7"])
def test_ids_that_are_the_same_as_text_are_the_same(tmp_path: Path, number: Any) -> None:
    content = coco()
    content["annotations"][0]["image_id"] = number
    assert read_all(save(tmp_path, content)) == (["1", "5", "4"], {})


def test_an_id_of_the_same_type_comes_first(tmp_path: Path) -> None:
    content = coco()
    content["images"].append({"id": "7", "file_name": "b.jpg", "width": 8, "height": 6})
    content["annotations"].append({**content["annotations"][2], "id": 6, "image_id": "7"})
    records = {record.id: record.image.name for record in coco_records(save(tmp_path, content))}
    assert records == {"1": "a.png", "5": "b.jpg", "4": "b.jpg", "6": "b.jpg"}


def test_ids_that_a_table_has_turned_into_floating_point_text(tmp_path: Path) -> None:
    content = coco()
    for row in content["annotations"]:
        row["image_id"], row["category_id"] = f"{row['image_id']}.0", f"{row['category_id']}.0"
    assert read_all(save(tmp_path, content)) == (["1", "5", "4"], {})


@pytest.mark.parametrize("crowd", ["0", 0, 0.0, False, None, "false", ""])
def test_what_is_no_crowd(tmp_path: Path, crowd: Any) -> None:
    content = coco()
    content["annotations"][0]["iscrowd"] = crowd
    assert read_all(save(tmp_path, content))[0] == ["1", "5", "4"]


@pytest.mark.parametrize("crowd", ["1", 1, 1.0, True, "true"])
def test_what_is_a_crowd_is_counted(tmp_path: Path, crowd: Any, caplog: pytest.LogCaptureFixture) -> None:
    content = coco()
    content["annotations"][0]["iscrowd"] = crowd
    assert read_all(save(tmp_path, content)) == (["5", "4"], {})
    assert "2 objects on 3 images; left out: 2 crowds, 0 annotations" in caplog.text


@pytest.mark.parametrize("sides", [{"width": None}, {"height": None}, {"width": None, "height": None}, {"width": 0}])
def test_a_size_may_be_missing(tmp_path: Path, sides: dict[str, Any]) -> None:
    content = coco()
    content["images"][0] |= sides
    del content["images"][1]["width"]
    assert read_all(save(tmp_path, content)) == (["1", "5", "4"], {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"category_id": 77}, "no category 77; it has 1, 5"),
        ({"category_id": None}, "no category None"),
        ({"category_id": [1]}, r"no category \[1\]"),
        ({"image_id": 77}, "no image 77; it has 7, 3, 9"),
        ({"image_id": None}, "no image None"),
        ({"image_id": {}}, r"no image \{\}"),
        ({"iscrowd": "perhaps"}, "iscrowd is 'perhaps', neither 0 nor 1"),
        ({"segmentation": []}, "no outline"),
        ({"segmentation": [], "bbox": [1, 2, 3, 4]}, "no outline, only a box"),
        ({"segmentation": None}, "no outline"),
        ({"segmentation": "broken"}, "neither polygons nor an RLE"),
        ({"image_id": 9}, "no picture 'never opened.png'"),
    ],
)
def test_a_bad_row_is_one_named_failure(
    tmp_path: Path, change: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = coco()
    content["annotations"].append({**content["annotations"][0], "id": "bad", **change})
    read, failures = read_all(save(tmp_path, content))
    assert sorted(read) == ["1", "4", "5"] and list(failures) == ["bad"]
    with pytest.raises(InputError, match=words):
        raise InputError(failures["bad"])
    assert "bad" in failures["bad"]


def test_rows_that_are_no_rows_are_failures_too(tmp_path: Path) -> None:
    content = coco()
    content["annotations"] += [5, None, {}]
    content["images"].append("x")
    content["categories"].append(None)
    read, failures = read_all(save(tmp_path, content))
    assert read == ["1", "5", "4"] and len(failures) == 3


def test_ids_that_repeat(tmp_path: Path) -> None:
    content = coco()
    content["annotations"].append({**content["annotations"][0], "id": 1, "segmentation": [[0, 0, 3, 0, 3, 3]]})
    content["categories"].append({"id": 5, "name": "wolf"})
    read, failures = read_all(save(tmp_path, content))
    assert read == ["1", "1 (annotation number 5)", "5"]
    assert "several of category 5: dog, wolf" in failures["4"]


def test_objects_without_a_category_may_get_a_label(tmp_path: Path) -> None:
    content = coco()
    del content["annotations"][0]["category_id"]
    found = read_coco_file(save(tmp_path, content), label="thing")
    assert [(record.prompt, record.problem) for record in found.records] == [
        ("thing", ""), ("Katze 🐈", ""), ("dog", ""),
    ]  # fmt: skip
    assert found.names == ("Katze 🐈", "dog") and found.crowds == 1 and len(found.images) == 3


# Photographs that an EXIF tag turns


@pytest.fixture
def turned(tmp_path: Path) -> Path:
    """A folder with one photograph, stored with 20 x 10 pixels and shown with 10 x 20."""
    exif = PilImage.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    PilImage.new("RGB", (20, 10), (1, 2, 3)).save(tmp_path / "images" / "a.png", exif=exif)
    return tmp_path


def write(root: Path, size: tuple[int, int] | None) -> Path:
    height, width = size or (None, None)
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 8, 0, 8, 4, 0, 4]]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": width, "height": height}],
        "categories": [{"id": 1, "name": "cat"}], "annotations": [annotation],
    }  # fmt: skip
    (root / "train.json").write_text(json.dumps(content))
    return root / "train.json"


@pytest.mark.parametrize(
    ("size", "exif", "shape"),
    [
        ((20, 10), None, (20, 10)),  # as Label Studio and CVAT write it: the size of what is shown
        ((10, 20), None, (10, 20)),  # the size of what is stored
        (None, None, (20, 10)),
        ((20, 10), "applied", (20, 10)),
        ((10, 20), "ignored", (10, 20)),
        (None, "ignored", (10, 20)),
    ],
)
def test_what_masks_of_turned_photographs_were_drawn_on(
    turned: Path, size: tuple[int, int] | None, exif: Any, shape: tuple[int, int]
) -> None:
    [record] = load_dataset(write(turned, size), exif=exif)
    sample = record.load()
    assert sample.image.shape[:2] == sample.mask.shape == shape and sample.mask[:4, :8].all()
    assert sample.meta.get("exif") == exif


@pytest.mark.parametrize(
    ("size", "exif", "words"),
    [
        ((20, 10), "ignored", r"\(20, 10\).*\(10, 20\).*EXIF tag: --exif applied"),
        ((10, 20), "applied", r"\(10, 20\).*\(20, 10\).*EXIF tag: --exif ignored"),
        ((11, 20), None, r"\(11, 20\).*\(20, 10\)"),
    ],
)
def test_sizes_that_contradict_are_a_named_failure(turned: Path, size: Any, exif: Any, words: str) -> None:
    [record] = load_dataset(write(turned, size), exif=exif)
    with pytest.raises(InputError, match=words):
        record.load()
