"""What people want to see: /jobs as JSON, and a page at / with models, jobs, the learning curve and pictures."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flask import Blueprint, Response, abort, jsonify, render_template, request, send_from_directory

from .inbox import Inbox
from .jobs import Job, JobQueue
from .models import Models

__all__ = ["status_pages"]

_SHOWN = 20


def status_pages(models: Models, queue: JobQueue, inbox: Inbox, protected: bool) -> Blueprint:
    """The pages / and /jobs.

    Args:
        models: That serve.
        queue: Of the jobs.
        inbox: Of the events.
        protected: Whether callers had to give a password. If not, pictures, which show images of the project, are for
            this machine only.
    """

    def shown() -> bool:
        return protected or request.remote_addr in ("127.0.0.1", "::1")

    pages = Blueprint("status", __name__, template_folder="templates")

    @pages.get("/")
    def home() -> Response | str:
        # Browsers ask for HTML; Label Studio, which checks this address as well, for anything.
        if request.accept_mimetypes.best_match(["application/json", "text/html"]) != "text/html":
            return jsonify(status="UP", model_class="SegAgent")
        jobs = queue.jobs()
        projects = [_project(models, number, jobs) for number in models.store.projects()]
        return render_template(
            "status.html", pictures=shown(), version=models.base.model_version, projects=projects, jobs=jobs[:_SHOWN],
            waiting=len(inbox.pending_heads()),
        )  # fmt: skip

    @pages.get("/jobs")
    def list_jobs() -> Response:
        return jsonify(jobs=[describe(job) for job in queue.jobs()])

    @pages.get("/pictures/<int:project>/<version>/<name>")
    def picture(project: int, version: str, name: str) -> Response:
        folder = models.store.folder / str(project) / version
        if not shown() or not name.endswith(".png") or version.startswith("."):
            abort(404)
        return send_from_directory(folder.resolve(), name)

    return pages


def describe(job: Job) -> dict[str, Any]:
    """A job for people and programs, with its ETA in seconds (None when nobody can say)."""
    return asdict(job) | {"eta": job.eta, "result": dict(job.result)}


def _project(models: Models, number: int, jobs: list[Job]) -> dict[str, Any]:
    """What the page shows of a project: its versions oldest first, and the learning curve as an SVG polyline."""
    versions = models.store.versions(number)
    current = models.store.current(number)
    rows = [
        {
            "name": v.name, "current": v.name == current, "pictures": _pictures(models, number, v.name),
            **{key: v.report.get(key) for key in ("miou", "miou_before", "trained_on", "held_out", "promoted")},
        }
        for v in versions
    ]  # fmt: skip
    return {"number": number, "current": current or models.base.model_version, "versions": rows, "curve": _curve(rows)}


def _pictures(models: Models, project: int, name: str) -> list[str]:
    return sorted(path.name for path in (models.store.folder / str(project) / name).glob("held-out-*.png"))[:6]


def _curve(rows: list[dict[str, Any]]) -> list[tuple[float, float, dict[str, Any]]]:
    """(x, y, version) in a box of 600 by 160: mIoU over annotated tasks."""
    points = [row for row in rows if isinstance(row["miou"], (int, float)) and row["trained_on"]]
    most = max((row["trained_on"] for row in points), default=1)
    return [(40 + 540 * row["trained_on"] / most, 150 - 140 * row["miou"], row) for row in points]
