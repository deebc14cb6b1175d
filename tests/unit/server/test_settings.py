from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from label_studio_segagent import cli
from label_studio_segagent.cli import app
from label_studio_segagent.errors import ConfigError
from label_studio_segagent.server.settings import Settings, load_settings

Env = pytest.MonkeyPatch
SECRETS = {
    "LABEL_STUDIO_API_KEY": "key-aaa",
    "SEGAGENT_BASIC_AUTH_PASSWORD": "word-bbb",
    "SEGAGENT_WEBHOOK_SECRET": "hush-ccc",
    "SEGAGENT_OPENAI_API_KEY": "sk-ddd",
}


def test_defaults_need_no_environment() -> None:
    settings = load_settings()
    assert (settings.policy, settings.segmenter, settings.port) == ("embedded", "embedded", 9090)
    assert settings.label_studio_url == "" and not settings.label_studio_api_key
    assert settings.data_dir.is_absolute() and "~" not in str(settings.data_dir)


@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - {"allowed_image_hosts"}))
def test_every_setting_is_an_environment_variable(name: str, monkeypatch: Env) -> None:
    values = {
        "label_studio_url": "https://studio.example/x",
        "data_dir": "/somewhere/else",
        "log_level": "ERROR",
        "host": "127.0.0.9",
        "policy": "oracle:x",
        "segmenter": "other",
        "stop_iou": "0.5",
        "predict_seconds": "1.5",
        "model_pixels": "5000",
        "plain_image": "True",
        "trust_remote_code": "True",
        "openai_timeout": "1.5",
        "train_quiet": "1.5",
        "train_seconds": "1.5",
        "qc_issues": "duplicate=0.5",
        "qc_on_submit": "True",
        "refine_masks": "True",
        "worker": "False",
    }
    value = values.get(name) or ("17" if isinstance(getattr(load_settings(), name), int) else "word")
    if name == "max_request_bytes":
        value = "2048"
    monkeypatch.setenv("SEGAGENT_BASIC_AUTH_USER", "u")
    monkeypatch.setenv("SEGAGENT_BASIC_AUTH_PASSWORD", "p")
    monkeypatch.setenv("SEGAGENT_THREADS", "100")
    monkeypatch.setenv(Settings.variable(name), value)
    found = getattr(load_settings(), name)
    assert str(found.get_secret_value() if hasattr(found, "get_secret_value") else found) == value


@pytest.mark.parametrize("name", ["LABEL_STUDIO_URL", "LABEL_STUDIO_HOST"])
def test_names_of_the_address(name: str, monkeypatch: Env) -> None:
    monkeypatch.setenv(name, "http://studio:8080")
    assert load_settings().label_studio_url == "http://studio:8080"


@pytest.mark.parametrize("name", ["LABEL_STUDIO_API_KEY", "LABEL_STUDIO_ACCESS_TOKEN"])
def test_names_of_the_key(name: str, monkeypatch: Env) -> None:
    monkeypatch.setenv(name, "key-aaa")
    assert load_settings().label_studio_api_key.get_secret_value() == "key-aaa"


def test_names_of_the_policys_key(monkeypatch: Env) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-general")
    assert load_settings().openai_api_key.get_secret_value() == "sk-general"
    monkeypatch.setenv("SEGAGENT_OPENAI_API_KEY", "sk-ours")
    assert load_settings().openai_api_key.get_secret_value() == "sk-ours"


def test_the_first_name_wins(monkeypatch: Env) -> None:
    monkeypatch.setenv("LABEL_STUDIO_HOST", "http://second")
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://first")
    assert load_settings().label_studio_url == "http://first"


def test_arguments_win_over_the_environment_and_none_means_not_given(monkeypatch: Env) -> None:
    monkeypatch.setenv("SEGAGENT_PORT", "1234")
    assert load_settings(port=4321).port == 4321
    assert load_settings(port=None).port == 1234


def test_the_env_file(monkeypatch: Env, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SEGAGENT_PORT=1111\nLABEL_STUDIO_URL=http://file\nUNRELATED=x\nSEGAGENT_HOST=h\n")
    monkeypatch.setenv("SEGAGENT_HOST", "from-environment")
    settings = load_settings()
    assert (settings.port, settings.label_studio_url, settings.host) == (1111, "http://file", "from-environment")


def test_an_env_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"SEGAGENT_HOST=\xff\xfe")
    with pytest.raises(ConfigError, match=r"\.env is not UTF-8"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "hosts"),
    [("", ()), ("a.example", ("a.example",)), (" a.example , b:8443,, ", ("a.example", "b:8443"))],
)
def test_allowed_hosts(text: str, hosts: tuple[str, ...], monkeypatch: Env) -> None:
    monkeypatch.setenv("SEGAGENT_ALLOWED_IMAGE_HOSTS", text)
    assert load_settings().allowed_image_hosts == hosts


@pytest.mark.parametrize(
    ("variable", "value", "must"),
    [
        ("SEGAGENT_ALLOWED_IMAGE_HOSTS", "a.example,https://b.example/images", "'https://b.example/images' is no host"),
        ("SEGAGENT_PORT", "nine", "valid integer"),
        ("SEGAGENT_PORT", "0", "greater than or equal to 1"),
        ("SEGAGENT_PORT", "70000", "less than or equal to 65535"),
        ("SEGAGENT_MAX_CLICKS", "-1", "greater than or equal to 0"),
        ("SEGAGENT_STOP_IOU", "1.5", "less than or equal to 1"),
        ("SEGAGENT_STOP_IOU", "nan", "greater than 0|finite|less than"),
        ("SEGAGENT_PREDICT_SECONDS", "0", "greater than 0"),
        ("SEGAGENT_PREDICT_CONCURRENCY", "0", "greater than or equal to 1"),
        ("SEGAGENT_MAX_PIXELS", "500000000", "less than or equal to 178000000"),
        ("SEGAGENT_LOG_LEVEL", "LOUD", "DEBUG, INFO, WARNING or ERROR"),
        ("LABEL_STUDIO_URL", "localhost:8080", "must start with http"),
        ("LABEL_STUDIO_URL", "http://", "must start with http"),
    ],
)
def test_a_wrong_value_names_variable_value_and_rule(variable: str, value: str, must: str, monkeypatch: Env) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"{variable} is '{value}': .*({must})"):
        load_settings()


def test_a_wrong_argument_is_named_by_its_variable() -> None:
    with pytest.raises(ConfigError, match="SEGAGENT_PORT is '0'"):
        load_settings(port=0)


def test_all_wrong_values_at_once(monkeypatch: Env) -> None:
    monkeypatch.setenv("SEGAGENT_PORT", "x")
    monkeypatch.setenv("SEGAGENT_THREADS", "y")
    with pytest.raises(ConfigError, match="SEGAGENT_PORT is 'x'.*SEGAGENT_THREADS is 'y'"):
        load_settings()


def test_a_password_in_the_url_is_refused_and_not_repeated(monkeypatch: Env) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://user:swordfish@studio:8080")
    with pytest.raises(ConfigError, match="LABEL_STUDIO_URL.*must not hold a user name") as caught:
        load_settings()
    assert "swordfish" not in str(caught.value)


@pytest.mark.parametrize("name", ["SEGAGENT_BASIC_AUTH_USER", "SEGAGENT_BASIC_AUTH_PASSWORD"])
def test_half_of_basic_auth_would_be_none(name: str, monkeypatch: Env) -> None:
    monkeypatch.setenv(name, "swordfish")
    with pytest.raises(ConfigError, match="SEGAGENT_BASIC_AUTH_USER and SEGAGENT_BASIC_AUTH_PASSWORD") as caught:
        load_settings()
    assert "swordfish" not in str(caught.value)


def test_predictions_may_not_take_every_thread(monkeypatch: Env) -> None:
    monkeypatch.setenv("SEGAGENT_THREADS", "10")
    with pytest.raises(ConfigError, match="SEGAGENT_THREADS is 10.*= 10 of them; give it at least 12"):
        load_settings()
    monkeypatch.setenv("SEGAGENT_PREDICT_QUEUE", "4")
    assert load_settings().threads == 10


# segagent config


@pytest.fixture
def secrets(monkeypatch: Env) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SEGAGENT_BASIC_AUTH_USER", "studio")


@pytest.mark.parametrize("arguments", [["config"], ["config", "--json"]])
def test_secrets_are_not_shown(arguments: list[str], secrets: None) -> None:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
    assert result.exit_code == 0
    for value in SECRETS.values():
        assert value not in result.output
    for text in (repr(load_settings()), str(load_settings()), str(load_settings().model_dump())):
        assert not any(value in text for value in SECRETS.values())


def test_the_table_shows_every_variable_with_its_value(monkeypatch: Env) -> None:
    monkeypatch.setenv("SEGAGENT_POLICY", "a[b]c")  # not to be taken for markup
    monkeypatch.setattr(cli.console, "width", 300)
    result = CliRunner().invoke(app, ["config"])
    for name in Settings.model_fields:
        assert Settings.variable(name) in result.output
    assert "a[b]c" in result.output


def test_json(secrets: None, monkeypatch: Env) -> None:
    monkeypatch.setenv("SEGAGENT_ALLOWED_IMAGE_HOSTS", "a,b")
    shown = json.loads(CliRunner().invoke(app, ["config", "--json"]).output)
    assert set(shown) == {Settings.variable(name) for name in Settings.model_fields}
    assert shown["SEGAGENT_PORT"] == 9090 and shown["SEGAGENT_ALLOWED_IMAGE_HOSTS"] == ["a", "b"]
    assert shown["SEGAGENT_WEBHOOK_SECRET"] == "**********" and shown["SEGAGENT_BASIC_AUTH_USER"] == "studio"


def test_a_wrong_setting_is_said(monkeypatch: Env) -> None:
    monkeypatch.setenv("SEGAGENT_PORT", "[/b]")
    result = CliRunner().invoke(app, ["config"])
    assert result.exit_code == 1 and "SEGAGENT_PORT is '[/b]'" in result.output
