"""`segagent worker`, `jobs`, `models`, `rank`, `refine`: background work, its versions, what to label next, masks."""

from __future__ import annotations

import json
import logging
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..defaults import LEAST_GAIN
from ..errors import SegAgentError
from ..terminal import console, fail, reporting

if TYPE_CHECKING:
    from ..training.versions import VersionStore

__all__ = ["jobs", "models", "rank", "refine", "worker"]

models = typer.Typer(
    no_args_is_help=True, help="List, promote, roll back and prune the trained model versions of projects."
)
ProjectOption = Annotated[int, typer.Option(help="Label Studio project id.")]


def worker(
    parent: Annotated[int | None, typer.Option(hidden=True, help="End with this process.")] = None,
) -> None:
    """Do background jobs (training, checking and refining masks) until stopped.

    [b]segagent serve[/] starts one beside itself; run more of them on other machines with SEGAGENT_QUEUE_URL=redis://…
    and SEGAGENT_WORKER=false for the server. It may be killed at any time: its job goes on in the next worker.
    """
    from .settings import load_settings
    from .worker import run_worker

    try:
        settings = load_settings()
        form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
        logging.basicConfig(level=settings.log_level, format=form, force=True)
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log every image URL
        run_worker(settings, parent)
    except SegAgentError as error:
        fail(error)


def jobs(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    limit: Annotated[int, typer.Option(help="So many, newest first.", min=1)] = 20,
) -> None:
    """List background jobs: what waits, what runs and how far it is, what failed and why."""
    from .jobs import JobQueue
    from .settings import load_settings
    from .status import describe

    try:
        settings = load_settings()
        found = JobQueue(settings.queue_url.get_secret_value(), settings.data_dir).jobs()[:limit]
    except SegAgentError as error:
        fail(error)
    if as_json:
        typer.echo(json.dumps([describe(job) for job in found], indent=1))
        return
    table = Table("job", "project", "started by", "state", "when", "what")
    for job in found:
        what = job.reason
        if job.state == "running":
            what = f"{job.share:.0%} {job.step}" + ("" if job.eta is None else f", about {job.eta:.0f} s left")
        elif job.state == "done":
            what = ", ".join(f"{key} {_short(value)}" for key, value in job.result.items())
        moment = _ago(job.finished or job.started or job.created)
        table.add_row(f"{job.kind} {job.id}", str(job.project), escape(job.why), job.state, moment, escape(what))
    console.print(table if found else "No jobs yet.")


def rank(
    project: ProjectOption,
    sampling: Annotated[
        bool,
        typer.Option(
            "--uncertainty-sampling", help="Also let Label Studio hand out tasks in this order (changes the project)."
        ),
    ] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Take the column label_next away instead.")] = False,
) -> None:
    """Find the tasks that are worth labelling next: the agent is unsure about them, and they are unlike the others.

    Writes predictions whose score is the order, the column [b]label_next[/] and the Data Manager tab
    [b]Label next[/]. Run it again after a training.
    """
    from .ranking import clear_ranking
    from .ranking import rank as find_order
    from .settings import load_settings

    with reporting() as tell:
        settings = load_settings()
        if clear:
            console.print(f"Cleared {clear_ranking(settings, project)} tasks.")
            return
        done = find_order(settings, project, tell, sampling)
    table = Table("label next", "task", "uncertainty")
    for place, (task, unsure) in enumerate(zip(done.order[:10], done.unsure, strict=False)):
        table.add_row(str(place + 1), str(task), f"{unsure:.2f}")
    console.print(table)
    for task, reason in done.failures:
        console.print(f"[yellow]task {task}:[/] {escape(reason)}", highlight=False, soft_wrap=True)
    url = f"{settings.label_studio_url.rstrip('/')}/projects/{project}/data?tab={done.view}"
    console.print(f"{len(done.order)} tasks in order: {url}", highlight=False, soft_wrap=True)


def refine(
    project: ProjectOption,
    out: Annotated[Path, typer.Option(help="Folder for pictures before and after.")] = Path("refined"),
    view: Annotated[int | None, typer.Option(help="Id of a Data Manager tab: its tasks only.")] = None,
    gain: Annotated[
        float, typer.Option(help="Smallest expected gain in IoU for which a region is replaced.", min=0, max=1)
    ] = LEAST_GAIN,
) -> None:
    """Let the agent refine masks that tasks already carry: annotations, or else predictions of any model.

    Writes predictions of a version of their own; annotations are never edited. Regions that the agent cannot improve
    stay as they are.
    """
    from .refining import refine_project
    from .settings import load_settings

    with reporting() as tell:
        done = refine_project(load_settings(), project, out, tell, view=view, least_gain=gain)
    for task, reason in done.failures:
        console.print(f"[yellow]task {task}:[/] {escape(reason)}", highlight=False, soft_wrap=True)
    mean = done.gain / done.changed if done.changed else 0.0
    console.print(
        f"{done.changed} of {done.regions} regions changed (expected gain {mean:.2f} each); {done.tasks} tasks have a "
        f"prediction of the version {done.version}.", highlight=False, soft_wrap=True,
    )  # fmt: skip
    if done.changed:
        console.print(f"Before and after: {out / 'refined.jpg'}", highlight=False, soft_wrap=True)


@models.command("list")
def list_versions(
    project: Annotated[int | None, typer.Option(help="This project only.")] = None,
) -> None:
    """Show the versions of every project, how good they are, and which one serves."""
    store = _store()
    table = Table("project", "version", "made", "trained on", "held-out mIoU", "before", "")
    for number in store.projects() if project is None else [project]:
        try:
            current = store.current(number)
        except SegAgentError as error:
            fail(error)
        for version in store.versions(number):
            report = version.report
            table.add_row(
                str(number), version.name, f"{datetime.fromtimestamp(version.created):%Y-%m-%d %H:%M}",
                f"{report.get('trained_on', '?')} tasks", _short(report.get("miou")), _short(report.get("miou_before")),
                "[green]serving[/]" if version.name == current else "",
            )  # fmt: skip
        if current is None:
            table.add_row(str(number), "the settings' models", "", "", "", "", "[green]serving[/]")
    console.print(table)


@models.command()
def promote(
    version: Annotated[str, typer.Argument(help="A name from [b]segagent models list[/].")], project: ProjectOption
) -> None:
    """Let a version serve a project, whatever its mIoU. A running server switches by itself."""
    from .learning import switch_version
    from .settings import load_settings

    try:
        switch_version(load_settings(), project, lambda store: store.promote(project, version))
    except (SegAgentError, OSError) as error:
        fail(error)
    console.print(f"Project {project} is served by {version} from now on.")


@models.command()
def rollback(project: ProjectOption) -> None:
    """Let the version serve again that did before the current one."""
    from .learning import switch_version
    from .settings import load_settings

    try:
        name = switch_version(load_settings(), project, lambda store: store.rollback(project))
    except (SegAgentError, OSError) as error:
        fail(error)
    console.print(f"Project {project} is served by {name or 'the models of the settings'} from now on.")


@models.command()
def prune(
    project: ProjectOption,
    keep: Annotated[int, typer.Option(help="So many versions stay, the newest ones, and the serving one.", min=0)] = 5,
) -> None:
    """Delete old versions of a project; the one that serves it always stays."""
    try:
        gone = _store().prune(project, keep)
    except (SegAgentError, OSError) as error:
        fail(error)
    console.print(f"Deleted {len(gone)} versions: {', '.join(gone) or 'none'}.")


def _store() -> VersionStore:
    from .models import version_store
    from .settings import load_settings

    try:
        return version_store(load_settings())
    except SegAgentError as error:
        fail(error)
        raise


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


def _ago(moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
