"""The RefCOCO family (RefCOCO, RefCOCO+, RefCOCOg, RefCLEF): referring expressions for objects on photographs.

A folder has `instances.json` (COCO format) and one or more `refs(<splits>).p`, a pickled list of dicts with `ref_id`,
`ann_id`, `image_id`, `split` and `sentences`; see https://github.com/lichengunc/refer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, InputError
from .plain_pickle import read_plain_pickle
from .record import Record, read_json
from .rows import CocoRows, coco_size

__all__ = ["find_image", "image_folders", "refcoco_image_name", "refcoco_records"]

_FOLDERS = (
    "", "train2014", "images/train2014", "mscoco/images/train2014", "images/mscoco/images/train2014", "saiapr_tc-12",
    "images/saiapr_tc-12", "images",
)  # fmt: skip
"""Where images are found below the folder of images, or below that of all data sets."""


def refcoco_records(path: Path, images: Path | None = None, split: str | None = None) -> list[Record]:
    """The referred objects of a data set, image by image: one record for each sentence, as it is evaluated.

    Args:
        path: `refs(unc).p` or another such file, or a folder with a single one.
        images: The folder of the image files; by default they are looked for beside and above the data set, as
            `images/mscoco/images/train2014` and the like.
        split: "train", "val", "testA", "testB", "test", …; all by default.

    Raises:
        ConfigError: A file cannot be read, or there is no such split.
    """
    file = _refs_file(path)
    refs = read_plain_pickle(file)
    instances = read_json(file.parent / "instances.json")
    try:
        if not isinstance(refs, list) or not all(_is_ref(ref) for ref in refs):
            raise TypeError("not a list of refs with ref_id, ann_id, image_id, split and sentences")
        splits = sorted({ref["split"] for ref in refs})
        if split is not None and split not in splits:
            raise ConfigError(f"{file} has no split {split!r}; it has {', '.join(splits)}")
        annotations = CocoRows(instances["annotations"], "annotation", "segmentation")
        pictures = CocoRows(instances["images"], "image", "file_name")
        chosen = [ref for ref in refs if split in (None, ref["split"])]
        order = {number: place for place, number in enumerate(dict.fromkeys(ref["image_id"] for ref in chosen))}
        chosen.sort(key=lambda ref: order[ref["image_id"]])
        folders = image_folders([images] if images else [file.parent, file.parent.parent])
        records = [record for ref in chosen for record in _records(ref, annotations, pictures, folders)]
        if records and all(record.problem for record in records):
            raise ValueError(records[0].problem)
        return records
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{file} and its instances.json are not of the RefCOCO family: {type(error).__name__}: {error}"
        ) from error


def _refs_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("refs(*).p"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "no refs(*).p"
        raise ConfigError(f"{path} has {names}; name the file that is meant, for example '{path}/refs(unc).p'")
    return found[0]


def _is_ref(ref: Any) -> bool:
    return (
        isinstance(ref, dict)
        and isinstance(ref.get("split"), str)
        and all(isinstance(ref.get(name), int) for name in ("ref_id", "ann_id", "image_id"))
        and isinstance(ref.get("sentences"), list)
        and all(
            isinstance(sentence, dict)
            and isinstance(sentence.get("sent"), str)
            and isinstance(sentence.get("sent_id"), int)
            for sentence in ref["sentences"]
        )
    )


def _records(ref: dict[str, Any], annotations: CocoRows, pictures: CocoRows, folders: Sequence[Path]) -> list[Record]:
    image, size, mask, problem = folders[0], None, None, ""
    try:
        picture = pictures.get(ref["image_id"])
        image = find_image(folders, str(picture.get("file_name")), picture["id"])
        size, mask = coco_size(picture), annotations.get(ref["ann_id"]).get("segmentation")
    except InputError as error:
        problem = f"cannot be used: {error}"
    return [
        Record(
            image, sentence["sent"], mask, f"{ref['ref_id']}/{sentence['sent_id']}", size,
            {"split": ref["split"], "expression": True},
            f"object {ref['ref_id']}/{sentence['sent_id']} {problem}" if problem else "",
        )
        for sentence in ref["sentences"]
    ]  # fmt: skip


def refcoco_image_name(number: int, refclef: bool = False) -> str:
    """The file name of an image that is known by its number only."""
    return f"{number}.jpg" if refclef else f"COCO_train2014_{number:012d}.jpg"


def image_folders(roots: Collection[Path]) -> list[Path]:
    """The folders that there are for images in these places; the first place where there is none at all."""
    found = [root / folder for root in roots for folder in _FOLDERS if (root / folder).is_dir()]
    return found or [next(iter(roots))]


def find_image(folders: Sequence[Path], name: str, number: Any = None) -> Path:
    """The image file of this name in one of the folders; the first place to look where it is in none.

    Args:
        folders: From `image_folders`.
        name: Of the file, perhaps with folders.
        number: Of the image; RefCLEF keeps `19579.jpg` in `19/images/`.
    """
    names = [name, f"{number // 1000:02d}/images/{name}"] if isinstance(number, int) else [name]
    places = (folder / each for each in names for folder in folders)
    return next((place for place in places if place.is_file()), folders[0] / name)
