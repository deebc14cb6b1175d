from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner
from werkzeug.serving import make_server

from label_studio_segagent.cli import app as command_line
from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.server.app import create_app
from label_studio_segagent.server.doctor import Check, examine
from label_studio_segagent.server.inbox import NEWS, SUBMITTED
from label_studio_segagent.server.models import load_version, version_store
from label_studio_segagent.server.predictor import Predictor
from label_studio_segagent.training.versions import Version

LEGACY = "0123456789abcdef0123456789abcdef01234567"
PAT = "a.personal.token"


@pytest.fixture
def backend(settings: Any, predictor: Predictor) -> Iterator[str]:
    """Our real server."""
    server = make_server("127.0.0.1", 0, create_app(settings(), predictor), threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def studio(web: Any, web_answer: Any, predictor: Predictor, config: str, task: Any, backend: str) -> Any:
    """A Label Studio where everything is right: one project, our backend, its webhook, one task."""

    def known(answer: Any) -> Callable[[Any], Any]:
        return lambda request: (
            answer if request.token in (f"Token {LEGACY}", "Bearer access") else web_answer(b'{"detail": "no"}', 401)
        )

    project = {"id": 3, "label_config": config, "model_version": predictor.model_version}
    web.routes.update(
        {
            "/api/version": {"release": "1.23.2"},
            "/api/token/refresh/": lambda request: (
                {"access": "access"} if request.json["refresh"] == PAT else web_answer(b"{}", 401)
            ),
            "/api/current-user/whoami": known({"email": "me@example.com"}),
            "/api/projects/": known({"results": [project]}),
            "/api/projects/3/": known(project),
            "/api/ml": known([{"id": 1, "url": backend, "readable_state": "Connected", "state": "CO"}]),
            "/api/webhooks/": known([{"url": f"{backend}/webhook", "is_active": True}]),
            "/api/tasks": known({"tasks": [task(11)]}),
        }
    )
    web.project = project
    return web


@pytest.fixture
def diagnose(studio: Any, settings: Any, backend: str) -> Callable[..., dict[str, Check]]:
    """`diagnose(project=…, backend_url=…, **settings)`: the checks by name."""

    def run(project: int | None = None, backend_url: str = backend, **overrides: Any) -> dict[str, Check]:
        given = {"label_studio_url": studio.url, "label_studio_api_key": LEGACY, **overrides}
        checks = list(examine(settings(**given), project, backend_url))
        assert len({check.name for check in checks}) == len(checks)
        for check in checks:
            assert check.detail and (check.status == "ok" or check.remedy), check
            assert LEGACY not in check.detail + check.remedy
        return {check.name: check for check in checks}

    return run


Diagnose = Callable[..., dict[str, Check]]


def bad(checks: dict[str, Check]) -> dict[str, str]:
    return {name: check.status for name, check in checks.items() if check.status != "ok"}


@pytest.mark.parametrize("key", [LEGACY, PAT])
@pytest.mark.parametrize("project", [None, 3])
def test_nothing_is_wrong(diagnose: Diagnose, key: str, project: int | None, scene: Sample) -> None:
    checks = diagnose(project, label_studio_api_key=key)
    assert bad(checks) == {}
    assert list(checks) == [
        "models", "data folder", "this backend", "Label Studio", "API key", "project 3: labelling",
        "project 3: backend", "project 3: webhook", "project 3: model version", "project 3: images",
    ]  # fmt: skip
    assert "1.23.2" in checks["Label Studio"].detail and "me@example.com" in checks["API key"].detail
    assert checks["project 3: images"].detail == "task 11: 160x120 pixels"


def test_models_that_cannot_be_loaded(diagnose: Diagnose) -> None:
    checks = diagnose(policy="nope")
    assert bad(checks) == {"models": "problem"}
    assert "'nope'" in checks["models"].detail and "SEGAGENT_POLICY" in checks["models"].remedy


def test_a_language_model_that_does_not_answer_or_says_something_else(diagnose: Diagnose, serve_web: Any) -> None:
    chat = "/v1/chat/completions"
    endpoint = serve_web({chat: {"choices": [{"message": {"content": '{"finish": true}'}}]}})
    policy = f"openai:{endpoint.url}/v1#m"
    assert diagnose(policy=policy)["models"].status == "ok"
    endpoint.routes[chat] = {"choices": [{"message": {"content": "Hello!"}}]}
    models = diagnose(policy=policy)["models"]
    assert models.status == "warning" and "Hello!" in models.detail and "SEGAGENT_PRESET" in models.remedy
    del endpoint.routes[chat]
    models = diagnose(policy=policy)["models"]
    assert models.status == "problem" and "has no model 'm'" in models.detail


def test_a_data_folder_that_cannot_be_written(diagnose: Diagnose, tmp_path: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    checks = diagnose(data_dir=tmp_path / "file" / "data")
    assert bad(checks) == {"data folder": "problem"}
    assert "SEGAGENT_DATA_DIR" in checks["data folder"].remedy


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://[", "nonsense", "ftp://x"])
def test_a_backend_that_does_not_answer(diagnose: Diagnose, url: str) -> None:
    checks = diagnose(backend_url=url)
    assert bad(checks) == {"this backend": "warning"}
    assert url in checks["this backend"].detail and "segagent serve" in checks["this backend"].remedy


@pytest.mark.parametrize("answer", [b"<html>hello</html>", [], {}, None])
def test_something_else_on_the_backend_s_port(diagnose: Diagnose, serve_web: Any, answer: Any) -> None:
    other = serve_web({"/setup": answer} if answer is not None else {})
    checks = diagnose(backend_url=other.url)
    assert bad(checks) == {"this backend": "problem"}
    assert "is not this backend" in checks["this backend"].detail


def test_a_backend_with_another_version(diagnose: Diagnose, serve_web: Any) -> None:
    checks = diagnose(backend_url=serve_web({"/setup": {"model_version": "old-1"}}).url)
    assert bad(checks) == {"this backend": "warning"}
    assert "old-1" in checks["this backend"].detail and "restart" in checks["this backend"].remedy


def test_a_backend_that_wants_another_password(diagnose: Diagnose, serve_web: Any, web_answer: Any) -> None:
    other = serve_web({"/setup": web_answer(b"{}", 401)})
    checks = diagnose(backend_url=other.url, basic_auth_user="u", basic_auth_password="p")
    assert bad(checks) == {"this backend": "problem"}
    assert "SEGAGENT_BASIC_AUTH" in checks["this backend"].remedy
    assert other.asked[0].token.startswith("Basic ")


def test_no_url(diagnose: Diagnose) -> None:
    checks = diagnose(label_studio_url="")
    assert bad(checks) == {"Label Studio": "problem"}
    assert "LABEL_STUDIO_URL" in checks["Label Studio"].detail and len(checks) == 4


def test_label_studio_is_not_there(diagnose: Diagnose) -> None:
    checks = diagnose(label_studio_url="http://127.0.0.1:1")
    assert bad(checks) == {"Label Studio": "problem"}
    assert "http://127.0.0.1:1" in checks["Label Studio"].detail


@pytest.mark.parametrize("answer", [b"<html>other</html>", {}, [], {"version": 1}])
def test_something_else_is_there(diagnose: Diagnose, studio: Any, answer: Any) -> None:
    studio.routes["/api/version"] = answer
    checks = diagnose()
    assert bad(checks) == {"Label Studio": "problem"}
    assert "LABEL_STUDIO_URL" in checks["Label Studio"].remedy and "API key" not in checks


def test_no_key(diagnose: Diagnose) -> None:
    checks = diagnose(label_studio_api_key="")
    assert bad(checks) == {"API key": "problem"}
    assert "personal access token" in checks["API key"].remedy
    assert list(checks)[-1] == "API key"  # nothing else can be looked at


def test_a_legacy_token_that_is_off(diagnose: Diagnose) -> None:
    checks = diagnose(label_studio_api_key="f" * 40)
    assert bad(checks) == {"API key": "problem"}
    assert "401" in checks["API key"].detail and "off by default" in checks["API key"].remedy


def test_a_personal_access_token_that_was_revoked(diagnose: Diagnose) -> None:
    checks = diagnose(label_studio_api_key="another.personal.token")
    assert bad(checks) == {"API key": "problem"}
    assert "create a new personal access token" in checks["API key"].remedy
    assert "another.personal.token" not in str(checks)
    assert checks["Label Studio"].status == "ok"  # it is there, whatever it thinks of the token


def test_no_project(diagnose: Diagnose, studio: Any) -> None:
    studio.routes["/api/projects/"] = {"results": []}
    assert bad(diagnose()) == {"projects": "warning"}


def test_a_project_that_is_not_there(diagnose: Diagnose) -> None:
    checks = diagnose(99)
    assert bad(checks) == {"projects": "problem"} and "404" in checks["projects"].detail


@pytest.mark.parametrize("xml", ["", "<View/>", '<View><Image name="i" value="$image"/></View>', None])
def test_a_labelling_config_that_cannot_be_used(diagnose: Diagnose, studio: Any, xml: str | None) -> None:
    studio.project["label_config"] = xml
    checks = diagnose()
    assert bad(checks) == {"project 3: labelling": "problem"} and "project 3: images" not in checks


def test_no_backend_is_connected(diagnose: Diagnose, studio: Any) -> None:
    studio.routes["/api/ml"] = []
    checks = diagnose()
    assert bad(checks) == {"project 3: backend": "warning"}
    assert "ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false" in checks["project 3: backend"].remedy


def test_a_backend_with_an_error(diagnose: Diagnose, studio: Any) -> None:
    backend = {"url": "http://x:9090", "readable_state": "Error", "error_message": "Traceback\n  ...\nTimeout: 1 s\n"}
    studio.routes["/api/ml"] = [backend]
    studio.routes["/api/webhooks/"] = [{"url": "http://x:9090/webhook"}]
    checks = diagnose()
    assert bad(checks) == {"project 3: backend": "problem"}
    assert checks["project 3: backend"].detail == "http://x:9090 is Error: Timeout: 1 s"
    studio.routes["/api/ml"] = [backend | {"error_message": None}]
    assert "no reason given" in diagnose()["project 3: backend"].detail


def test_only_the_first_backend_is_asked(diagnose: Diagnose, studio: Any, backend: str) -> None:
    studio.routes["/api/ml"] = [{"url": backend, "readable_state": "Connected"}] * 2
    checks = diagnose()
    assert bad(checks) == {"project 3: backend": "warning"} and "only the first" in checks["project 3: backend"].detail


@pytest.mark.parametrize(
    ("fields", "status", "found"),
    [
        ({"send_payload": False}, "problem", "sends no payload"),
        ({"send_payload": True, "send_for_all_actions": True, "actions": []}, "ok", "are reported"),
        ({"send_for_all_actions": False, "actions": ["TASKS_CREATED"]}, "problem", "ANNOTATION_CREATED"),
        ({"send_for_all_actions": False, "actions": ["ANNOTATION_CREATED"]}, "problem", "ANNOTATION_UPDATED"),
        ({"send_for_all_actions": False, "actions": [*SUBMITTED]}, "warning", "ANNOTATIONS_DELETED, TASKS_DELETED"),
        ({"send_for_all_actions": False, "actions": None}, "problem", "ANNOTATION_CREATED"),
        ({"send_for_all_actions": False, "actions": [*NEWS]}, "ok", "are reported"),
    ],
)
def test_a_webhook_that_says_too_little(
    diagnose: Diagnose, studio: Any, backend: str, fields: Any, status: str, found: str
) -> None:
    studio.routes["/api/webhooks/"] = [{"url": f"{backend}/webhook", "is_active": True, **fields}]
    check = diagnose()["project 3: webhook"]
    assert (
        check.status == status and found in check.detail and ("Settings > Webhooks" in check.remedy) != (status == "ok")
    )
    # Another one that says all makes up for it.
    studio.routes["/api/webhooks/"] += [{"url": f"{backend}/webhook/", "send_payload": True}]
    assert diagnose()["project 3: webhook"].status == "ok"


@pytest.mark.parametrize("hooks", [[], [{"url": "http://else/webhook"}], "inactive"])
def test_no_webhook(diagnose: Diagnose, studio: Any, backend: str, hooks: Any) -> None:
    inactive = [{"url": f"{backend}/webhook", "is_active": False}]
    studio.routes["/api/webhooks/"] = inactive if hooks == "inactive" else hooks
    checks = diagnose()
    assert bad(checks) == {"project 3: webhook": "problem"}
    assert "SSRF_PROTECTION_ENABLED=false" in checks["project 3: webhook"].remedy


@pytest.mark.parametrize("version", ["", None, "old-1"])
def test_the_project_shows_another_version(diagnose: Diagnose, studio: Any, version: str | None) -> None:
    studio.project["model_version"] = version
    checks = diagnose()
    assert bad(checks) == {"project 3: model version": "warning"}
    assert "score column" in checks["project 3: model version"].remedy


def test_a_project_that_has_learned_shows_its_own_version(
    diagnose: Diagnose, studio: Any, settings: Any, predictor: Predictor
) -> None:
    store, agent = version_store(settings()), predictor.agent
    version = Version("learned", "embedded", (agent.policy.version, agent.segmenter.version))  # not the settings' model
    own = load_version(settings(), agent, store, 3, version).version
    store.promote(3, store.add(3, version).name)
    assert bad(diagnose()) == {"project 3: model version": "warning"}
    studio.project["model_version"] = own
    assert own != predictor.model_version and bad(diagnose()) == {}


def test_an_image_that_cannot_be_fetched(diagnose: Diagnose, studio: Any, web_answer: Any) -> None:
    studio.routes["/api/tasks"] = {"tasks": [{"id": 11, "data": {"image": "/data/upload/1/x.png"}}]}
    studio.routes["/data/upload/1/x.png"] = web_answer(b"", 404)
    checks = diagnose()
    assert bad(checks) == {"project 3: images": "problem"}
    assert "/data/upload/1/x.png" in checks["project 3: images"].detail


def test_an_image_on_a_host_that_is_not_allowed(diagnose: Diagnose, studio: Any) -> None:
    studio.routes["/api/tasks"] = {"tasks": [{"id": 11, "data": {"image": "http://images.example/x.png"}}]}
    assert "SEGAGENT_ALLOWED_IMAGE_HOSTS" in diagnose()["project 3: images"].detail


def test_a_task_without_an_image(diagnose: Diagnose, studio: Any) -> None:
    studio.routes["/api/tasks"] = {"tasks": [{"id": 11, "data": {"text": "x"}}]}
    checks = diagnose()
    assert bad(checks) == {"project 3: images": "problem"}
    assert "task 11 has no image in 'image'" in checks["project 3: images"].detail


def test_no_task(diagnose: Diagnose, studio: Any) -> None:
    studio.routes["/api/tasks"] = {"tasks": []}
    assert bad(diagnose()) == {}


@pytest.mark.parametrize("path", ["/api/ml", "/api/webhooks/", "/api/tasks"])
def test_an_api_call_that_fails_is_said_and_the_rest_is_checked(
    diagnose: Diagnose, studio: Any, web_answer: Any, path: str
) -> None:
    studio.routes[path] = web_answer(b"broken", 500)
    checks = diagnose()
    assert len(checks) == 10 and "problem" in bad(checks).values()
    assert all(f"GET {path} failed with HTTP 500" in checks[name].detail for name in bad(checks))


def test_the_command(studio: Any, backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", studio.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", LEGACY)
    monkeypatch.setenv("SEGAGENT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SEGAGENT_POLICY", "saliency")  # as the backend
    result = CliRunner().invoke(command_line, ["doctor", "--backend-url", backend, "--project", "3"])
    assert result.exit_code == 0, result.output
    assert "problem" not in result.output and "warning" not in result.output
    studio.routes["/api/webhooks/"] = []
    studio.routes["/api/tasks"] = {"tasks": [{"id": 11, "data": {"image": "file:///[/b]"}}]}
    result = CliRunner().invoke(command_line, ["doctor", "--backend-url", backend])
    assert result.exit_code == 1
    assert "project 3: webhook" in result.output and "-> start Label Studio with SSRF" in result.output
    assert "'file:///[/b]' is refused" in result.output
    assert LEGACY not in result.output
