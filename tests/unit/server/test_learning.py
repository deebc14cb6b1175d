from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from label_studio_segagent.datasets.record import Record
from label_studio_segagent.errors import BusyError, ConfigError, InputError
from label_studio_segagent.hlmat.trajectory import encode_mask
from label_studio_segagent.processes import alone
from label_studio_segagent.server.jobs import Job
from label_studio_segagent.server.learning import labelled_images, learn, split, switch_version
from label_studio_segagent.server.models import build_predictor, load_version, version_store
from label_studio_segagent.server.settings import Settings
from label_studio_segagent.training.evaluation import LabelledImage
from label_studio_segagent.training.versions import Version

MASK = encode_mask(np.eye(4, dtype=bool))


def tasks(*numbers: int) -> list[LabelledImage]:
    return [LabelledImage(f"{n}.png", label, (MASK,), str(n)) for n in numbers for label in ("cat", "dog")]


def test_a_tenth_is_held_out_and_tasks_stay_whole() -> None:
    held, taught = split(tasks(*range(1000)))
    out, learned = {x.task for x in held}, {x.task for x in taught}
    assert not out & learned and len(out | learned) == 1000 and 70 < len(out) < 130
    assert len(held) == 2 * len(out)


@given(st.sets(st.integers(0, 10**6), min_size=2, max_size=60), st.sets(st.integers(0, 10**6), max_size=60))
def test_what_was_trained_on_is_never_held_out_later(now: set[int], more: set[int]) -> None:
    held, taught = split(tasks(*now))
    assert held and taught
    later, _ = split(tasks(*(now | more)))
    trained = {x.task for x in taught}
    # Only with all tasks below the limit is one of them learned from that would have been held out.
    if len(now) > 2:
        assert not trained & {x.task for x in later}


@given(st.sets(st.integers(0, 10**6), min_size=6, max_size=40), st.sets(st.integers(0, 10**6), max_size=40))
def test_a_task_without_objects_is_not_learned_from_if_it_is_held_out_once_it_has_some(
    now: set[int], empty: set[int]
) -> None:
    nothing = [LabelledImage(f"{n}.png", "cat", (), str(n)) for n in empty - now]
    _, taught = split([*tasks(*now), *nothing])
    later, _ = split(tasks(*(now | empty)))
    assert not {x.task for x in taught} & {x.task for x in later}


def test_too_few_tasks() -> None:
    with pytest.raises(InputError, match="1 tasks have annotated objects"):
        split([*tasks(1), LabelledImage("2.png", "cat", (), "2")])


def test_annotations_of_several_people_stay_apart() -> None:
    def record(annotation: int, prompt: str, absent: bool = False, weight: float = 1.0) -> Record:
        meta = {"task": 7, "annotation": annotation, "weight": weight} | ({"absent": True} if absent else {})
        return Record(Path("a.png"), prompt, MASK, "x", (4, 4), meta)

    found = labelled_images([
        record(1, "cat"), record(1, "cat", weight=0.3), record(1, "dog", absent=True), record(2, "cat"),
    ])  # fmt: skip
    assert [(x.prompt, len(x.masks), x.weight, x.task) for x in found] == [
        ("cat", 2, 0.3, "7"), ("dog", 0, 1.0, "7"), ("cat", 1, 1.0, "7"),
    ]  # fmt: skip


def test_without_label_studio_there_is_nothing_to_learn(settings: Callable[..., Settings]) -> None:
    with pytest.raises(ConfigError, match="LABEL_STUDIO_URL"):
        learn(settings(), Job("a", "train", 1, "why"), lambda share, step: None)


def test_label_studio_is_told_of_a_rollback(settings: Callable[..., Settings], web: Any) -> None:
    given = settings(label_studio_url=web.url, label_studio_api_key="0" * 40)
    with closing(build_predictor(given)) as base:
        agent, plain = base.agent, base.model_version
    store = version_store(given)
    version = Version("learned", "embedded", (agent.policy.version, agent.segmenter.version))
    own = load_version(given, agent, store, 3, version).version
    store.add(3, version)
    project = {"id": 3, "model_version": plain}
    backends = [{"id": 8, "title": plain, "url": "http://b", "project": 3}, {"id": 9, "title": "somebody's"}]

    def patch(known: dict[str, Any]) -> Callable[[Any], Any]:
        return lambda request: known.update(request.json) if request.method == "PATCH" else known

    web.routes.update({"/api/ml": backends, "/api/projects/3/": patch(project), "/api/ml/8": patch(backends[0])})
    switch_version(given, 3, lambda store: store.promote(3, "learned"))
    assert (project["model_version"], backends[0]["title"]) == (own, own)
    assert switch_version(given, 3, lambda store: store.rollback(3)) is None
    assert (project["model_version"], [b["title"] for b in backends]) == (plain, [plain, "somebody's"])
    web.routes.clear()  # out of order: the switch is made nevertheless
    switch_version(given, 3, lambda store: store.promote(3, "learned"))
    assert store.current(3) == "learned"


def test_a_version_of_other_models_is_a_configuration_error(settings: Callable[..., Settings]) -> None:
    given = settings()
    with closing(build_predictor(given)) as base:
        version = Version("learned", "embedded", ("other", base.agent.segmenter.version))
        with pytest.raises(ConfigError, match="version learned of project 3 was trained from other models"):
            load_version(given, base.agent, version_store(given), 3, version)


def test_one_training_a_project(settings: Callable[..., Settings], web: Any) -> None:
    given = settings(label_studio_url=web.url, label_studio_api_key="0" * 40)
    lock = version_store(given).workplace(1).parent / ".lock"
    with alone(lock, "training"), pytest.raises(BusyError, match="another process is training project 1"):
        learn(given, Job("a", "train", 1, "why"), lambda share, step: None)
    assert web.asked == []


def test_a_damaged_version_file_is_told_of_before_the_training(settings: Callable[..., Settings], web: Any) -> None:
    given = settings(label_studio_url=web.url, label_studio_api_key="0" * 40)
    (version_store(given).workplace(1).parent / "current.json").write_text("{")
    with pytest.raises(ConfigError, match=r"current.json cannot be read.*delete it"):
        learn(given, Job("a", "train", 1, "why"), lambda share, step: None)
    assert web.asked == []
