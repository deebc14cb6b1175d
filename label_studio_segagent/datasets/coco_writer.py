"""The one writer of COCO instance files; `read_coco_file` reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

__all__ = ["CocoWriter", "keep_picture"]


class CocoWriter:
    """Collects images and their objects, and writes them as a COCO file beside a folder `images/`.

    Args:
        folder: Where the file and `images/` are; made when something is written.
        labels: Names of the categories 1, 2, …; labels of objects that are not among them follow.

    Example:
        >>> writer = CocoWriter(Path("out"), ["cat"])
        >>> image = writer.add_image("a.jpg", (480, 640), source=Path("photos/a.jpg"))
        >>> writer.add_object(image, "cat", encode_mask(mask), score=0.9)
        >>> writer.write("coco.json")
    """

    def __init__(self, folder: Path, labels: Iterable[str] = ()) -> None:
        self._folder = folder
        self._categories = {label: number for number, label in enumerate(dict.fromkeys(labels), 1)}
        self._images: dict[str, dict[str, Any]] = {}
        self._annotations: list[dict[str, Any]] = []

    def add_image(self, name: str, size: tuple[int, int], source: Path | None = None, **more: Any) -> int:
        """An image; returns its id. One whose name is there already is the same image.

        Args:
            name: Of the file in `images/`.
            size: (height, width), of its masks.
            source: The file to copy there, unless it is there already.
            **more: What else is said about it.
        """
        if source is not None:
            keep_picture(source, self._folder, name)
        number = len(self._images) + 1
        row = {"id": number, "file_name": name, "width": int(size[1]), "height": int(size[0]), **more}
        return int(self._images.setdefault(name, row)["id"])

    def add_object(self, image: int, label: str, rle: Mapping[str, Any], **more: Any) -> None:
        """An object.

        Args:
            image: The id of its image.
            label: The name of its category.
            rle: Its mask, COCO's compressed RLE.
            **more: What else is said about it.
        """
        self._annotations.append({
            "id": len(self._annotations) + 1,
            "image_id": image,
            "category_id": self._categories.setdefault(label, len(self._categories) + 1),
            "segmentation": dict(rle),
            "area": int(coco_mask.area(rle)),
            "bbox": [float(number) for number in coco_mask.toBbox(rle)],
            "iscrowd": 0,
            **more,
        })  # fmt: skip

    def write(self, name: str) -> Path:
        """Write the file of this name into the folder, at once; returns its path."""
        self._folder.mkdir(parents=True, exist_ok=True)
        content = {
            "images": list(self._images.values()),
            "annotations": self._annotations,
            "categories": [{"id": number, "name": label} for label, number in self._categories.items()],
        }
        path = self._folder / name
        part = path.with_name(f"{name}.part")
        # Backslashreplace: half a surrogate pair in a label cannot be UTF-8, but its escape is JSON.
        part.write_text(json.dumps(content, ensure_ascii=False), "utf-8", "backslashreplace")
        part.replace(path)
        return path


def keep_picture(source: Path, folder: Path, name: str) -> None:
    """Copy a picture into the `images/` of a data set, unless there is one of this name."""
    target = folder / "images" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        part = target.with_name(f"{name}.part")
        shutil.copyfile(source, part)
        part.replace(target)
