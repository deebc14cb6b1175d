"""COCO instance files (https://cocodataset.org/#format-data) as samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ConfigError, InputError
from ..hlmat.trajectory import Sample
from .record import Record, load_samples, read_json

__all__ = ["coco_records", "read_coco"]


def read_coco(path: Path, images: Path | None = None) -> Iterator[Sample]:
    """Read a COCO instances file: one sample an annotation, image by image; crowds are left out.

    Args:
        path: The JSON file.
        images: The folder of the image files; `images/` beside the JSON by default.

    Raises:
        ConfigError: The file, an annotation or an image cannot be read, or it is not a COCO file.
    """
    try:
        yield from load_samples(coco_records(path, images))
    except InputError as error:
        raise ConfigError(f"cannot read the COCO file {path}: {error}") from error


def coco_records(path: Path, images: Path | None = None, content: Any = None) -> list[Record]:
    """The annotated objects of a COCO instances file, image by image; crowds are left out.

    Args:
        path: The JSON file.
        images: The folder of the image files; by default `images/` beside the JSON or, as COCO itself has it, the
            folder that `annotations/instances_<folder>.json` names.
        content: What is in the file, where it has been read already.

    Raises:
        ConfigError: It cannot be read, or it is not a COCO file.
    """
    content = read_json(path) if content is None else content
    folder = images or _images_beside(path)
    try:
        names = {category["id"]: str(category["name"]) for category in content.get("categories", [])}
        grouped: dict[Any, list[dict[str, Any]]] = {}
        for annotation in content["annotations"]:
            if not annotation.get("iscrowd"):
                grouped.setdefault(annotation["image_id"], []).append(annotation)
        return [
            Record(
                folder / image["file_name"],
                names[annotation["category_id"]],
                annotation.get("segmentation"),
                str(annotation["id"]),
                _size(image),
            )
            for image in content["images"]
            for annotation in grouped.get(image["id"], [])
        ]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is not a COCO file with images, annotations and categories: {type(error).__name__}: {error}"
        ) from error


def _images_beside(path: Path) -> Path:
    official = path.parent.parent / path.stem.removeprefix("instances_")
    return official if path.stem.startswith("instances_") and official.is_dir() else path.parent / "images"


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    return (int(image["height"]), int(image["width"])) if "height" in image and "width" in image else None
