"""What people want to see: /jobs as JSON, and a page at / with models, jobs, the learning curve and pictures.

Jobs can be started there, too.
"""

from __future__ import annotations

import ipaddress
import time
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, abort, jsonify, redirect, render_template, request, send_from_directory
from werkzeug.wrappers import Response as Answer

from .checking import REPORT
from .inbox import BARE_REMEDY, SUBMITTED, Inbox
from .jobs import Job, JobQueue
from .models import Models, project_folder
from .refining import PICTURES
from .settings import Settings

__all__ = ["status_pages"]

_SHOWN = 20
_PROJECTS = 100
_BARE_SHOWN = 24 * 3600.0
"""Seconds that the page warns of webhooks that say nothing."""
_KINDS = {"qc": "Check the masks", "refine": "Refine the masks"}
"""Jobs that the page starts, and what is on their buttons."""


def status_pages(settings: Settings, models: Models, queue: JobQueue, inbox: Inbox) -> Blueprint:
    """The pages / and /jobs.

    Args:
        settings: Of the server. Without a password, pictures and reports, which show images of a project, and the
            buttons are for this machine only.
        models: That serve.
        queue: Of the jobs.
        inbox: Of the events.
    """

    def shown() -> bool:
        return bool(settings.basic_auth_user) or (request.remote_addr in ("127.0.0.1", "::1") and _named_here())

    def projects() -> list[int]:
        own = models.store.projects()
        known = {*inbox.projects(), *models.seen, *(job.project for job in queue.jobs())}
        return sorted([*own, *sorted(known - set(own))][:_PROJECTS])

    pages = Blueprint("status", __name__, template_folder="templates")

    @pages.get("/")
    def home() -> Response | str:
        # Browsers ask for HTML; Label Studio, which checks this address as well, for anything.
        if request.accept_mimetypes.best_match(["application/json", "text/html"]) != "text/html":
            return jsonify(status="UP", model_class="SegAgent")
        return render_template(
            "status.html", pictures=shown(), version=models.base.model_version,
            projects=[_project(models, number) for number in projects()], jobs=queue.jobs()[:_SHOWN], kinds=_KINDS,
            waiting=len(inbox.pending_heads()), bare=inbox.bare(time.time() - _BARE_SHOWN), remedy=BARE_REMEDY,
        )  # fmt: skip

    @pages.get("/jobs")
    def list_jobs() -> Response:
        return jsonify(jobs=[describe(job) for job in queue.jobs()])

    @pages.post("/jobs")
    def start_job() -> Answer:
        if not shown():
            abort(403, "without SEGAGENT_BASIC_AUTH_USER, jobs are started on this machine only, at http://localhost")
        # Browsers say where a form was, and a foreign page cannot make them lie: no other site presses our buttons.
        if urlsplit(request.headers.get("Origin", "")).netloc != request.host:
            abort(403, "the header Origin must name this server: jobs are started from its own page")
        kind, number = request.form.get("kind", ""), request.form.get("project", "")
        if kind not in _KINDS or not number.isdecimal() or len(number) > 18:
            abort(400, f"'kind' must be one of {', '.join(_KINDS)}, and 'project' the id of a project")
        project = int(number)
        if not any(job.open and (job.kind, job.project) == (kind, project) for job in queue.jobs()):
            newest, _ = inbox.latest(SUBMITTED).get(project, (0, 0.0))
            queue.enqueue(kind, project, "the status page", upto=newest)
        return redirect(".", 303)

    @pages.get("/reports/<int:project>/<name>")
    def report(project: int, name: str) -> Response:
        if not shown() or name not in (REPORT, PICTURES):
            abort(404)
        return send_from_directory(project_folder(settings, project).resolve(), name)

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


def _named_here() -> bool:
    """Whether the browser knows this server by an address or as localhost.

    A foreign page can give this machine's address a name of its own, and would then be taken for one of ours.
    """
    try:
        name = urlsplit(f"//{request.host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _project(models: Models, number: int) -> dict[str, Any]:
    """What the page shows of a project: its versions oldest first, and the learning curve as an SVG polyline."""
    versions = models.store.versions(number)
    current = models.serving(number)
    rows = [
        {
            "name": v.name, "current": v.name == current, "pictures": _pictures(models, number, v.name),
            "promoted": v.report.get("promoted") is True,
            **{key: _number(v.report.get(key)) for key in ("miou", "miou_before", "trained_on", "held_out")},
        }
        for v in versions
    ]  # fmt: skip
    return {"number": number, "current": current or models.base.model_version, "versions": rows, "curve": _curve(rows)}


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) else None


def _pictures(models: Models, project: int, name: str) -> list[str]:
    return sorted(path.name for path in (models.store.folder / str(project) / name).glob("held-out-*.png"))[:6]


def _curve(rows: list[dict[str, Any]]) -> list[tuple[float, float, dict[str, Any]]]:
    """(x, y, version) in a box of 600 by 160: mIoU over annotated tasks."""
    points = [row for row in rows if row["miou"] is not None and row["trained_on"]]
    most = max((row["trained_on"] for row in points), default=1)
    return [(40 + 540 * row["trained_on"] / most, 150 - 140 * row["miou"], row) for row in points]
