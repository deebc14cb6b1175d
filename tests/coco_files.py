"""Pictures and masks made in a test, as a folder in COCO format."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle_codec

Picture = tuple[np.ndarray, Sequence[tuple[int, np.ndarray]]]
"""Pixels, BGR uint8 (H, W, 3); (category, mask uint8 (H, W)) of every object."""


def write_coco(
    root: Path, pictures: Iterable[Picture], categories: Sequence[str] = ("thing",), partial: Collection[int] = ()
) -> Path:
    """Write `train.json` and `images/`; returns the folder.

    Args:
        root: An empty folder.
        pictures: What to write.
        categories: Names of the categories 1, 2, ...
        partial: Numbers of the pictures in which not every object is annotated.
    """
    (root / "images").mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (pixels, objects) in enumerate(pictures):
        for category, mask in objects:
            rle = rle_codec.encode(np.asfortranarray(mask))
            rle["counts"] = rle["counts"].decode()
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": category, "segmentation": rle}
            )
        name, (height, width) = f"{number}.png", pixels.shape[:2]
        cv2.imwrite(str(root / "images" / name), pixels)
        images.append(
            {"id": number, "file_name": name, "width": width, "height": height, "exhaustive": number not in partial}
        )
    named = [{"id": number, "name": name} for number, name in enumerate(categories, 1)]
    content = {"images": images, "annotations": annotations, "categories": named}
    (root / "train.json").write_text(json.dumps(content))
    return root
