"""`segagent refine`: better predictions from masks that tasks already carry; annotations are never edited."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image as PilImage

from ..defaults import LEAST_GAIN
from ..errors import SegAgentError
from ..hlmat.arrays import Image
from ..labelstudio.config import LabelConfig
from ..labelstudio.tasks import iterate_tasks, put_prediction
from ..pictures import result_panel, sheet
from ..processes import alone
from .jobs import Job
from .models import Models, build_predictor, need_client, project_folder, version_store
from .refiner import VERSION, Change, TaskRefiner
from .settings import Settings

__all__ = ["PICTURES", "Refined", "refine_job", "refine_project"]

PICTURES = "refined.jpg"
"""The file with pictures before and after."""
_MOST_PICTURES = 24


@dataclass(slots=True)
class Refined:
    """What a run did.

    Attributes:
        version: Of the predictions that it wrote.
        tasks: Tasks with a new prediction.
        regions: Regions looked at.
        changed: Regions that the agent could improve, as it thinks.
        gain: Sum over these of predicted IoU after less before.
        failures: (task id, reason).
    """

    version: str
    tasks: int = 0
    regions: int = 0
    changed: int = 0
    gain: float = 0.0
    failures: list[tuple[int, str]] = field(default_factory=list)


def refine_project(
    settings: Settings, project: int, out: Path, progress: Callable[[float, str], None], *, view: int | None = None,
    least_gain: float = LEAST_GAIN,
) -> Refined:  # fmt: skip
    """Let the agent refine the masks that a project's tasks carry (see `refiner.carried`).

    Where it expects a gain for at least one region, the task gets a prediction of its own version, `refine-…`, with the
    better masks in place of those regions and everything else as it was. It replaces those of earlier runs.

    Args:
        settings: Of the server.
        project: Project id.
        out: Folder for `PICTURES`, those before and after.
        progress: Told the share done, and what is being done.
        view: Id of a Data Manager tab: its tasks only.
        least_gain: Smallest rise of the policy's rating for which a region is replaced.

    Raises:
        ApiError: Label Studio does not answer.
        BusyError: Another process is refining the masks of the project.
        ConfigError: There is no Label Studio to ask, or the labelling config cannot be used.
        InputError: The project has no such tab.
    """
    client = need_client(settings)
    busy = alone(project_folder(settings, project) / ".refine.lock", f"refining the masks of project {project}")
    with busy, closing(client), closing(build_predictor(settings)) as base:
        predictor = Models(settings, base, version_store(settings)).predictor(project)
        config = LabelConfig.parse(str(client.call("GET", f"/api/projects/{project}/").get("label_config")))
        refiner = TaskRefiner(predictor.agent, base.images, config, least_gain)
        done = Refined(VERSION + predictor.agent.version.removeprefix("segagent-"))
        tasks = list(iterate_tasks(client, project, view=view))
        pictures: list[Image] = []
        for number, task in enumerate(tasks):
            try:
                one = refiner.refine(task)
                done.regions += len(one.ratings) + len(one.failures)
                done.changed += len(one.changes)
                done.gain += sum(change.rated[1] - change.rated[0] for change in one.changes)
                done.failures += [(task["id"], reason) for reason in one.failures]
                if one.changes:
                    put_prediction(client, task, one.results, one.score, done.version)
                    for old in task.get("predictions") or []:
                        if _outdated(old, done.version):
                            client.call("DELETE", f"/api/predictions/{old['id']}/")
                    done.tasks += 1
                    for change in one.changes[: max(0, (_MOST_PICTURES - len(pictures)) // 2)]:
                        pictures += _panels(task["id"], change)
            except SegAgentError as error:
                done.failures.append((task["id"], str(error)))
            progress((number + 1) / len(tasks), f"refining the masks of {len(tasks)} tasks")
        if pictures:
            out.mkdir(parents=True, exist_ok=True)
            PilImage.fromarray(sheet(pictures, 4)).save(out / PICTURES, quality=88)
    return done


def refine_job(settings: Settings, job: Job, report: Callable[[float, str], None]) -> Mapping[str, Any]:
    """The job behind the status page: `refine_project`, and its result in short."""
    out = project_folder(settings, job.project)
    (out / PICTURES).unlink(missing_ok=True)  # of an earlier one
    done = refine_project(settings, job.project, out, report)
    summary = {"version": done.version, "tasks": done.tasks, "regions": done.regions, "changed": done.changed,
               "failures": len(done.failures)}  # fmt: skip
    return {**summary, "report": PICTURES} if done.changed else summary


def _outdated(prediction: Mapping[str, Any], version: str) -> bool:
    """Whether a prediction is of an earlier refinement."""
    return str(prediction.get("model_version") or "").startswith(VERSION) and prediction["model_version"] != version


def _panels(task: int, change: Change) -> list[Image]:
    """A region before and after."""
    before, after = change.rated
    name = f"task {task}: {change.label.name}"
    return [
        result_panel(change.image, [change.before], f"{name}, before", f"predicted IoU {before:.2f}"),
        result_panel(change.image, [change.after], "after", f"predicted IoU {after:.2f}"),
    ]
