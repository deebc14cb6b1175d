"""A data set from where it is: the format is guessed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import ConfigError
from .coco import coco_records
from .image_file import Exif
from .mask_folder import mask_folder_records
from .record import Record, read_json
from .refcoco import refcoco_records
from .segagent_json import segagent_records

__all__ = ["coco_file", "load_dataset"]

_KNOWN = (
    "a COCO file (or a folder with <split>.json and images/, with annotations/instances_<split>.json, or with "
    "<split>/_annotations.coco.json), refs(*).p of the RefCOCO family or its folder, a JSON file of the SegAgent data, "
    "or a folder with images/ and masks/"
)
_ROBOFLOW = "_annotations.coco.json"
"""Beside the pictures of each split, in a folder of its name."""
_SPLITS = ("train", "val", "test")
_OURS = "coco.json"
"""What our commands write, beside files of other kinds."""


def load_dataset(
    spec: str | Path, *, split: str | None = None, images: Path | None = None, label: str | None = None,
    exif: Exif | None = None,
) -> list[Record]:  # fmt: skip
    """The objects of a data set; images and masks are only read by `Record.load` or `load_samples`.

    Args:
        spec: A file or a folder: COCO, the RefCOCO family, the SegAgent data, or photographs with masks.
        split: Part of the data set: a name in refs(*).p, of a JSON file, or of a folder with images/ and masks/.
        images: The folder of the image files, where it is not the usual one of the format.
        label: What objects are called that have no label of their own (masks, the SegAgent data).
        exif: What masks were drawn on: photographs as they are shown ("applied") or as they are stored; by default
            their sizes decide, see `read_image`.

    Returns:
        Records in the order of the data set, those on the same picture next to each other.

    Raises:
        ConfigError: Nothing is there, nothing of a format that is known, it is damaged, or it has no objects.
    """
    records = _records(Path(spec), split, images, label)
    if not records:
        raise ConfigError(f"{spec} has no objects")
    if exif is None:
        return records
    return [replace(record, meta={**record.meta, "exif": exif}) for record in records]


def _records(path: Path, split: str | None, images: Path | None, label: str | None) -> list[Record]:
    if path.is_file():
        return _file(path, split, images, label)
    if not path.is_dir():
        raise ConfigError(f"there is no {path}; a data set is {_KNOWN}")
    if any(path.glob("refs(*).p")):
        return refcoco_records(path, images, split)
    if split is None and (path / _OURS).is_file():
        return _file(path / _OURS, None, images, label)
    inner = path / split if split is not None and (path / split / "masks").is_dir() else path
    if (inner / "masks").is_dir():
        return mask_folder_records(inner, images, label)
    return _file(_json_file(path, split), None, images, label)


def _file(path: Path, split: str | None, images: Path | None, label: str | None) -> list[Record]:
    if path.suffix == ".p":
        return refcoco_records(path, images, split)
    if split is not None:
        raise ConfigError(f"{path} is one file and has no split {split!r}; leave the split out, or name the folder")
    if path.suffix.lower() != ".json":
        raise ConfigError(f"{path} is no data set that is known; a data set is {_KNOWN}")
    content = read_json(path)
    if isinstance(content, dict) and "annotations" in content:
        return coco_records(path, images, content, label=label)
    if isinstance(content, dict) and "data" in content:
        return segagent_records(path, images, label, content)
    raise ConfigError(f"{path} has neither 'annotations', as COCO files have, nor 'data', as the SegAgent data has")


def coco_file(path: Path, split: str) -> Path:
    """The COCO file of a split of a data set; the only one of its folder, too, unless it is called as another split.

    Args:
        path: The folder, or the file itself.
        split: "train", "val", …

    Raises:
        ConfigError: There is none, or several and none of that split.
    """
    if path.is_file():
        return path
    files = _json_files(path)
    if not files:
        raise ConfigError(f"{path} holds no {split}.json; it needs {split}.json in COCO format and images/ beside it")
    alone = len(files) == 1 and not _split(files[0]).lower().startswith(_SPLITS)
    return files[0] if alone else _json_file(path, split)


def _json_files(folder: Path) -> list[Path]:
    patterns = ("*.json", "annotations/instances_*.json", f"*/{_ROBOFLOW}")
    return sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())


def _json_file(folder: Path, split: str | None = None) -> Path:
    """The JSON file of a split of a data set, or the only one of its folder."""
    files = _json_files(folder)
    names = {_split(path): path for path in files}
    if not files:
        raise ConfigError(f"{folder} is no data set that is known; a data set is {_KNOWN}")
    if split is None and len(files) > 1:
        raise ConfigError(f"{folder} has several splits: {', '.join(sorted(names))}; say which")
    chosen = files[0] if split is None else names.get(split)
    if chosen is None:
        raise ConfigError(f"{folder} has no split {split!r}; it has {', '.join(sorted(names))}")
    return chosen


def _split(path: Path) -> str:
    return path.parent.name if path.name == _ROBOFLOW else path.stem.removeprefix("instances_")
