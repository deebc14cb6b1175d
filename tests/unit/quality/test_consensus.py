from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from label_studio_segagent.errors import ConfigError, InputError
from label_studio_segagent.hlmat.arrays import Mask
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.quality.consensus import agreement, annotator_scores, consensus, majority, pixel_rule, staple

needs_staple = pytest.mark.skipif(
    importlib.util.find_spec("SimpleITK") is None, reason="no SimpleITK; the extras staple and dev have it"
)


def block(x0: int, x1: int) -> Mask:
    mask = np.zeros((6, 20), bool)
    mask[1:5, x0:x1] = True
    return mask


def test_agreement_counts_what_only_one_drew() -> None:
    one = [("cat", block(0, 4)), ("dog", block(10, 14))]
    assert agreement(one, one) == 1 and agreement([], []) == 1
    assert agreement(one, one[:1]) == 0.5 and agreement(one, []) == 0
    assert agreement([("cat", block(0, 4))], [("dog", block(0, 4))]) == 0
    assert agreement([("cat", block(0, 4))], [("cat", block(0, 2))]) == 0.5


def test_the_majority_decides_about_objects_and_pixels() -> None:
    three = [[("cat", block(0, 4))], [("cat", block(0, 4)), ("cat", block(12, 18))], [("cat", block(1, 6))]]
    [agreed] = consensus(three)
    assert (agreed.label, agreed.votes, agreed.of) == ("cat", 3, 3) and np.array_equal(agreed.mask, block(0, 4))
    assert consensus([[("cat", block(0, 4))], [("dog", block(0, 4))]]) == []
    # Two objects of one annotator are never one object.
    twins = [[("cat", block(0, 10)), ("cat", block(2, 10))], [("cat", block(0, 10)), ("cat", block(2, 10))]]
    assert len(consensus(twins)) == 2


@needs_staple
def test_staple_believes_those_who_are_reliable() -> None:
    fuse = pixel_rule("staple")
    assert fuse is staple
    # All agree, also where they leave no background, and where there is nothing at all.
    for mask in (block(3, 9), np.ones((6, 20), bool), np.zeros((6, 20), bool)):
        assert np.array_equal(fuse([mask] * 3), mask) and fuse([mask] * 3).dtype == bool
    # Two draw all of it, three a part each: there is no majority for the rest.
    whole, rows, columns = np.zeros((60, 80), bool), np.arange(60)[:, None], np.arange(80)
    whole[10:50, 20:60] = True
    masks = [whole, np.roll(whole, 1, 0), whole & (columns < 35), whole & (columns > 45), whole & (rows < 30)]
    assert iou(staple(masks), whole) > 0.97 > 0.9 > iou(majority(masks), whole)
    [agreed] = consensus([[("cat", block(0, 4))], [("cat", block(0, 4))], [("cat", block(1, 6))]], fuse)
    assert agreed.votes == 3 and np.array_equal(agreed.mask, block(0, 4))


def test_rules_have_names_and_what_is_missing_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pixel_rule("majority") is majority
    with pytest.raises(InputError, match="unknown consensus 'mean'; known: majority, staple"):
        pixel_rule("mean")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"label-studio-segagent\[staple\]"):
        pixel_rule("staple")


def test_annotators_are_compared_with_each_other_and_with_the_truth() -> None:
    good, bad = [("cat", block(0, 8))], [("cat", block(0, 4))]
    scores = annotator_scores([{"ann": good, "bob": bad, "eve": good}, {"ann": good}, {"bob": bad}], [None, good, good])
    assert scores["ann"] == {"pictures": 2, "shared": 1, "agreement": 0.75, "checked": 1, "accuracy": 1.0}
    assert scores["bob"]["agreement"] == 0.5 and scores["bob"]["accuracy"] == 0.5
    assert scores["eve"]["accuracy"] is None and scores["eve"]["checked"] == 0


@settings(max_examples=50)
@given(st.lists(arrays(bool, (5, 7)), min_size=1, max_size=4), arrays(bool, (5, 7)))
def test_agreement_is_mutual_and_in_range(several: list[Mask], single: Mask) -> None:
    many, one = [("x", m) for m in several], [("x", single)]
    value = agreement(many, one)
    assert 0 <= value <= 1 and value == pytest.approx(agreement(one, many))
