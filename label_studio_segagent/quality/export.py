"""The good part of a project as a data set, and why the rest was left out."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..datasets.coco_writer import CocoWriter, keep_picture
from ..datasets.image_file import picture_frame
from ..datasets.mask_folder import MaskFolderWriter
from ..datasets.record import Record
from ..errors import InputError
from ..hlmat.arrays import mask_box
from ..hlmat.trajectory import decode_mask, encode_mask
from ..labelstudio.regions import region_id
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
            "masks" (`images/` and `masks/`, one PNG an object, by label). `load_dataset` reads the first and the last.
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
        _tasks(verdicts, [f for f in empty if f.annotation not in drawn], out, tasks)
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


def _name(task: int, image: Path) -> str:
    """What a picture of a task is called in the data set."""
    return f"{task}-{image.stem[:8]}{image.suffix}"


def _coco(kept: Sequence[Verdict], empty: Sequence[Finding], out: Path) -> None:
    writer = CocoWriter(out, sorted({v.record.prompt for v in kept}))
    for v in kept:
        size, picture = v.record.mask["size"], v.record.image
        image = writer.add_image(_name(v.record.meta["task"], picture), (size[0], size[1]), picture)
        writer.add_object(image, v.record.prompt, v.record.mask, score=v.score)
    for finding in empty:
        picture = Path(finding.image)
        writer.add_image(_name(finding.task, picture), (finding.size[0], finding.size[1]), picture)
    writer.write("coco.json")


def write_consensus(agreed: Mapping[tuple[int, str], Sequence[Agreed]], out: Path) -> None:
    """Write `consensus.json` in COCO format, with `votes` and `of` in every annotation, and its `images/`.

    Args:
        agreed: By (task, image file).
        out: Folder; made when missing.
    """
    writer = CocoWriter(out, sorted({one.label for group in agreed.values() for one in group}))
    for (task, path), group in agreed.items():
        height, width, _ = picture_frame(Path(path))
        image = writer.add_image(_name(task, Path(path)), (height, width), Path(path), task=task)
        for one in group:
            writer.add_object(image, one.label, encode_mask(one.mask), votes=one.votes, of=one.of)
    writer.write("consensus.json")


def _masks(kept: Sequence[Verdict], empty: Sequence[Finding], out: Path) -> None:
    for finding in empty:
        keep_picture(Path(finding.image), out, _name(finding.task, Path(finding.image)))
    writer = MaskFolderWriter(out)
    for v in kept:
        name, mask = _name(v.record.meta["task"], v.record.image), decode_mask(v.record.mask)
        keep_picture(v.record.image, out, name)
        if mask_box(mask) is not None:
            writer.add(name, v.record.prompt, mask)
    writer.write()


def _tasks(
    verdicts: Sequence[Verdict], empty: Sequence[Finding], out: Path, tasks: Sequence[Mapping[str, Any]]
) -> None:
    good = {_place(v.record) for v in verdicts if v.kept}
    bad = {_place(v.record) for v in verdicts} - good
    whole = {annotation for annotation, _ in good}
    nothing = {(finding.annotation, finding.updated) for finding in empty}
    written = []
    for task in tasks:
        annotations = [
            {
                "result": _left(a["id"], a["result"], bad),
                **{key: a.get(key) for key in ("ground_truth", "lead_time", "completed_by", "unique_id")},
            }
            for a in task.get("annotations") or []
            if a["id"] in whole or (a["id"], _updated(a)) in nothing
        ]
        if annotations:
            written.append({"data": task["data"], "annotations": annotations, "meta": task.get("meta") or {}})
    (out / "tasks.json").write_text(json.dumps(written, ensure_ascii=False), "utf-8", "backslashreplace")


def _place(record: Record) -> tuple[Any, str]:
    return record.meta["annotation"], str(record.meta["region"])


def _left(annotation: Any, results: Sequence[Any], bad: Collection[tuple[Any, str]]) -> list[Any]:
    """The results of an annotation without its bad regions and what is about them.

    What was not judged stays: without a box of "cat" the annotation would say that there is no cat.
    """
    return [
        result
        for number, result in enumerate(results)
        if isinstance(result, dict)
        and not any((annotation, str(result.get(end))) in bad for end in ("from_id", "to_id"))
        and (annotation, region_id(result, number)) not in bad
    ]
