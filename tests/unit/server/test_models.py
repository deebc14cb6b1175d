from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flask import Flask

from label_studio_segagent.policies.embedded import EmbeddedPolicy
from label_studio_segagent.policies.embedded_weights import save_net
from label_studio_segagent.server.models import Models, build_predictor, version_store
from label_studio_segagent.server.predictor import Predictor
from label_studio_segagent.server.settings import Settings
from label_studio_segagent.training.versions import Version, VersionStore


@pytest.fixture
def base(settings: Callable[..., Settings]) -> Predictor:
    return build_predictor(settings(policy="embedded"))


@pytest.fixture
def store(settings: Callable[..., Settings]) -> VersionStore:
    return version_store(settings())


@pytest.fixture
def models(settings: Callable[..., Settings], base: Predictor, store: VersionStore) -> Models:
    return Models(settings(policy="embedded"), base, store)


def make_version(base: Predictor, store: VersionStore, name: str, change: float, project: int = 7) -> None:
    """A version whose weights differ a little."""
    policy = base.agent.policy
    assert isinstance(policy, EmbeddedPolicy)
    work = store.workplace(project)
    with torch.no_grad():
        before = policy.net.evidence.prototypes[1].clone()
        policy.net.evidence.prototypes[1] += change
        save_net(policy.net, work / "policy.safetensors", policy.segmenter.version)
        policy.net.evidence.prototypes[1] = before
    start = (base.agent.policy.version, base.agent.segmenter.version)
    store.add(project, Version(name, f"embedded:{work}/policy.safetensors", start))
    store.promote(project, name)


def wait(good: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not good() and time.monotonic() < deadline:
        time.sleep(0.02)
    return good()


def test_projects_without_a_version_get_the_settings_models(models: Models, base: Predictor) -> None:
    assert models.predictor(None) is base and models.predictor(7) is base
    assert models.versions() == [base.model_version]


def test_a_promoted_version_serves_its_project_alone(models: Models, base: Predictor, store: VersionStore) -> None:
    make_version(base, store, "one", 0.5)
    own = models.predictor(7)
    assert own.model_version != base.model_version and own is models.predictor(7)
    assert own.agent.segmenter is base.agent.segmenter and own.cache is base.cache
    assert models.predictor(8) is base and models.versions(7) == ["one", base.model_version]


def test_the_next_version_is_loaded_behind_the_scenes(models: Models, base: Predictor, store: VersionStore) -> None:
    make_version(base, store, "one", 0.5)
    first = models.predictor(7)
    make_version(base, store, "two", 1.0)
    started = time.monotonic()
    assert models.predictor(7) is first and time.monotonic() - started < 0.05  # nobody waits
    assert wait(lambda: models.predictor(7) is not first)
    second = models.predictor(7)
    store.rollback(7)
    assert wait(lambda: models.predictor(7).model_version == first.model_version)
    assert second.model_version != first.model_version
    store.promote(7, None)
    assert wait(lambda: models.predictor(7) is base)


def test_what_cannot_be_used_is_not(
    models: Models, base: Predictor, store: VersionStore, settings: Callable[..., Settings]
) -> None:
    make_version(base, store, "one", 0.5)
    Path(store.policy_of(7, store.versions(7)[0]).partition(":")[2]).write_bytes(b"damaged")
    assert models.predictor(7) is base
    make_version(base, store, "other", 0.5, project=9)
    [version] = store.versions(9)
    store.workplace(9)
    store.add(9, Version("foreign", version.policy, ("another", "model")))
    store.promote(9, "foreign")
    assert models.predictor(9) is base


def test_label_studio_sees_the_version_of_each_project(
    settings: Callable[..., Settings], base: Predictor, store: VersionStore, make_app: Callable[..., Flask]
) -> None:
    make_version(base, store, "one", 0.5)
    client = make_app(base, policy="embedded").test_client()
    of_7, of_8, of_none = (
        client.post("/setup", json=body).get_json()["model_version"]
        for body in ({"project": "7.1795382579"}, {"project": "8.1795382579"}, {})
    )
    assert of_8 == of_none == base.model_version != of_7
    assert client.get("/versions").get_json()["versions"] == ["one", base.model_version]
    assert client.get("/versions?project=8").get_json()["versions"] == [base.model_version]
    for odd in ("", "x", "-1.5", "9" * 30, "²", None, 7, ["7"]):
        assert client.post("/setup", json={"project": odd}).status_code == 200


def test_the_page_lists_versions_for_browsers_only(
    base: Predictor, store: VersionStore, make_app: Callable[..., Flask]
) -> None:
    make_version(base, store, "one", 0.5)
    client = make_app(base, policy="embedded").test_client()
    assert client.get("/").get_json() == {"status": "UP", "model_class": "SegAgent"}
    page = client.get("/", headers={"Accept": "text/html"}).get_data(as_text=True)
    assert "Project 7" in page and "one" in page and client.get("/jobs").get_json() == {"jobs": []}
    assert client.get("/pictures/7/one/policy.safetensors").status_code == 404
    (store.folder / "7" / "one" / "held-out-0.png").write_bytes(b"png")
    with client.get("/pictures/7/one/held-out-0.png") as answer:
        assert answer.get_data() == b"png"
    away = {"REMOTE_ADDR": "10.0.0.9"}  # without a password, images of a project are for this machine only
    assert client.get("/pictures/7/one/held-out-0.png", environ_base=away).status_code == 404
    assert client.get("/pictures/7/.training/x.png").status_code == 404
    assert client.get("/pictures/7/..%2f..%2fx/y.png").status_code == 404
