from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from label_studio_segagent.datasets.record import Record
from label_studio_segagent.errors import ConfigError, InputError
from label_studio_segagent.hlmat.trajectory import encode_mask
from label_studio_segagent.server.jobs import Job
from label_studio_segagent.server.learning import _alone, labelled_images, learn, split
from label_studio_segagent.server.settings import Settings
from label_studio_segagent.training.evaluation import LabelledImage
from label_studio_segagent.training.versions import VersionStore

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


def test_one_training_a_project(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    with _alone(store, 1):
        with pytest.raises(InputError, match="another process"), _alone(store, 1):
            pass
        with _alone(store, 2):
            pass
    with _alone(store, 1):
        pass
