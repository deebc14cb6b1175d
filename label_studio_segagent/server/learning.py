"""The training job: everything annotated in a project becomes a new version of its model, promoted if no worse."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image as PilImage

from ..agent.agent import SegAgent
from ..datasets.record import Record
from ..errors import ApiError, InputError
from ..hlmat.arrays import Image
from ..hlmat.metrics import iou
from ..hlmat.trajectory import Trajectory, read_trajectories
from ..labelstudio.client import LabelStudioClient
from ..labelstudio.project import read_project
from ..pictures import trajectory_strip
from ..processes import alone
from ..segmenters.base import Segmenter
from ..training.evaluation import LabelledImage, Measured, match_masks, measure, to_trajectories
from ..training.generation import generate
from ..training.trainer import FitSettings, load_trainer, open_image
from ..training.versions import Version, VersionStore
from .jobs import Job
from .models import (
    Models,
    build_agent,
    build_client,
    build_loader,
    build_predictor,
    load_version,
    need_client,
    project_folder,
    version_store,
)
from .predictor import served_as
from .settings import Settings

__all__ = ["learn", "split", "switch_version"]

T = TypeVar("T")
log = logging.getLogger(__name__)
_HELD_OUT = 0.1
_LEAST = 2
_PICTURES = 4
Report = Callable[[float, str], None]


def learn(settings: Settings, job: Job, report: Report) -> Mapping[str, Any]:
    """Train the model of a job's project on all that is annotated there, and promote it if it is no worse.

    A training that was interrupted goes on from its checkpoint when the annotations are still the same.

    Args:
        settings: Of the server.
        job: Names the project.
        report: Told the share done, and what is being done.

    Returns:
        What was found: tasks, mIoU before and after on held-out tasks, the version and whether it was promoted.

    Raises:
        ApiError: Label Studio does not answer.
        BusyError: Another process is training the project.
        ConfigError: There is no Label Studio to ask, or a model cannot be loaded.
        InputError: There is too little to learn from.
    """
    client = need_client(settings)
    store = version_store(settings)
    store.current(job.project)  # or a damaged file would be found when all is trained
    report(0.0, "reading annotations")
    work = store.workplace(job.project)
    busy = alone(work.parent / ".lock", f"training project {job.project}")
    with closing(client), closing(build_loader(settings, client)) as loader, busy:
        folder = project_folder(settings, job.project) / "images"
        held, taught = split(labelled_images(read_project(client, loader, job.project, folder, absent=True)))
        result = _Training(settings, store, job.project, report).run(work, held, taught)
        if result["promoted"]:
            before, after = (served_as(str(result[key]), settings.refine_masks) for key in ("before", "version"))
            _tell(client, job.project, before, after)
        return result


def labelled_images(records: Iterable[Record]) -> list[LabelledImage]:
    """What annotators drew, by annotation, image and label; annotations by several people stay apart."""
    groups: dict[tuple[str, str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        key = (str(record.meta["task"]), str(record.meta["annotation"]), str(record.image), record.prompt)
        groups[key].append(record)
    return [
        LabelledImage(
            image, prompt, tuple(r.mask for r in group if not r.meta.get("absent")), task,
            min(float(r.meta["weight"]) for r in group),
        )
        for (task, _, image, prompt), group in groups.items()
    ]  # fmt: skip


def split(labelled: Sequence[LabelledImage]) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """What is held out, and what to learn from. A task is held out for good: by its hash a tenth of all.

    Of the tasks with objects that with the least hash is held out in any case, so that there is one. A task cannot
    become that later on, unless it is new or others were deleted. Tasks in which nothing was drawn may have objects
    some day, and so a tenth of them is held out, too.

    Raises:
        InputError: There are fewer than two tasks with objects.
    """
    marks = {item.task: _mark(item.task) for item in labelled}
    filled = {item.task for item in labelled if item.masks}
    if len(filled) < _LEAST:
        raise InputError(
            f"{len(filled)} tasks have annotated objects; training needs {_LEAST}, one of them to judge by"
        )
    limit = max(_HELD_OUT, min(marks[task] for task in filled))
    held = {task for task, mark in marks.items() if mark <= limit}
    if filled <= held:
        held.remove(max(filled, key=lambda task: marks[task]))
    return [x for x in labelled if x.task in held], [x for x in labelled if x.task not in held]


def _mark(task: str) -> float:
    """A number in [0, 1) that only depends on the task's id."""
    return int.from_bytes(hashlib.sha256(task.encode()).digest()[:6], "big") / 2**48


class _Training:
    """One training of one project."""

    def __init__(self, settings: Settings, store: VersionStore, project: int, report: Report) -> None:
        self.settings, self.store, self.project, self.report = settings, store, project, report

    def run(self, work: Path, held: Sequence[LabelledImage], taught: Sequence[LabelledImage]) -> Mapping[str, Any]:
        tasks = {"trained_on": len({x.task for x in taught}), "held_out": len({x.task for x in held})}
        _same_images(work, taught, self.settings)
        base = build_agent(self.settings)
        trainer = load_trainer(self.settings.policy, base.segmenter)
        trajectories = self._click(base.segmenter, work, taught) if trainer.clicks else to_trajectories(taught)
        fit = FitSettings(seconds=self.settings.train_seconds)
        fitted = trainer.fit(
            trajectories, work, fit, resume=True,
            progress=lambda share, step: self.report(0.05 + 0.75 * share, step),
        )  # fmt: skip
        candidate = build_agent(self.settings, fitted.model, base.segmenter, base.cache)
        now = self._serving(base)
        before = self._judge(now, held, 0.8, "judging the version in use")
        after = self._judge(candidate, held, 0.9, "judging the new version")
        better = after.miou >= before.miou
        result = {
            **tasks, "version": candidate.version, "promoted": better, "miou": after.miou, "miou_before": before.miou,
            "miou_matched": after.matched, "extra": after.extra, "objects": after.objects, "loss": fitted.loss,
            "steps": fitted.steps, "seconds": fitted.seconds, "before": now.version,
        }  # fmt: skip
        _draw(work, candidate, held)
        start = (base.policy.version, base.segmenter.version)
        made = Version(candidate.version, fitted.model, start, report=result)
        self.store.add(self.project, made, promote=better)
        log.info("project %d: %s", self.project, result)
        return result

    def _click(self, segmenter: Segmenter, work: Path, taught: Sequence[LabelledImage]) -> list[Trajectory]:
        """Trajectories of F_sim that draw what annotators drew, with the segmenter of the settings."""
        records = [
            Record(Path(item.image), item.prompt, mask, f"{item.task}/{number}", meta={"weight": item.weight})
            for item in taught
            for number, mask in enumerate(item.masks)
        ]
        made = 0

        def note(count: int) -> None:
            nonlocal made
            made += count
            self.report(0.05 * made / max(len(records), 1), f"clicking {len(records)} objects")

        path = work / "trajectories.jsonl"
        generate(records, segmenter, path, progress=note)
        return list(read_trajectories(path))

    def _serving(self, base: SegAgent) -> SegAgent:
        """The agent that serves the project now."""
        name = self.store.current(self.project)
        version = next((v for v in self.store.versions(self.project) if v.name == name), None)
        if version is None or version.start != (base.policy.version, base.segmenter.version):
            return base
        return load_version(self.settings, base, self.store, self.project, version)

    def _judge(self, agent: SegAgent, held: Sequence[LabelledImage], done: float, step: str) -> Measured:
        self.report(done, step)
        return measure(agent, held, _read, lambda share: self.report(done + 0.1 * share, step))


def _tell(client: LabelStudioClient, project: int, before: str, after: str) -> None:
    """Where the project shows predictions of the version before, let it show those of the new one.

    Label Studio's score column and its pre-labels go by the version that the project names. A project that names
    something else was set up so by somebody, and stays so.
    """
    try:
        for backend in client.call("GET", "/api/ml", project=project):
            if backend.get("title") == before:
                # Label Studio checks the connection anew, with these; an empty password means the one that it has.
                same = {k: backend[k] for k in ("url", "project", "auth_method", "basic_auth_user") if backend.get(k)}
                if "basic_auth_user" in same:
                    same["basic_auth_pass"] = ""
                client.call("PATCH", f"/api/ml/{backend['id']}", {**same, "title": after})
        if client.call("GET", f"/api/projects/{project}/").get("model_version") == before:
            client.call("PATCH", f"/api/projects/{project}/", {"model_version": after})
    except ApiError as error:
        log.warning("project %d still names the version %s: %s", project, before, error)


def switch_version(settings: Settings, project: int, change: Callable[[VersionStore], T]) -> T:
    """Let a person decide which version serves a project, and the project name it where it named the one before.

    Args:
        settings: Of the server.
        project: Project id.
        change: Promotes or rolls back; its answer is returned.

    Raises:
        ConfigError: A model cannot be loaded.
        InputError: There is no such version.
    """
    store, client = version_store(settings), build_client(settings)
    if client is None:
        return change(store)
    with closing(client), closing(build_predictor(settings)) as base:
        before = Models(settings, base, store).predictor(project).model_version
        answer = change(store)
        after = Models(settings, base, store).predictor(project).model_version
        if after != before:
            _tell(client, project, before, after)
        return answer


def _draw(work: Path, agent: SegAgent, held: Sequence[LabelledImage]) -> None:
    """Pictures of rollouts on held-out tasks, for the status page."""
    shown = [item for item in held if item.masks][:_PICTURES]
    for number, item in enumerate(shown):
        image = _read(item.image)
        for rollout in agent.segment_all(image, item.prompt)[:1]:
            [true], _ = match_masks([rollout.mask], [max(item.decoded(), key=lambda m: iou(m, rollout.mask))])
            strip = trajectory_strip(image, rollout, true)
            PilImage.fromarray(strip).save(work / f"held-out-{number}.png")


def _read(path: str) -> Image:
    return open_image(Trajectory("", path))


def _same_images(work: Path, taught: Sequence[LabelledImage], settings: Settings) -> None:
    """Empty the workplace unless what an interrupted training left there was made from these very images."""
    digest = hashlib.sha256(repr((settings.policy, settings.segmenter)).encode())
    for item in taught:
        digest.update(repr(item).encode())
    stamp = work / "images.sha256"
    if not stamp.exists() or stamp.read_text() != digest.hexdigest():
        shutil.rmtree(work)
        work.mkdir()
        stamp.write_text(digest.hexdigest())
