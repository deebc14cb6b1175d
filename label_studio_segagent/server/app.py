"""The ML backend that Label Studio talks to: a Flask app.

What matters most, as measured against Label Studio 1.23: one answer per task in order, {} for a task without
prediction (never null), a score and the model version of /setup in every prediction, and /health and /setup that never
wait for a prediction.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from ..errors import SegAgentError
from .inbox import count_annotations, open_inbox
from .jobs import open_queue
from .metrics import Metrics
from .models import Models, build_predictor, version_store
from .predictor import Predictor
from .prewarm import Prewarmer
from .settings import Settings, load_settings
from .status import status_pages

__all__ = ["add_auth", "create_app", "project_id"]

WEBHOOK_SECRET_HEADER = "X-SegAgent-Secret"
_BUSY_WAIT = 30.0
"""Seconds that a prediction waits for its turn before it is told that the server is busy."""

log = logging.getLogger(__name__)


class _Busy(SegAgentError):
    """Too many predictions are waiting."""


class _BadRequest(SegAgentError):
    """The request's body is not what Label Studio sends."""


class _Gate:
    """Lets a few predictions run, a few more wait, and turns the rest away.

    Where more than one may run, batches leave one place to the annotators' smart tools.
    """

    def __init__(self, running: int, waiting: int, metrics: Metrics) -> None:
        self._batches = threading.BoundedSemaphore(max(1, running - 1))
        self._slots = threading.BoundedSemaphore(running)
        self._places = threading.BoundedSemaphore(running + waiting)
        self._metrics = metrics
        self._entered, self._counting = 0, threading.Lock()

    @property
    def idle(self) -> bool:
        """Whether no prediction is running or waiting."""
        return self._entered == 0

    @contextmanager
    def enter(self, *, batch: bool) -> Iterator[None]:
        with ExitStack() as held:
            self._take(self._places, 0, held)
            self._count(1)
            held.callback(self._count, -1)
            if batch:
                self._take(self._batches, _BUSY_WAIT, held)
            self._take(self._slots, _BUSY_WAIT, held)
            with self._metrics.running.track_inprogress():
                yield

    def _take(self, semaphore: threading.BoundedSemaphore, seconds: float, held: ExitStack) -> None:
        if not semaphore.acquire(timeout=seconds):
            self._refuse()
        held.callback(semaphore.release)

    def _count(self, change: int) -> None:
        with self._counting:
            self._entered += change

    def _refuse(self) -> None:
        self._metrics.busy.inc()
        raise _Busy("busy: too many predictions are being computed or waiting; try again in a moment")


def create_app(settings: Settings | None = None, predictor: Predictor | None = None) -> Flask:
    """The WSGI app.

    Args:
        settings: From the environment by default.
        predictor: Built from the settings by default.

    Raises:
        ConfigError: A setting is wrong or a model cannot be loaded.
    """
    settings = settings or load_settings()
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_request_bytes
    metrics, inbox = Metrics(), open_inbox(settings.data_dir)
    queue = open_queue(settings.queue_url.get_secret_value(), settings.data_dir)
    predictor = predictor or build_predictor(settings)
    models = Models(settings, predictor, version_store(settings))
    metrics.model.labels(predictor.model_version).set(1)
    metrics.watch_cache(predictor.cache)
    gate = _Gate(settings.predict_concurrency, settings.predict_queue, metrics)
    # Where /predict wants a password, an open /webhook is no way to have images fetched and encoded.
    trusted = bool(settings.webhook_secret.get_secret_value()) or not settings.basic_auth_user
    prewarmer = Prewarmer(predictor, lambda: gate.idle, settings.prewarm_tasks if trusted else 0)
    app.register_blueprint(status_pages(settings, models, queue, inbox))
    add_auth(app, settings)
    _add_timing(app, metrics)
    _add_errors(app)

    @app.get("/health")
    def health() -> Response:
        return jsonify(status="UP", model_class="SegAgent")

    @app.post("/setup")
    def setup() -> Response:
        return jsonify(model_version=models.predictor(project_id((_body() or {}).get("project"))).model_version)

    @app.get("/versions")
    def versions() -> Response:
        return jsonify(versions=models.versions(project_id(request.args.get("project"))))

    @app.get("/metrics")
    def prometheus() -> Response:
        return Response(metrics.render(), mimetype="text/plain; version=0.0.4")

    @app.post("/predict")
    def predict() -> Response:
        body = _json_object()
        tasks, config = body.get("tasks"), body.get("label_config")
        if not isinstance(tasks, list) or not tasks:
            raise _BadRequest("'tasks' must be a list with at least one task")
        if not isinstance(config, str):
            raise _BadRequest("'label_config' must be the labelling config as text")
        params = body.get("params")
        context = params.get("context") if isinstance(params, dict) else None
        started = time.monotonic()
        predictor = models.predictor(project_id(body.get("project")))
        if isinstance(context, dict):
            with gate.enter(batch=False):
                answer, rollouts = predictor.interact(tasks[0], config, context)
            metrics.count_rollouts(rollouts)
            return jsonify(results=[answer])
        with gate.enter(batch=True):
            batch = predictor.predict(tasks, config, started)
        metrics.count_rollouts(batch.rollouts)
        metrics.tasks.labels("failed").inc(len(batch.failures))
        metrics.tasks.labels("unfinished").inc(len(batch.unfinished))
        metrics.tasks.labels("ok").inc(len(tasks) - len(batch.failures) - len(batch.unfinished))
        # Label Studio reads `results` only; the rest is for people and scripts.
        failures = [{"task": task, "error": reason} for task, reason in batch.failures]
        return jsonify(results=batch.results, failures=failures, unfinished=batch.unfinished)

    @app.post("/webhook")
    def webhook() -> tuple[Response, int]:
        raw = request.get_data()
        body = _json_object()
        action = str(body.get("action") or "UNKNOWN")[:100]
        project = body.get("project")
        inbox.put(action, project.get("id") if isinstance(project, dict) else None, raw, count_annotations(body))
        metrics.count_event(action)
        tasks, config = body.get("tasks"), project.get("label_config") if isinstance(project, dict) else None
        if action == "TASKS_CREATED" and isinstance(tasks, list) and isinstance(config, str):
            prewarmer.offer(tasks, config)
        return jsonify(status="stored", action=action), 201

    return app


def project_id(value: Any) -> int | None:
    """The id in "<id>.<created>", as Label Studio names projects to a backend."""
    number = str(value).partition(".")[0]
    return int(number) if number.isdecimal() and len(number) < 19 else None


def _body() -> dict[str, Any] | None:
    """The request's JSON object, if it is one."""
    try:
        body = request.get_json(force=True, silent=True)
    except RecursionError:
        body = None
    return body if isinstance(body, dict) else None


def _json_object() -> dict[str, Any]:
    body = _body()
    if body is None:
        raise _BadRequest("the body must be a JSON object")
    return body


def add_auth(app: Flask, settings: Settings) -> None:
    """Basic auth on everything but /health; annotation webhooks cannot carry it, but may carry a header."""
    user = settings.basic_auth_user.encode()
    password = settings.basic_auth_password.get_secret_value().encode()
    secret = settings.webhook_secret.get_secret_value().encode()

    def _basic() -> bool:
        given = request.authorization
        name = (given.username if given and given.type == "basic" else None) or ""
        word = (given.password if given and given.type == "basic" else None) or ""
        # Both are compared in full, so that the time does not tell which one was wrong.
        same_user = hmac.compare_digest(name.encode(), user)
        same_password = hmac.compare_digest(word.encode(), password)
        return same_user and same_password

    @app.before_request
    def _authorize() -> Response | None:
        if request.path == "/health":
            return None
        if request.path == "/webhook":
            given = request.headers.get(WEBHOOK_SECRET_HEADER, "").encode()
            # The train button calls /webhook with basic auth and without the header.
            if not secret or hmac.compare_digest(given, secret) or (user and _basic()):
                return None
            return _error(401, f"the header {WEBHOOK_SECRET_HEADER} is missing or wrong")
        if user and not _basic():
            response = _error(401, "user name or password is missing or wrong")
            response.headers["WWW-Authenticate"] = 'Basic realm="label-studio-segagent"'
            return response
        return None


def _add_timing(app: Flask, metrics: Metrics) -> None:
    @app.before_request
    def _start() -> None:
        g.started = time.perf_counter()

    @app.after_request
    def _observe(response: Response) -> Response:
        seconds = time.perf_counter() - g.get("started", time.perf_counter())
        metrics.requests.labels(request.endpoint or "unknown", str(response.status_code)).observe(seconds)
        return response


def _error(status: int, message: str) -> Response:
    response = jsonify(error=message)
    response.status_code = status
    return response


def _add_errors(app: Flask) -> None:
    """Errors as JSON with a clear message, and no traceback for the client."""
    statuses: list[tuple[type[Exception], int]] = [(_Busy, 503), (_BadRequest, 400), (SegAgentError, 422)]
    for kind, status in statuses:
        app.register_error_handler(kind, _handler(status))

    @app.errorhandler(HTTPException)
    def _http(error: HTTPException) -> Response:
        return _error(error.code or 500, error.description or error.name)

    @app.errorhandler(Exception)
    def _bug(error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.path, exc_info=error)
        return _error(500, f"internal error ({type(error).__name__}); see the server's log")


def _handler(status: int) -> Callable[[Exception], Response]:
    def handle(error: Exception) -> Response:
        log.warning("%s %s: %s", request.method, request.path, error)
        response = _error(status, str(error))
        if status == 503:
            response.headers["Retry-After"] = "5"
        return response

    return handle
