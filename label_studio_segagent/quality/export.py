"""The good part of a project as a data set, and why the rest was left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PilImage
from pycocotools import mask as coco_mask

from ..datasets.record import Record
from ..errors import InputError
from ..hlmat.arrays import mask_box
from ..hlmat.trajectory import decode_mask, encode_mask
from ..tables import write_table
from .consensus import Agreed
from .project import Annotated, Finding

__all__ = ["FORMATS", "Verdict", "export", "judge", "rightly_empty", "write_consensus"]

FORMATS = ("coco", "labelstudio", "masks")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a region is good enough.

    Attributes:
        record: The region.
        finding: Of its annotation.
        score: Its score, or None where it could not be inspected.
        reasons: Why it is left out; empty for those that are kept.
    """

    record: Record
    finding: Finding | None
    score: float | None
    reasons: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether it is in the data set."""
        return not self.reasons


def judge(annotated: Sequence[Annotated], findings: Sequence[Finding], least: float) -> list[Verdict]:
    """A verdict on every region of a project.

    Args:
        annotated: What was drawn.
        findings: What was found.
        least: Smallest score of a region that is kept.
    """
    known = {(finding.annotation, finding.image): finding for finding in findings}
    verdicts = []
    for one in annotated:
        finding = known.get((one.meta["annotation"], str(one.image)))
        for record in one.records:
            verdicts.append(_judge(record, finding, least))
    return verdicts


def rightly_empty(annotated: Sequence[Annotated], findings: Sequence[Finding], least: float) -> list[Finding]:
    """What was found in annotations that say that there is nothing in a picture, of those that score `least` or more.

    One that has something there which could not be read does not say so.

    Args:
        annotated: What was drawn.
        findings: What was found.
        least: Smallest score.
    """
    empty = {(one.meta["annotation"], str(one.image)) for one in annotated if not one.records and not one.unsaid}
    return [f for f in findings if (f.annotation, f.image) in empty and f.score >= least]


def _judge(record: Record, finding: Finding | None, least: float) -> Verdict:
    region = str(record.meta["region"])
    rows = [] if finding is None else [r for r in finding.regions if (r["id"], r["label"]) == (region, record.prompt)]
    if finding is None or not rows:
        return Verdict(record, finding, None, ("not inspected: no pixel, or it could not be read",))
    score = float(rows[0]["score"])
    if score >= least:
        return Verdict(record, finding, score, ())
    named = [f"{i['name']}: {i['note']}" for i in finding.issues if region in i["regions"]]
    return Verdict(record, finding, score, (f"score {score:.2f} is below {least:.2f}", *named))


def export(
    verdicts: Sequence[Verdict], out: Path, kind: str, *, empty: Sequence[Finding] = (),
    tasks: Sequence[Mapping[str, Any]] = (),
) -> tuple[int, int]:  # fmt: skip
    """Write the data set and `rejected.csv`.

    Args:
        verdicts: On every region.
        out: Folder; made when missing, files in it are replaced.
        kind: "coco" (`coco.json` with `images/`), "labelstudio" (`tasks.json`, to be imported into a project) or
            "masks" (`images/` and `masks/`, one PNG an object, by label).
        empty: See `rightly_empty`: pictures that are in the data set, with nothing in them.
        tasks: As Label Studio has them, for "labelstudio": annotations that have changed since are left out.

    Returns:
        How many regions were kept, and how many left out.

    Raises:
        InputError: There is no such kind.
    """
    if kind not in FORMATS:
        raise InputError(f"unknown format {kind!r}; known: {', '.join(FORMATS)}")
    out.mkdir(parents=True, exist_ok=True)
    if kind == "labelstudio":
        verdicts = _without_edited(verdicts, tasks)
    kept = [v for v in verdicts if v.kept]
    if kind == "coco":
        _coco(kept, empty, out)
    elif kind == "masks":
        _masks(kept, empty, out)
    else:
        drawn = {v.record.meta["annotation"] for v in verdicts}
        _tasks(kept, [f for f in empty if f.annotation not in drawn], out, tasks)
    left = [(v.record.meta, v) for v in verdicts if not v.kept]
    write_table(
        out / "rejected.csv",
        ("task", "annotation", "annotator", "region", "label", "score", "reasons"),
        (
            (m["task"], m["annotation"], m.get("by"), m["region"], v.record.prompt, v.score, "; ".join(v.reasons))
            for m, v in left
        ),
    )
    return len(kept), len(left)


def _without_edited(verdicts: Sequence[Verdict], tasks: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """The verdicts, with those of annotations that somebody has edited or deleted since they were read against them."""
    now = {a["id"]: _updated(a) for task in tasks for a in task.get("annotations") or []}
    reason = "edited since it was checked: run segagent qc export again"
    return [
        v if now.get(v.record.meta["annotation"]) == v.record.meta.get("updated") else replace(v, reasons=(reason,))
        for v in verdicts
    ]


def _updated(annotation: Mapping[str, Any]) -> str:
    return str(annotation.get("updated_at") or "")


def _picture(task: int, image: Path, out: Path) -> str:
    """Copy a picture of a task into the data set; returns its name there."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    name = f"{task}-{image.stem[:8]}{image.suffix}"
    if not (out / "images" / name).exists():
        shutil.copyfile(image, out / "images" / name)
    return name


def _coco(kept: Sequence[Verdict], empty: Sequence[Finding], out: Path) -> None:
    names = sorted({v.record.prompt for v in kept})
    images: dict[str, dict[str, Any]] = {}
    annotations = []

    def put(task: int, picture: Path, height: int, width: int) -> int:
        name = _picture(task, picture, out)
        image = {"id": len(images) + 1, "file_name": name, "width": width, "height": height}
        return int(images.setdefault(name, image)["id"])

    for number, v in enumerate(kept, 1):
        x, y, w, h = (float(n) for n in coco_mask.toBbox(v.record.mask))
        annotations.append({
            "id": number, "image_id": put(v.record.meta["task"], v.record.image, *v.record.mask["size"]),
            "category_id": names.index(v.record.prompt) + 1, "segmentation": v.record.mask,
            "area": int(coco_mask.area(v.record.mask)), "bbox": [x, y, w, h], "iscrowd": 0, "score": v.score,
        })  # fmt: skip
    for finding in empty:
        put(finding.task, Path(finding.image), *finding.size)
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    content = {"images": list(images.values()), "annotations": annotations, "categories": categories}
    (out / "coco.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8", "backslashreplace")


def write_consensus(agreed: Mapping[tuple[int, str], Sequence[Agreed]], out: Path) -> None:
    """Write `consensus.json` in COCO format, with `votes` and `of` in every annotation, and its `images/`.

    Args:
        agreed: By (task, image file).
        out: Folder; made when missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = sorted({one.label for group in agreed.values() for one in group})
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for (task, path), group in agreed.items():
        name = _picture(task, Path(path), out)
        for one in group:
            rle = encode_mask(one.mask)
            box = [float(n) for n in coco_mask.toBbox(rle)]
            annotations.append({
                "id": len(annotations) + 1, "image_id": len(images) + 1, "category_id": names.index(one.label) + 1,
                "segmentation": rle, "area": int(coco_mask.area(rle)), "bbox": box,
                "iscrowd": 0, "votes": one.votes, "of": one.of,
            })  # fmt: skip
        with PilImage.open(path) as picture:
            width, height = picture.size
        images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height, "task": task})
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (out / "consensus.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8", "backslashreplace")


def _masks(kept: Sequence[Verdict], empty: Sequence[Finding], out: Path) -> None:
    for finding in empty:
        _picture(finding.task, Path(finding.image), out)
    counts: dict[tuple[str, str], int] = {}
    for v in kept:
        name, mask = _picture(v.record.meta["task"], v.record.image, out), decode_mask(v.record.mask)
        if mask_box(mask) is None:
            continue
        label = "".join(c if c.isalnum() or c in " -_" else "_" for c in v.record.prompt)
        label = label[:50].strip() or "object"  # an expression may be longer than file systems allow, in bytes
        folder = out / "masks" / label
        folder.mkdir(parents=True, exist_ok=True)
        number = counts[name, label] = counts.get((name, label), 0) + 1
        PilImage.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{Path(name).stem}-{number}.png")


def _tasks(kept: Sequence[Verdict], empty: Sequence[Finding], out: Path, tasks: Sequence[Mapping[str, Any]]) -> None:
    good = {(v.record.meta["annotation"], str(v.record.meta["region"])) for v in kept}
    whole = {annotation for annotation, _ in good}
    nothing = {(finding.annotation, finding.updated) for finding in empty}
    written = []
    for task in tasks:
        annotations = [
            {
                "result": [r for r in a["result"] if (a["id"], str(r.get("id"))) in good],
                **{key: a.get(key) for key in ("ground_truth", "lead_time", "completed_by", "unique_id")},
            }
            for a in task.get("annotations") or []
            if a["id"] in whole or (a["id"], _updated(a)) in nothing
        ]
        if annotations:
            written.append({"data": task["data"], "annotations": annotations, "meta": task.get("meta") or {}})
    (out / "tasks.json").write_text(json.dumps(written, ensure_ascii=False), "utf-8", "backslashreplace")
