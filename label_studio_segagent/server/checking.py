"""`segagent qc`: quality control of a project, from its annotations to the columns, tab and boxes that people see."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..agent.agent import SegAgent
from ..defaults import SCORE_KEPT
from ..errors import InputError, SegAgentError
from ..labelstudio.client import LabelStudioClient
from ..labelstudio.images import ImageLoader
from ..labelstudio.project import read_project
from ..labelstudio.tasks import iterate_tasks
from ..processes import alone
from ..quality.calibration import Calibration
from ..quality.export import FORMATS, export, judge, rightly_empty
from ..quality.issues import Thresholds
from ..quality.project import Annotated, Finding, FindingStore, WrittenLog, group_records, inspect_all
from ..quality.report import write_report
from ..quality.writeback import (
    add_control,
    clear,
    has_control,
    put_queue,
    qc_version,
    withdraw_findings,
    write_findings,
)
from .inbox import SUBMITTED, Inbox
from .jobs import Job
from .models import Models, build_loader, build_predictor, need_client, project_folder, version_store
from .settings import Settings

__all__ = [
    "REPORT",
    "Checked",
    "check_job",
    "check_project",
    "clear_project",
    "export_project",
    "opened_project",
    "read_annotated",
]

log = logging.getLogger(__name__)
Progress = Callable[[float, str], None]
REPORT = "quality.html"
"""In a project's folder: the report of its newest check by a job."""


@dataclass(slots=True)
class Checked:
    """What a run found.

    Attributes:
        findings: One for each annotation of each picture.
        fresh: How many of them are new.
        failures: (task id, reason) of what could not be inspected.
        view: Id of the Data Manager tab.
        boxes: Whether issue boxes were written; without the control there are none.
        calibration: Of the scores.
        annotated: What was read, and judged or not.
        title: Of the project.
    """

    findings: list[Finding] = field(default_factory=list)
    fresh: int = 0
    failures: list[tuple[Any, str]] = field(default_factory=list)
    view: int = 0
    boxes: bool = False
    calibration: Calibration = field(default_factory=Calibration)
    annotated: list[Annotated] = field(default_factory=list)
    title: str = ""


@contextmanager
def opened_project(settings: Settings, project: int) -> Iterator[tuple[LabelStudioClient, ImageLoader, SegAgent]]:
    """What it takes to look at a project: the API, its images, and the agent that serves it.

    Raises:
        ConfigError: There is no Label Studio to ask, or a model cannot be loaded.
    """
    client = need_client(settings)
    with closing(client), closing(build_loader(settings, client)) as loader, closing(build_predictor(settings)) as base:
        yield client, loader, Models(settings, base, version_store(settings)).predictor(project).agent


def check_project(
    settings: Settings, project: int, progress: Progress, *, control: bool = False, score_column: bool = False,
    report: bool = False, tasks: Collection[int] | None = None,
) -> Checked:  # fmt: skip
    """Inspect every annotation of a project that has changed since it was inspected, and write down what was found.

    Args:
        settings: Of the server.
        project: Project id.
        progress: Told the share done, and what is being done.
        control: Add the control for issue boxes to the labelling config, if it has none.
        score_column: Let Label Studio's score column show the scores. Changes which predictions it pre-labels with.
        report: Write the report, `REPORT`, into the project's folder.
        tasks: Ids of the tasks to read; the others' findings stay as they are. All by default.

    Raises:
        ApiError: Label Studio does not answer.
        BusyError: Another process is checking the project.
        ConfigError: There is no Label Studio to ask, or the labelling config cannot be used.
    """
    folder = project_folder(settings, project)
    done = Checked(calibration=Calibration.load(folder / "calibration.json"))

    def failed(task: Any, reason: str) -> None:
        done.failures.append((task, reason))

    with _alone(settings, project), opened_project(settings, project) as (client, loader, agent):
        if control:
            add_control(client, project)
        fields = client.call("GET", f"/api/projects/{project}/")
        done.boxes, done.title = has_control(str(fields["label_config"])), str(fields.get("title"))
        progress(0.0, "reading annotations")
        done.annotated = read_annotated(client, loader, project, folder, failed, tasks)
        count = 0

        def note(finding: Finding, fresh: bool) -> None:
            nonlocal count
            count += 1
            done.fresh += fresh
            progress(0.9 * count / len(done.annotated), f"inspecting {len(done.annotated)} annotations")

        done.findings = inspect_all(
            agent, done.annotated, FindingStore(folder / "quality.jsonl"), thresholds=Thresholds(settings.qc_issues),
            calibration=done.calibration, failed=failed, progress=note, tasks=tasks,
        )  # fmt: skip
        by_task: dict[int, list[Finding]] = {}
        for finding in done.findings:
            by_task.setdefault(finding.task, []).append(finding)
        notes = WrittenLog(folder / "written.jsonl")
        written = notes.read()
        for number, (task, findings) in enumerate(by_task.items()):
            digest = f"{' '.join(sorted(finding.key for finding in findings))} {done.boxes}"
            if written.get(task) == digest:
                continue
            try:
                write_findings(client, project, task, findings, agent.version, done.boxes)
                notes.add(task, digest)
            except SegAgentError as error:
                failed(task, str(error))
            progress(0.9 + 0.1 * (number + 1) / len(by_task), "writing to Label Studio")
        for task in _left(written, by_task, done.failures, tasks):
            try:
                withdraw_findings(client, project, task)
                notes.add(task, "")
            except SegAgentError as error:
                failed(task, str(error))
        done.view = put_queue(client, project)
        if score_column and done.boxes and any(finding.issues for finding in done.findings):
            client.call("PATCH", f"/api/projects/{project}/", {"model_version": qc_version(agent.version)})
    if report:
        verdicts = judge(done.annotated, done.findings, SCORE_KEPT)
        write_report(verdicts, folder / REPORT, done.title, SCORE_KEPT)
    return done


def _left(
    written: Mapping[int, str], found: Collection[int], failures: Collection[tuple[Any, str]],
    tasks: Collection[int] | None,
) -> list[int]:  # fmt: skip
    """The tasks, of those looked at, that something was written about and that have no annotation any more."""
    troubled = {task for task, _ in failures}
    looked = [task for task, digest in written.items() if digest and (tasks is None or task in tasks)]
    return [task for task in looked if task not in found and task not in troubled]


def check_job(settings: Settings, job: Job, report: Progress) -> Mapping[str, Any]:
    """The job behind SEGAGENT_QC_ON_SUBMIT and the status page: `check_project`, and its result in short.

    A job that is about events reads the tasks that they name, so that its time does not grow with the project.
    """
    tasks = None if job.after is None else _submitted(settings, job, job.after)
    done = check_project(settings, job.project, report, report=tasks is None, tasks=tasks)
    flagged = len({finding.task for finding in done.findings if finding.issues})
    summary = {"annotations": len(done.findings), "inspected": done.fresh, "flagged_tasks": flagged,
               "failures": len(done.failures)}  # fmt: skip
    return {**summary, "report": REPORT} if tasks is None else summary


def _submitted(settings: Settings, job: Job, after: int) -> set[int]:
    """The tasks that the events of a job are about."""
    with closing(Inbox(settings.data_dir / "inbox.sqlite3")) as inbox:
        bodies = list(map(_named, inbox.bodies(job.project, SUBMITTED, after, job.upto)))
    return set().union(*bodies)


def _named(body: bytes) -> set[int]:
    """Ids of the tasks that an event is about: of one annotation, or of a list of them."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        return set()
    fields = event if isinstance(event, dict) else {}
    found = []
    for name, key in (("annotation", "task"), ("task", "id")):
        items = fields.get(name)
        found += [item.get(key) for item in (items if isinstance(items, list) else [items]) if isinstance(item, dict)]
    return {n for n in found if isinstance(n, int) and not isinstance(n, bool) and 0 < n < 2**63}


def export_project(
    settings: Settings, project: int, out: Path, kind: str, least: float, progress: Progress
) -> tuple[int, int]:
    """Check a project, and write its good regions as a data set, with `rejected.csv` and `report.html`.

    Args:
        settings: Of the server.
        project: Project id.
        out: Folder.
        kind: One of `quality.export.FORMATS`.
        least: Smallest score of a region that is kept.
        progress: Told the share done, and what is being done.

    Returns:
        How many regions were kept, and how many left out.

    Raises:
        ApiError: Label Studio does not answer.
        BusyError: Another process is checking the project.
        ConfigError: There is no Label Studio to ask.
        InputError: There is no such kind.
    """
    if kind not in FORMATS:
        raise InputError(f"unknown format {kind!r}; known: {', '.join(FORMATS)}")
    done = check_project(settings, project, lambda share, step: progress(0.9 * share, step))
    progress(0.95, "writing")
    verdicts, empty = judge(done.annotated, done.findings, least), rightly_empty(done.annotated, done.findings, least)
    with closing(need_client(settings)) as client:
        tasks = list(iterate_tasks(client, project)) if kind == "labelstudio" else ()
    counts = export(verdicts, out, kind, empty=empty, tasks=tasks)
    write_report(verdicts, out / "report.html", done.title, least)
    return counts


def clear_project(settings: Settings, project: int) -> int:
    """Remove every trace of quality control from a project; returns how many tasks had something.

    Raises:
        ApiError: Label Studio does not answer.
        BusyError: Another process is checking the project.
        ConfigError: There is no Label Studio to ask.
    """
    folder = project_folder(settings, project)
    with _alone(settings, project), closing(need_client(settings)) as client:
        count = clear(client, project)
        FindingStore(folder / "quality.jsonl").clear()
        WrittenLog(folder / "written.jsonl").clear()
        for name in ("calibration.json", REPORT):
            (folder / name).unlink(missing_ok=True)
    return count


def _alone(settings: Settings, project: int) -> AbstractContextManager[None]:
    """Keeps others away from what quality control has found, and writes into the project."""
    return alone(project_folder(settings, project) / ".quality.lock", f"checking the masks of project {project}")


def read_annotated(
    client: LabelStudioClient, loader: ImageLoader, project: int, folder: Path, failed: Callable[[Any, str], None],
    tasks: Collection[int] | None = None, copied: bool = False,
) -> list[Annotated]:  # fmt: skip
    """What annotators drew in a project (in some tasks of it), by annotation and picture; `copied`: see `read_project`.

    Raises:
        ApiError: Label Studio does not answer.
        ConfigError: The labelling config cannot be used.
    """
    images = folder / "images"
    records = read_project(client, loader, project, images, tasks=tasks, absent=True, copied=copied, failed=failed)
    return list(group_records(records))
