from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from label_studio_segagent.errors import ConfigError, InputError
from label_studio_segagent.training.versions import Version, VersionStore


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return VersionStore(tmp_path / "models")


def make(store: VersionStore, name: str, created: float = 0.0, project: int = 3) -> Version:
    work = store.workplace(project)
    (work / "policy.safetensors").write_text(name)
    return store.add(project, Version(name, f"embedded:{work}/policy.safetensors", ("p", "s"), created, {"miou": 0.5}))


def test_a_version_is_made_promoted_and_rolled_back(store: VersionStore) -> None:
    assert store.projects() == [] and store.versions(3) == [] and store.current(3) is None and store.stamp(3) == 0
    first, second = make(store, "a", 1.0), make(store, "b", 2.0)
    assert store.projects() == [3] and [v.name for v in store.versions(3)] == ["a", "b"]
    policy = store.policy_of(3, first)
    assert policy.startswith("embedded:") and Path(policy.partition(":")[2]).read_text() == "a"
    assert second.report == {"miou": 0.5} and second.start == ("p", "s") and store.current(3) is None
    store.promote(3, "a")
    stamp = store.stamp(3)
    store.promote(3, "b")
    assert store.current(3) == "b" and store.stamp(3) != stamp > 0
    assert store.rollback(3) == "a" and store.current(3) == "a"
    assert store.rollback(3) is None and store.current(3) is None
    with pytest.raises(InputError, match="no other version"):
        store.rollback(3)


def test_the_settings_model_can_be_made_current_again(store: VersionStore) -> None:
    make(store, "a")
    store.promote(3, "a")
    store.promote(3, None)
    assert store.current(3) is None and store.rollback(3) == "a"


def test_pruning_keeps_the_newest_and_the_serving_one(store: VersionStore) -> None:
    for number, name in enumerate("abcd"):
        make(store, name, float(number + 1))
        store.promote(3, name)
    store.promote(3, "a")
    assert store.prune(3, 1) == ["b", "c"] and [v.name for v in store.versions(3)] == ["a", "d"]
    assert store.rollback(3) == "d" and store.rollback(3) == "a"  # b and c are gone: passed over


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".training", "x" * 101])
def test_names_stay_inside_the_folder(store: VersionStore, name: str) -> None:
    make(store, "a")
    with pytest.raises(InputError, match="version"):
        store.promote(3, name)
    store.workplace(3)
    with pytest.raises(InputError, match="name"):
        store.add(3, Version(name, "embedded", ("p", "s")))


def test_half_a_version_is_none(store: VersionStore) -> None:
    make(store, "a")
    broken = store.folder / "3" / "b"
    broken.mkdir()
    assert [v.name for v in store.versions(3)] == ["a"]
    (broken / "version.json").write_text('{"policy": "embed')
    assert [v.name for v in store.versions(3)] == ["a"]
    (store.folder / "3" / "current.json").write_text("{")
    with pytest.raises(ConfigError, match="delete it"):
        store.current(3)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"7", b'{"history": 5}', b'{"history": "abc"}', b"\xff", b"[" * 99_999]
)
def test_a_damaged_current_file_is_named(store: VersionStore, content: bytes) -> None:
    make(store, "a")
    (store.folder / "3" / "current.json").write_bytes(content)
    for ask in (lambda: store.current(3), lambda: store.promote(3, "a"), lambda: store.rollback(3)):
        with pytest.raises(ConfigError, match=r"3/current.json cannot be read.*delete it"):
            ask()
    with pytest.raises(ConfigError, match="delete it"):
        store.prune(3, 0)
    assert [v.name for v in store.versions(3)] == ["a"]


def test_what_is_being_made_is_no_version(store: VersionStore) -> None:
    make(store, "a", 1.0)
    # Killed between the last file and the renaming: all is there, but in the workplace.
    work = store.workplace(3)
    (work / "version.json").write_text((store.folder / "3" / "a" / "version.json").read_text())
    assert [v.name for v in store.versions(3)] == ["a"]
    store.promote(3, "a")
    assert store.prune(3, 0) == [] and (work / "version.json").exists()


@pytest.mark.parametrize("odd", [{"created": "x"}, {"created": None}, {"report": [1]}, {"report": "x"}, {"start": []}])
def test_a_damaged_version_is_none(store: VersionStore, odd: dict[str, object]) -> None:
    make(store, "a", 1.0)
    make(store, "b", 2.0)
    path = store.folder / "3" / "b" / "version.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **odd}))
    assert [v.name for v in store.versions(3)] == ["a"]


def test_a_version_disappears_as_a_whole(store: VersionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    make(store, "a", 1.0)
    make(store, "b", 2.0)
    monkeypatch.setattr("shutil.rmtree", lambda *args, **options: None)  # killed before the first file is deleted
    assert store.prune(3, 1) == ["a"] and [v.name for v in store.versions(3)] == ["b"]
    monkeypatch.undo()
    make(store, "a", 3.0)
    assert store.prune(3, 1) == ["b"] and [v.name for v in store.versions(3)] == ["a"]


def test_the_same_version_again_replaces_itself(store: VersionStore) -> None:
    make(store, "a", 1.0)
    make(store, "a", 2.0)
    assert [v.created for v in store.versions(3)] == [2.0]
    assert (
        json.loads((store.folder / "3" / "a" / "version.json").read_text())["policy"]
        == "embedded:{folder}/policy.safetensors"
    )


def test_changes_wait_for_each_other(store: VersionStore) -> None:
    """A promotion that comes while versions are pruned must not be of one that is being deleted."""
    make(store, "a", 1.0)
    make(store, "b", 2.0)
    for change in (
        lambda: store.promote(3, "a"), lambda: store.rollback(3), lambda: store.prune(3, 1),
        lambda: make(store, "c", 3.0),
    ):  # fmt: skip
        thread = threading.Thread(target=change)
        with store._changing(3):
            before = (store.current(3), store.versions(3))
            thread.start()
            time.sleep(0.1)
            assert thread.is_alive() and (store.current(3), store.versions(3)) == before
        thread.join(10)
        assert not thread.is_alive()
    assert [v.name for v in store.versions(3)] == ["b", "c"]


def test_a_version_is_made_and_promoted_at_once(store: VersionStore) -> None:
    store.workplace(3)
    store.add(3, Version("a", "embedded", ("p", "s")), promote=True)
    assert store.current(3) == "a"
