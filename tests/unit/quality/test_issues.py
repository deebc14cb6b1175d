from __future__ import annotations

import numpy as np
import pytest

from label_studio_segagent.agent.rollout import Rollout
from label_studio_segagent.errors import ConfigError
from label_studio_segagent.hlmat.arrays import Mask, mask_box
from label_studio_segagent.hlmat.metrics import boundary_iou, box_iou, iou
from label_studio_segagent.hlmat.trajectory import Trajectory
from label_studio_segagent.policies.base import Target
from label_studio_segagent.quality.evidence import Evidence, Judged
from label_studio_segagent.quality.issues import NAMES, Issue, Subject, Thresholds, find_issues


def block(x0: int, y0: int, x1: int, y1: int) -> Mask:
    mask = np.zeros((60, 100), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def subject(
    mask: Mask, refined: Mask | None = None, *, rating: float = 0.95, better: float = 0.95, score: float = 0.95,
    label: str = "cat", targets: tuple[Target, ...] = (), name: str = "r1",
) -> Subject:  # fmt: skip
    refined = mask if refined is None else refined
    box = mask_box(mask)
    assert box is not None
    fit = max(((box_iou(t.box, box), t.score) for t in targets if t.box), default=(0.0, 0.0))
    evidence = Evidence(rating, iou(mask, refined), boundary_iou(mask, refined), 0.9, 0.8, 0.9, *fit, 0.5)
    return Subject(name, Judged(mask, label, evidence, refined, better, None), score)


def names(issues: list[Issue]) -> list[str]:
    return [issue.name for issue in issues]


CAT = Target((20.0, 10.0, 50.0, 50.0), None, 0.8)
DRAWN = block(20, 10, 50, 50)


def test_a_good_region_has_none() -> None:
    assert find_issues([subject(DRAWN, targets=(CAT,))], {"cat": [CAT]}, {}, Thresholds()) == []


def test_a_missing_object_is_pointed_at() -> None:
    other = block(60, 10, 90, 50)
    rollouts = [Rollout(m, 0.9, Trajectory("cat"), "finish", CAT) for m in (DRAWN, other)]
    [issue] = find_issues([subject(DRAWN, targets=(CAT,))], {"cat": [CAT]}, {"cat": rollouts}, Thresholds())
    assert issue.name == "missing_object" and issue.box == (60.0, 10.0, 90.0, 50.0) and issue.regions == ()
    assert names(find_issues([], {}, {"cat": rollouts}, Thresholds())) == ["missing_object"] * 2


def test_a_region_where_nothing_is() -> None:
    away = subject(block(70, 5, 95, 25), rating=0.1, score=0.2)
    [issue] = find_issues([away], {"cat": [CAT]}, {}, Thresholds())
    assert issue.name == "extra_region" and issue.regions == ("r1",)
    point = Target(None, (80.0, 15.0), 0.8)
    assert "extra_region" not in names(find_issues([away], {"cat": [point]}, {}, Thresholds()))


def test_a_wrong_label() -> None:
    weak = Target(CAT.box, None, 0.2)
    doubted = subject(DRAWN, rating=0.2, score=0.3, label="dog", targets=(weak,))
    issues = find_issues([doubted], {"dog": [weak], "cat": [CAT]}, {}, Thresholds())
    assert issues[0].name == "wrong_label" and "'cat'" in issues[0].note
    assert "wrong_label" not in names(find_issues([doubted], {"dog": [CAT], "cat": [weak]}, {}, Thresholds()))


def test_two_objects_in_one_region() -> None:
    two = (Target((10.0, 10.0, 40.0, 50.0), None, 0.8), Target((50.0, 10.0, 80.0, 50.0), None, 0.7))
    both = block(10, 10, 40, 50) | block(50, 10, 80, 50)
    issues = find_issues([subject(both, rating=0.4, score=0.4, targets=two)], {"cat": list(two)}, {}, Thresholds())
    assert "merged_objects" in names(issues)


def test_half_an_object() -> None:
    half = subject(block(20, 10, 35, 50), DRAWN, rating=0.45, better=0.9, score=0.5, targets=(CAT,))
    [issue] = find_issues([half], {"cat": [CAT]}, {}, Thresholds())
    assert issue.name == "incomplete" and issue.box == (35.0, 10.0, 50.0, 50.0)


def test_a_bad_outline() -> None:
    sloppy = subject(block(20, 10, 58, 50), DRAWN, rating=0.6, better=0.9, score=0.6, targets=(CAT,))
    [issue] = find_issues([sloppy], {"cat": [CAT]}, {}, Thresholds("bad_boundary=0.2"))
    assert issue.name == "bad_boundary" and issue.box == (50.0, 10.0, 58.0, 50.0)


def test_a_low_score_always_has_a_reason() -> None:
    unclear = subject(DRAWN, rating=0.2, better=0.2, score=0.2, targets=(CAT,))
    assert find_issues([unclear], {"cat": [CAT]}, {}, Thresholds())


def test_the_same_thing_twice() -> None:
    first, second = subject(DRAWN, targets=(CAT,)), subject(block(20, 10, 49, 50), targets=(CAT,), name="r2")
    [issue] = find_issues([first, second], {"cat": [CAT]}, {}, Thresholds())
    assert issue.name == "duplicate" and issue.regions == ("r1", "r2")
    dog = subject(DRAWN, label="dog", targets=(CAT,), name="r3")
    assert find_issues([first, dog], {"cat": [CAT], "dog": [CAT]}, {}, Thresholds()) == []


def test_specks() -> None:
    mask = DRAWN.copy()
    mask[2:4, 90:92] = True
    [issue] = find_issues([subject(mask, targets=(CAT,))], {"cat": [CAT]}, {}, Thresholds())
    assert issue.name == "tiny_fragment" and issue.box == (90.0, 2.0, 92.0, 4.0)
    one = subject(block(30, 30, 31, 31), targets=(CAT,))
    assert "tiny_fragment" in names(find_issues([one], {"cat": [CAT]}, {}, Thresholds()))


def test_thresholds() -> None:
    mask = DRAWN.copy()
    mask[2:4, 90:92] = True
    for text in ("tiny_fragment=off", " tiny_fragment = 0.9 ,"):
        assert find_issues([subject(mask, targets=(CAT,))], {"cat": [CAT]}, {}, Thresholds(text)) == []
    assert set(Thresholds().values) == set(NAMES)
    for text, said in (
        ("typo=0.5", "typo"),
        ("duplicate=2", "duplicate=2"),
        ("duplicate", "off"),
        ("duplicate=x", "x"),
    ):
        with pytest.raises(ConfigError, match=said):
            Thresholds(text)
