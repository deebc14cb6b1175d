from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage
from pycocotools.coco import COCO

from label_studio_segagent.datasets.coco import read_coco_file
from label_studio_segagent.datasets.coco_writer import CocoWriter, keep_picture
from label_studio_segagent.hlmat.trajectory import decode_mask, encode_mask


def mask(column: int) -> np.ndarray:
    drawn = np.zeros((6, 8), bool)
    drawn[1:4, column : column + 3] = True
    return drawn


@pytest.fixture
def written(tmp_path: Path) -> Path:
    source = tmp_path / "elsewhere.png"
    PilImage.new("RGB", (8, 6)).save(source)
    writer = CocoWriter(tmp_path / "new" / "folder", ["dog", "Katze 🐈", "dog"])
    image = writer.add_image("a.png", (6, 8), source, exhaustive=False)
    writer.add_object(image, "Katze 🐈", encode_mask(mask(2)), score=0.5)
    writer.add_object(writer.add_image("b.png", (6, 8), source), "half \ud83d", encode_mask(mask(4)))
    assert writer.add_image("a.png", (6, 8)) == image
    return writer.write("coco.json")


def test_what_is_written_is_read(written: Path) -> None:
    found = read_coco_file(written)
    assert found.names == ("dog", "Katze 🐈", "half \ud83d")
    assert [(image.path.name, image.size, image.row.get("exhaustive", True)) for image in found.images] == [
        ("a.png", (6, 8), False), ("b.png", (6, 8), True),
    ]  # fmt: skip
    assert [record.prompt for record in found.records] == ["Katze 🐈", "half \ud83d"]
    for record, column in zip(found.records, (2, 4), strict=True):
        assert np.array_equal(decode_mask(record.mask), mask(column)) and np.array_equal(
            record.load().mask, mask(column)
        )
    assert sorted(path.name for path in written.parent.rglob("*") if path.is_file()) == ["a.png", "b.png", "coco.json"]


def test_pycocotools_reads_it_too(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = COCO(str(written))
    assert [coco.annToMask(annotation).sum() for annotation in coco.anns.values()] == [9, 9]
    [first, _] = json.loads(written.read_text())["annotations"]
    assert first["bbox"] == [2, 1, 3, 3] and first["area"] == 9 and first["score"] == 0.5


def test_a_picture_that_is_there_is_kept(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        keep_picture(tmp_path / name, tmp_path, "a.png")
    assert (tmp_path / "images" / "a.png").read_text() == "one"
