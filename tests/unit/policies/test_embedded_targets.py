"""Targets of an image and of parts of it; those of one look are tested in `test_embedded.py`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from label_studio_segagent.hlmat.arrays import Box
from label_studio_segagent.policies.base import Target
from label_studio_segagent.policies.embedded_targets import alone, merge_targets, part_windows

SIZE = (300, 400)
LEFT, RIGHT = (0, 0, 300, 300), (100, 0, 400, 300)


def target(box: Box, score: float = 0.5) -> Target:
    return Target(box, None, score)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_parts_cover_the_image_and_overlap(height: int, width: int) -> None:
    windows = part_windows((height, width))
    assert bool(windows) == (max(height, width) >= 128)
    for x0, y0, x1, y1 in windows:
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert (y0, y1) == (0, height) if width >= height else (x0, x1) == (0, width)
    if windows:
        (first, last), axis = (windows[0], windows[-1]), 0 if width >= height else 1
        assert first[axis] == 0 and last[axis + 2] == max(height, width) and first[axis + 2] > last[axis]


def test_one_large_object_needs_no_closer_look() -> None:
    large, small = target((100, 50, 300, 250)), target((0, 0, 60, 60))
    assert alone([large], SIZE)
    assert not alone([], SIZE) and not alone([small], SIZE) and not alone([large, small], SIZE)


def test_what_only_a_part_shows_needs_more() -> None:
    whole = [target((20, 20, 80, 200), 0.4)]
    seen = [target((150, 100, 170, 140), 0.9), target((200, 100, 220, 140), 0.31)]
    merged = merge_targets(whole, [(RIGHT, seen)], SIZE, 0.3)
    assert merged == [target((250, 100, 270, 140), 0.9), whole[0]]
    assert merge_targets(whole, [], SIZE, 0.3) == whole
    assert merge_targets([], [(LEFT, [])], SIZE, 0.3) == []


def test_the_closer_look_has_the_better_box_unless_the_object_goes_on_outside() -> None:
    closer = target((102, 21, 198, 99), 0.5)
    assert merge_targets([target((95, 15, 205, 110), 0.55)], [(LEFT, [closer])], SIZE, 0.3) == [closer]
    surer = target((95, 15, 205, 110), 0.7)
    assert merge_targets([surer], [(LEFT, [closer])], SIZE, 0.3) == [surer]
    longer = target((95, 15, 380, 110), 0.3)
    half = target((95, 15, 280, 110), 0.9)
    assert merge_targets([longer], [(LEFT, [half])], SIZE, 0.3) == [longer]
    twice = merge_targets(
        [], [(LEFT, [target((120, 20, 200, 100), 0.8)]), (RIGHT, [target((20, 20, 100, 100))])], SIZE, 0.3
    )
    assert twice == [target((120, 20, 200, 100), 0.8)]


@pytest.mark.parametrize(
    ("window", "box", "kept"),
    [
        (LEFT, (250, 50, 299, 90), False),  # cut off at the right
        (RIGHT, (1, 50, 40, 90), False),
        (LEFT, (0, 50, 40, 90), True),  # there the image itself ends
        (RIGHT, (250, 0, 300, 90), True),
    ],
)
def test_what_a_part_cuts_off_is_left_out(window: tuple[int, int, int, int], box: Box, kept: bool) -> None:
    x0, y0, x1, y1 = box
    moved = target((x0 + window[0], y0, x1 + window[0], y1))
    assert merge_targets([], [(window, [target(box)])], SIZE, 0.3) == [moved] * kept
