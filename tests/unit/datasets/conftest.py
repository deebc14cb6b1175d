"""A small data set of the RefCOCO family, as it is laid out on disk."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PilImage

MakeRefs = Callable[..., Path]


def ref(number: int, image: int, annotation: int, split: str, *sentences: str) -> dict[str, Any]:
    return {
        "ref_id": number,
        "ann_id": annotation,
        "image_id": image,
        "category_id": 1,
        "split": split,
        "file_name": f"COCO_train2014_{image:012d}_{annotation}.jpg",
        "sent_ids": [10 * number + i for i in range(len(sentences))],
        "sentences": [
            {"sent": text, "raw": text, "tokens": text.split(), "sent_id": 10 * number + i}
            for i, text in enumerate(sentences)
        ],
    }


@pytest.fixture
def make_refs(tmp_path: Path) -> MakeRefs:
    """Writes `refer_seg/refcoco/` with images in the usual place; `make_refs(refs=…, instances=…, protocol=…)`."""

    def make(refs: Any = None, instances: Any = None, protocol: int = 2, name: str = "refs(unc).p") -> Path:
        root = tmp_path / "refer_seg"
        folder, images = root / "refcoco", root / "images" / "mscoco" / "images" / "train2014"
        folder.mkdir(parents=True, exist_ok=True)
        images.mkdir(parents=True, exist_ok=True)
        for number in (5, 6):
            PilImage.new("RGB", (20, 10), (number, 0, 0)).save(images / f"COCO_train2014_{number:012d}.jpg")
        if refs is None:
            refs = [
                ref(1, 6, 100, "train", "left dog", "der Hund 🐕 links"),
                ref(2, 5, 101, "testA", "man"),
                ref(3, 6, 102, "train", "right dog"),
                ref(4, 5, 103, "testB", "the crowd"),
                ref(5, 5, 101, "train", "person"),
            ]
        if instances is None:
            square = [[2, 1, 12, 1, 12, 6, 2, 6]]
            instances = {
                "images": [
                    {"id": i, "file_name": f"COCO_train2014_{i:012d}.jpg", "width": 20, "height": 10} for i in (5, 6)
                ],
                "annotations": [
                    {"id": 100, "segmentation": square},
                    {"id": 101, "segmentation": square},
                    {"id": 102, "segmentation": [[14, 1, 18, 1, 18, 5, 14, 5]]},
                    {"id": 103, "segmentation": {"size": [10, 20], "counts": [0, 30, 170]}, "iscrowd": 1},
                ],
                "categories": [{"id": 1, "name": "dog"}],
            }
        (folder / name).write_bytes(refs if isinstance(refs, bytes) else pickle.dumps(refs, protocol))
        (folder / "instances.json").write_text(json.dumps(instances))
        return folder

    return make
