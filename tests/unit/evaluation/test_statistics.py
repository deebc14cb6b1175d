from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from scipy import stats

from label_studio_segagent.evaluation.rows import Row
from label_studio_segagent.evaluation.statistics import Bootstrap, summarise
from label_studio_segagent.hlmat.metrics import boundary_iou, ciou, iou, miou


@given(st.data())
def test_iou_is_that_of_pycocotools(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    a, b = data.draw(arrays(bool, shape)), data.draw(arrays(bool, shape))
    b[0, 0] = True  # pycocotools calls the IoU of two empty masks 0
    theirs = coco_mask.iou(*([coco_mask.encode(np.asfortranarray(m, np.uint8))] for m in (a, b)), [0])
    assert iou(a, b) == pytest.approx(float(theirs[0, 0]), abs=1e-12)


def published_boundary_iou(truth: np.ndarray, found: np.ndarray, ratio: float = 0.02) -> float:
    """`boundary_iou` of github.com/bowenc0221/boundary-iou-api, written down again."""

    def boundary(mask: np.ndarray) -> np.ndarray:
        h, w = mask.shape
        dilation = max(1, int(round(ratio * np.sqrt(h**2 + w**2))))
        padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=dilation)
        return mask - eroded[1 : h + 1, 1 : w + 1]

    a, b = boundary(truth.astype(np.uint8)), boundary(found.astype(np.uint8))
    return float(((a * b) > 0).sum() / ((a + b) > 0).sum())


def test_boundary_iou_is_the_published_one() -> None:
    square, moved = np.zeros((30, 40), bool), np.zeros((30, 40), bool)
    square[10:20, 10:20], moved[10:20, 11:21] = True, True
    # The bands are one pixel wide, 36 pixels each; 9 + 9 are shared above and below.
    assert boundary_iou(square, moved) == 18 / (36 + 36 - 18) == published_boundary_iou(square, moved)
    rng = np.random.default_rng(0)
    for size in ((60, 80), (200, 150)):
        blobs = [cv2.GaussianBlur(rng.random(size), (0, 0), 6) > 0.5 for _ in range(2)]
        assert boundary_iou(*blobs) == pytest.approx(published_boundary_iou(*blobs), abs=1e-12)


def row(number: int, **named: Any) -> Row:
    value = named.pop("iou", 0.5)
    plain = Row(
        key=str(number), id=str(number), image=str(number), prompt="p", label="p", share=0.1, ious=[0.0, value],
        ratings=[0.0, 0.4], rated=[0.0, value], blind=None, noc=None, iou=value, boundary_iou=0.3, intersection=1,
        union=2, predicted_iou=0.4, clicks=1, undone=0, seconds=0.5, stopped="finish",
    )  # fmt: skip
    return replace(plain, **named)


def test_ciou_is_not_miou() -> None:
    large, small = np.ones((20, 20), bool), np.zeros((20, 20), bool)
    small[0, 0:2] = True
    half = small.copy()
    half[0, 1] = False
    rows = [
        row(0, iou=1.0, intersection=400, union=400),
        row(1, iou=0.5, intersection=1, union=2),
    ]  # fmt: skip
    metrics = summarise(rows, 1)["metrics"]
    assert metrics["miou"]["value"] == 0.75 == miou([(large, large), (half, small)])
    assert metrics["ciou"]["value"] == 401 / 402 == ciou([(large, large), (half, small)])


def test_curves_go_on_with_their_last_mask() -> None:
    rows = [
        row(0, ious=[0.2, 0.8, 0.4], rated=[0.2, 0.8, 0.8], blind=[0.2, 0.6], ratings=[0.1, 0.9, 0.3]),
        row(1, ious=[0.4], rated=[0.4], blind=[0.4], ratings=[None]),
    ]
    table = summarise(rows, 3)["per_click"]
    for kind, means in {
        "last": [0.3, 0.6, 0.4, 0.4],
        "rated": [0.3, 0.6, 0.6, 0.6],
        "blind": [0.3, 0.5, 0.5, 0.5],
    }.items():
        assert [line[kind]["value"] for line in table] == pytest.approx(means)


def test_noc_is_capped_and_failures_are_counted() -> None:
    rows = [
        row(0, noc=[0.5, 0.82, 0.86, 0.91, 0.9]),
        row(1, noc=[0.7] * 20),
        row(2, noc=[]),
        row(3, noc=[0.95]),
    ]
    found = summarise(rows, 1)["noc"]
    assert {t: (f["noc"]["value"], f["nof"]) for t, f in found.items()} == {
        "80": ((2 + 20 + 20 + 1) / 4, 2), "85": ((3 + 20 + 20 + 1) / 4, 2), "90": ((4 + 20 + 20 + 1) / 4, 2),
    }  # fmt: skip
    assert "noc" not in summarise([*rows, row(4)], 1)
    off = summarise([replace(r, noc_jittered=[*(r.noc or ())[:-1], 0.1]) for r in rows], 1)
    assert off["noc"] == found and off["noc_jittered"]["80"]["noc"]["value"] == (2 + 20 + 20 + 20) / 4


def test_predicted_against_true() -> None:
    rng = np.random.default_rng(1)
    true = rng.random(40)
    predicted = np.clip(true + rng.normal(0, 0.2, 40), 0, 1)
    rows = [
        row(i, iou=float(t), predicted_iou=float(p), ious=[float(t)], ratings=[float(p)])
        for i, (p, t) in enumerate(zip(predicted, true, strict=True))
    ]
    rating = summarise(rows, 1)["rating"]
    expected = {
        "mae": np.abs(predicted - true).mean(), "mse": ((predicted - true) ** 2).mean(),
        "pearson": stats.pearsonr(predicted, true)[0], "spearman": stats.spearmanr(predicted, true)[0],
    }  # fmt: skip
    for name, value in expected.items():
        found = rating["final"][name]
        assert found["value"] == pytest.approx(value) and found["low"] < value < found["high"]
        assert found == rating["all"][name]
    unrated = summarise([row(0, predicted_iou=None, ratings=[None, None])], 1)["rating"]
    assert unrated == {"final": {"masks": 0}, "all": {"masks": 0}}


def test_a_constant_rating_has_no_correlation() -> None:
    rating = summarise([row(0, iou=0.1), row(1, iou=0.9)], 1)["rating"]["final"]
    assert rating["pearson"]["value"] is None and rating["spearman"]["low"] is None
    assert rating["mae"]["value"] == pytest.approx(0.4)


def test_images_are_drawn_not_objects() -> None:
    values = [0.0] * 50 + [1.0] * 50
    two = Bootstrap(["a"] * 50 + ["b"] * 50).mean(values)
    many = Bootstrap([str(i) for i in range(100)]).mean(values)
    assert (two["low"], two["value"], two["high"]) == (0.0, 0.5, 1.0)
    assert many["low"] is not None and many["high"] is not None
    assert 0.38 < many["low"] < 0.43 and 0.57 < many["high"] < 0.62  # 0.5 -+ 1.96 * 0.05
    assert Bootstrap(["a", "a"]).mean([0.0, 1.0]) == {"value": 0.5, "low": None, "high": None}
    assert Bootstrap([]).mean([])["value"] is None


def test_labels_and_stops() -> None:
    rows = [row(0, label="b"), row(1, label="a", stopped="clicks"), row(2, label="b", iou=1.0, clicks=2, undone=1)]
    found = summarise(rows, 1)
    assert list(found["labels"]) == ["b", "a"] and found["labels"]["b"]["miou"] == 0.75
    assert found["labels"]["b"]["clicks"] == 2.0 and found["stopped"] == {"finish": 2, "clicks": 1}
