from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from label_studio_segagent.hlmat.arrays import Mask
from label_studio_segagent.quality.consensus import agreement, annotator_scores, consensus


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
