"""`segagent doctor`: looks at everything between Label Studio and this backend that is known to go wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import numpy as np

from ..errors import ApiError, ConfigError, SegAgentError
from ..labelstudio.client import LabelStudioClient, token_kind
from ..labelstudio.config import LabelConfig
from ..policies import Observation
from .inbox import BARE_REMEDY, NEWS, SUBMITTED
from .models import Models, build_predictor, version_store
from .predictor import Predictor
from .settings import Settings

__all__ = ["Check", "examine"]

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at and what to do.

    Attributes:
        name: What was looked at.
        status: "ok", "warning" (works, but) or "problem".
        detail: What was found.
        remedy: What to do, or "".
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


def examine(settings: Settings, project: int | None = None, backend_url: str | None = None) -> Iterator[Check]:
    """Check one thing after the other; what depends on something broken is left out.

    Args:
        settings: What the server runs with.
        project: Look at this project only; at all of them by default.
        backend_url: Where this backend answers as seen from here; `http://127.0.0.1:<port>` by default.
    """
    with ExitStack() as open_things:
        yield from _examine(settings, project, backend_url or f"http://127.0.0.1:{settings.port}", open_things)


def _examine(settings: Settings, project: int | None, backend_url: str, open_things: ExitStack) -> Iterator[Check]:
    predictor: Predictor | None = None
    try:
        predictor = open_things.enter_context(closing(build_predictor(settings)))
        yield _models(settings, predictor)
    except SegAgentError as error:
        yield Check(
            "models", "problem", str(error), "set SEGAGENT_POLICY and SEGAGENT_SEGMENTER; see `segagent config`"
        )
    yield _data_dir(settings)
    yield _backend(settings, backend_url, predictor)
    if not settings.label_studio_url:
        yield Check(
            "Label Studio",
            "problem",
            "LABEL_STUDIO_URL is not set",
            "set it to Label Studio's address as seen from this machine; images are fetched from there",
        )
        return
    key = settings.label_studio_api_key.get_secret_value()
    try:
        client = open_things.enter_context(closing(LabelStudioClient(settings.label_studio_url, key)))
        with closing(LabelStudioClient(client.url)) as anybody:  # the key is looked at next
            version = anybody.call("GET", "/api/version")
    except (ApiError, ConfigError) as error:
        yield Check("Label Studio", "problem", str(error), "start Label Studio or correct LABEL_STUDIO_URL")
        return
    release = version.get("release") if isinstance(version, dict) else None
    if not release:
        detail = f"what answers at {client.url} is not Label Studio: /api/version says {str(version)[:80]}"
        yield Check("Label Studio", "problem", detail, "correct LABEL_STUDIO_URL")
        return
    yield Check("Label Studio", "ok", f"{client.url}, release {release}")
    token = _token(client, key)
    yield token
    if token.status != "problem":
        models = None if predictor is None else Models(settings, predictor, version_store(settings))
        yield from _projects(client, project, models)


def _models(settings: Settings, predictor: Predictor) -> Check:
    """Whether the policy answers: a language model may be out of reach or write something else than asked for."""
    grey = np.full((64, 64, 3), 128, np.uint8)
    decision = predictor.agent.policy.act([Observation(grey, np.zeros((64, 64), bool), "object")])[0]
    if decision.action is None:
        detail = f"the policy {settings.policy} answers {decision.text[:200]!r}, which is no click"
        return Check(
            "models", "warning", detail, "is SEGAGENT_PRESET right for this model, and can it point at things?"
        )
    return Check("models", "ok", f"{settings.policy} + {settings.segmenter}, version {predictor.model_version}")


def _data_dir(settings: Settings) -> Check:
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.data_dir):
            pass
    except OSError as error:
        return Check(
            "data folder", "problem", f"{settings.data_dir}: {error}", "make it writable, or set SEGAGENT_DATA_DIR"
        )
    return Check("data folder", "ok", str(settings.data_dir))


def _backend(settings: Settings, url: str, predictor: Predictor | None) -> Check:
    auth = None
    if settings.basic_auth_user:
        auth = (settings.basic_auth_user, settings.basic_auth_password.get_secret_value())
    try:
        response = httpx.post(f"{url.rstrip('/')}/setup", json={}, auth=auth, timeout=3)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        detail = f"no answer at {url} ({type(error).__name__})"
        return Check("this backend", "warning", detail, "start it with `segagent serve`, or say where: --backend-url")
    if response.status_code == 401:
        return Check(
            "this backend", "problem", f"{url} refuses our user name and password", "check SEGAGENT_BASIC_AUTH_*"
        )
    try:
        body = response.json() if response.status_code == 200 else None
    except ValueError:
        body = None
    running = body.get("model_version") if isinstance(body, dict) else None
    if running is None:
        detail = f"what answers at {url} (HTTP {response.status_code}) is not this backend"
        return Check("this backend", "problem", detail, "say where it is: SEGAGENT_PORT or --backend-url")
    if predictor is not None and running != predictor.model_version:
        detail = f"{url} runs version {running}, these settings give {predictor.model_version}"
        return Check("this backend", "warning", detail, "restart the server, or run the doctor with its environment")
    return Check("this backend", "ok", f"{url} runs version {running}")


def _token(client: LabelStudioClient, token: str) -> Check:
    kind = token_kind(token)
    if kind == "none":
        return Check(
            "API key",
            "problem",
            "LABEL_STUDIO_API_KEY is not set",
            "create a personal access token in Label Studio (Account & Settings) and set it",
        )
    try:
        user = client.call("GET", "/api/current-user/whoami")
    except ApiError as error:
        if kind == "legacy":
            return Check(
                "API key",
                "problem",
                f"the legacy token is refused (HTTP {error.status})",
                "legacy tokens are off by default in Label Studio 1.23: use a personal access token, or turn them on "
                "under Organization > API Token Settings",
            )
        return Check("API key", "problem", str(error), "create a new personal access token")
    return Check("API key", "ok", f"{kind} token of {user.get('email', '?')}")


def _projects(client: LabelStudioClient, only: int | None, models: Models | None) -> Iterator[Check]:
    try:
        if only is None:
            projects = client.call("GET", "/api/projects/", page_size=100)["results"]
        else:
            projects = [client.call("GET", f"/api/projects/{only}/")]
    except ApiError as error:
        yield Check("projects", "problem", str(error), "does the token's user see this project?")
        return
    if not projects:
        yield Check(
            "projects", "warning", "there is none yet", "create one and connect this backend under Settings > Model"
        )
    for project in projects:
        # A project that has learned is served by a version of its own.
        yield from _project(client, project, None if models is None else models.predictor(int(project["id"])))


def _project(client: LabelStudioClient, project: dict[str, Any], predictor: Predictor | None) -> Iterator[Check]:
    number = project["id"]
    name = f"project {number}"
    try:
        config = LabelConfig.parse(project.get("label_config") or "")
    except ConfigError as error:
        yield Check(f"{name}: labelling", "problem", str(error), "change the labelling interface")
        return
    outputs = [(c.type, label.name) for tag in config.images for c, label in config.outputs(tag.name, {})]
    yield Check(
        f"{name}: labelling",
        "ok",
        ", ".join(f"{label} -> {kind}" for kind, label in outputs[:8]) or "labels come from the tasks",
    )
    see = "does the token's user see the settings of this project?"
    checks: list[tuple[str, Callable[[], Check], str]] = [
        ("backend", lambda: _connection(client, number, name), see),
        ("webhook", lambda: _webhook(client, number, name), see),
        ("model version", lambda: _version(client, number, name, project, predictor), see),
        (
            "images",
            lambda: _image(client, number, name, config, predictor),
            "tasks like this one get no prediction: correct their image URLs, the token's access, or the setting named",
        ),
    ]
    for title, check, remedy in checks:
        try:
            yield check()
        except SegAgentError as error:
            yield Check(f"{name}: {title}", "problem", str(error), remedy)


def _backends(client: LabelStudioClient, project: int) -> list[dict[str, Any]]:
    return list(client.call("GET", "/api/ml", project=project))


def _connection(client: LabelStudioClient, project: int, name: str) -> Check:
    backends = _backends(client, project)
    if not backends:
        return Check(
            f"{name}: backend",
            "warning",
            "no ML backend is connected",
            "Settings > Model > Connect Model. If Label Studio answers 403 'URL resolves to a reserved network "
            "address', start it with ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false",
        )
    first = backends[0]
    state = first.get("readable_state", first.get("state"))
    if state != "Connected":
        reason = str(first.get("error_message") or "").strip().splitlines()
        detail = f"{first['url']} is {state}: {reason[-1][:200] if reason else 'no reason given'}"
        return Check(f"{name}: backend", "problem", detail, "is the address right as seen from Label Studio's machine?")
    if len(backends) > 1:
        detail = f"{len(backends)} backends; only the first ({first['url']}) is asked for pre-annotations"
        return Check(f"{name}: backend", "warning", detail, "remove the ones that are not wanted")
    return Check(f"{name}: backend", "ok", f"{first['url']} is connected")


def _webhook(client: LabelStudioClient, project: int, name: str) -> Check:
    backends, hooks = _backends(client, project), client.call("GET", "/api/webhooks/", project=project)
    if not backends:
        return Check(f"{name}: webhook", "ok", "none needed without a backend")
    wanted = {f"{backend['url'].rstrip('/')}/webhook" for backend in backends}
    active = [h for h in hooks if h.get("url", "").rstrip("/") in wanted and h.get("is_active", True)]
    if active:
        return _reported(f"{name}: webhook", active)
    return Check(
        f"{name}: webhook",
        "problem",
        "Label Studio does not report annotations to the backend: there is no active webhook for it",
        "start Label Studio with SSRF_PROTECTION_ENABLED=false (as well as ML_BLOCK_LOCAL_IP=false), then remove the "
        "backend and connect it again",
    )


def _reported(title: str, hooks: list[dict[str, Any]]) -> Check:
    """Whether the backend's webhooks tell it of all that is to be learned from and checked."""
    full = [hook for hook in hooks if hook.get("send_payload", True)]
    if not full:
        detail = "the webhook of the backend sends no payload: it does not say which annotation was submitted"
        return Check(title, "problem", detail, BARE_REMEDY)
    sent = {action for hook in full for action in hook.get("actions") or ()}
    missing = [] if any(h.get("send_for_all_actions", True) for h in full) else [a for a in NEWS if a not in sent]
    if not missing:
        return Check(title, "ok", "annotations are reported to the backend")
    return Check(
        title,
        "problem" if set(missing) & set(SUBMITTED) else "warning",
        f"the webhook of the backend is not sent for {', '.join(missing)}",
        "in Label Studio, under Settings > Webhooks, let it be sent for all actions",
    )


def _version(
    client: LabelStudioClient, project: int, name: str, fields: dict[str, Any], predictor: Predictor | None
) -> Check:
    shown = fields.get("model_version") or ""
    if predictor is None or shown == predictor.model_version:
        return Check(f"{name}: model version", "ok", f"the project shows predictions of {shown!r}")
    return Check(
        f"{name}: model version",
        "warning",
        f"the project shows predictions of {shown!r}, the backend makes {predictor.model_version!r}",
        "the score column stays empty until both are equal: choose the version under Settings > Annotation > Live "
        "predictions, or give the backend the version as its title when connecting it",
    )


def _image(
    client: LabelStudioClient, project: int, name: str, config: LabelConfig, predictor: Predictor | None
) -> Check:
    tasks = client.call("GET", "/api/tasks", project=project, page_size=1, fields="all").get("tasks", [])
    if not tasks or predictor is None:
        return Check(f"{name}: images", "ok", "no task to try")
    for tag in config.for_task(tasks[0]["data"]).images:
        for _, url in tag.urls(tasks[0]["data"]):
            image = predictor.images.load(url, tasks[0]["id"])
            return Check(f"{name}: images", "ok", f"task {tasks[0]['id']}: {image.shape[1]}x{image.shape[0]} pixels")
    fields = ", ".join(repr(tag.field) for tag in config.images)
    return Check(f"{name}: images", "problem", f"task {tasks[0]['id']} has no image in {fields}", "check the import")
