"""Quality control of a project: every annotation inspected once, results where people see them, every trace removable.

What was found is kept in a file, one JSON object a line, so that a run goes on where it was interrupted and inspects
again only what has changed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..agent.agent import SegAgent
from ..datasets.image_file import read_image
from ..datasets.record import Record
from ..errors import InputError, SegAgentError
from ..hlmat.trajectory import decode_mask
from .calibration import Calibration
from .inspection import Inspection, inspect
from .issues import Thresholds

__all__ = ["Annotated", "Finding", "FindingStore", "WrittenLog", "group_records", "inspect_all"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Annotated:
    """What one annotation says about one picture.

    Attributes:
        records: Its regions.
        absent: Labels of which it has none there.
        image: The picture.
        meta: What all its records share: task, annotation, updated, by, ground_truth.
        unsaid: Labels of which it has something there, but nothing that could be read as a mask.
    """

    records: tuple[Record, ...]
    absent: tuple[str, ...]
    image: Path
    meta: Mapping[str, Any]
    unsaid: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found in one annotation of one picture; all of it JSON.

    Attributes:
        task: Task id.
        annotation: Annotation id.
        image: File of the picture.
        by: The annotator's id, or None.
        ground_truth: Whether the annotation is one.
        key: Changes when the annotation, the models or the thresholds do.
        score: Of the whole annotation.
        regions: For each its id, label, score, and what it was judged by.
        issues: Name, confidence, box, label, regions, note.
        size: (height, width) of the picture.
        to_name: The Image that it is on.
        item_index: Which picture of a list, or None.
        updated: When the annotation was, as Label Studio writes it.
    """

    task: int
    annotation: int
    image: str
    by: int | None
    ground_truth: bool
    key: str
    score: float
    regions: list[dict[str, Any]] = field(default_factory=list)
    issues: list[dict[str, Any]] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    to_name: str = ""
    item_index: int | None = None
    updated: str = ""


class FindingStore:
    """Findings in a JSONL file; of several about the same picture of an annotation the last one counts.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[tuple[int, str], Finding]:
        """All findings by (annotation, picture). A last line cut short by a crash is passed over."""
        found: dict[tuple[int, str], Finding] = {}
        if not self._path.exists():
            return found
        for line in self._path.read_bytes().splitlines():  # bytes: texts may hold line ends of Unicode's
            try:
                fields = json.loads(line)
                finding = Finding(**{**fields, "size": tuple(fields["size"])})
            except (ValueError, TypeError, KeyError):
                continue
            found[finding.annotation, finding.image] = finding
        return found

    def add(self, finding: Finding) -> None:
        """Append one; a line that a crash has cut short is ended first."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _append(self._path, asdict(finding))

    def replace(self, findings: Iterable[Finding]) -> None:
        """Write these and no others."""
        part = self._path.with_suffix(f".{os.getpid()}.part")  # the worker and a command may both be at it
        part.write_bytes(b"".join(_line(asdict(finding)) for finding in findings))
        part.replace(self._path)

    def clear(self) -> None:
        """Forget everything."""
        self._path.unlink(missing_ok=True)


class WrittenLog:
    """Which findings of which task have been written to Label Studio; a JSONL file, the last line about a task counts.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[int, str]:
        """A digest of what was written, by task."""
        found: dict[int, str] = {}
        for line in self._path.read_bytes().splitlines() if self._path.exists() else ():
            try:
                task, digest = json.loads(line)
                found[int(task)] = str(digest)
            except (ValueError, TypeError):  # cut short by a crash: it is written once more
                continue
        return found

    def add(self, task: int, digest: str) -> None:
        """Note that a task has been written."""
        _append(self._path, [task, digest])

    def clear(self) -> None:
        """Forget everything."""
        self._path.unlink(missing_ok=True)


def _append(path: Path, content: Any) -> None:
    """Add a line of JSON to a file; a line that a crash has cut short is ended first."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(_line(content))


def _line(content: Any) -> bytes:
    """A line of JSON; half a surrogate pair cannot be UTF-8, but its escape is JSON."""
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def group_records(records: Iterable[Record]) -> Iterator[Annotated]:
    """The records of a project (with absent labels), by annotation and picture."""
    for (_, image), group in itertools.groupby(records, key=lambda r: (r.meta["annotation"], r.image)):
        members = list(group)
        yield Annotated(
            tuple(r for r in members if not r.meta.get("absent")),
            tuple(r.prompt for r in members if r.meta.get("absent")), image, members[0].meta,
            tuple(dict.fromkeys(label for r in members for label in r.meta.get("unsaid", ()))),
        )  # fmt: skip


def inspect_all(
    agent: SegAgent,
    annotated: Iterable[Annotated],
    store: FindingStore,
    *,
    thresholds: Thresholds,
    calibration: Calibration,
    failed: Callable[[Any, str], None],
    progress: Callable[[Finding, bool], None] = lambda finding, fresh: None,
    tasks: Collection[int] | None = None,
) -> list[Finding]:
    """Inspect annotations; those that have not changed since they were are not inspected again.

    One of which nothing could be read as a mask gets no finding: that there is nothing else is no reason for a score.

    Args:
        agent: Judges.
        annotated: What to inspect.
        store: Of the findings; each is written when it is made, and those of annotations that are gone are dropped.
        thresholds: Which issues are reported.
        calibration: Of the scores.
        failed: Told (task, reason) of each that cannot be inspected; the others go on.
        progress: Told each finding, and whether it is new.
        tasks: Those that `annotated` is all of, when it is not the whole project: the others' findings are kept.
    """
    known, found = store.read(), []
    others = [] if tasks is None else [finding for finding in known.values() if finding.task not in tasks]
    for one in annotated:
        if one.unsaid and not one.records:
            continue
        key = _key(one, agent, thresholds, calibration)
        before = known.get((one.meta["annotation"], str(one.image)))
        fresh = before is None or before.key != key
        try:
            if fresh or before is None:
                finding = _inspect(agent, one, key, thresholds, calibration)
            else:  # it may have been saved again as it was
                finding = replace(before, updated=str(one.meta.get("updated", "")))
        except SegAgentError as error:
            failed(one.meta["task"], str(error))
            continue
        except Exception as error:  # one hostile annotation must not end the run of a whole project
            log.exception("annotation %s", one.meta["annotation"])
            failed(one.meta["task"], f"internal error ({type(error).__name__}); see the log")
            continue
        if fresh:
            store.add(finding)
        found.append(finding)
        progress(finding, fresh)
    if found or known:
        store.replace([*others, *found])
    return found


def _key(one: Annotated, agent: SegAgent, thresholds: Thresholds, calibration: Calibration) -> str:
    content: list[Any] = [agent.version, sorted(thresholds.values.items()), calibration.knots, sorted(one.absent)]
    content += [[r.key, r.meta.get("region")] for r in one.records]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _inspect(agent: SegAgent, one: Annotated, key: str, thresholds: Thresholds, calibration: Calibration) -> Finding:
    image = read_image(one.image)
    regions = [(str(r.meta["region"]), r.prompt, decode_mask(r.mask)) for r in one.records]
    wrong = next((name for name, _, mask in regions if mask.shape != image.shape[:2]), None)
    if wrong is not None:
        raise InputError(f"region {wrong} of annotation {one.meta['annotation']} is not of the picture's size")
    labels = [*dict.fromkeys(r.prompt for r in one.records), *one.absent]
    result = inspect(agent, image, regions, labels, thresholds=thresholds, calibration=calibration)
    return _finding(one, key, result, (image.shape[0], image.shape[1]))


def _finding(one: Annotated, key: str, result: Inspection, size: tuple[int, int]) -> Finding:
    regions: Sequence[dict[str, Any]] = [
        {
            "id": s.id, "label": s.judged.prompt, "score": round(s.score, 4),
            **{k: round(v, 4) for k, v in asdict(s.judged.evidence).items()},
        }
        for s in result.subjects
    ]  # fmt: skip
    issues = [
        {**asdict(i), "confidence": round(i.confidence, 4), "box": [round(v, 1) for v in i.box],
         "regions": list(i.regions)}
        for i in result.issues
    ]  # fmt: skip
    meta = one.meta
    return Finding(
        meta["task"], meta["annotation"], str(one.image), meta.get("by"), bool(meta.get("ground_truth")), key,
        round(result.score, 4), list(regions), issues, size, str(meta.get("to_name", "")), meta.get("item_index"),
        str(meta.get("updated", "")),
    )  # fmt: skip
