"""A tiny data set: discs and squares, two of one label on a picture, one empty mask."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage

from label_studio_segagent.datasets import Record, load_dataset
from label_studio_segagent.hlmat.trajectory import encode_mask


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A COCO folder with the split val: five objects on three pictures; the fifth has no pixel."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    rng = np.random.default_rng(0)
    # (picture, category, centre, radius)
    drawn = ((0, 1, (25, 35), 12), (1, 1, (25, 35), 14), (1, 1, (75, 30), 10), (2, 2, (50, 35), 18), (2, 1, (9, 9), 0))
    for number in range(3):
        pixels = rng.integers(0, 60, (70, 100, 3)).astype(np.uint8)
        for picture, category, centre, radius in drawn:
            if picture != number:
                continue
            mask = np.zeros((70, 100), np.uint8)
            if radius:
                cv2.circle(mask, centre, radius, 1, -1)
            pixels[mask > 0] = (230, 60, 40)
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": category,
                 "segmentation": encode_mask(mask.astype(bool))}
            )  # fmt: skip
        PilImage.fromarray(pixels).save(root / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 100, "height": 70})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "<b>[b]Scheibe"}, {"id": 2, "name": "円盤"}],
    }
    (root / "val.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def records(data: Path) -> list[Record]:
    return load_dataset(data, split="val")
