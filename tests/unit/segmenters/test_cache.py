from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from label_studio_segagent.errors import ConfigError, InputError
from label_studio_segagent.hlmat.actions import Click
from label_studio_segagent.segmenters import CacheStats, EmbeddingCache, ImageState, Segmentation, Segmenter
from label_studio_segagent.segmenters.base import _tree_bytes
from label_studio_segagent.segmenters.embedded import EmbeddedSegmenter
from label_studio_segagent.segmenters.hf_sam import HfSamSegmenter

FEATURES = 1000
"""Bytes of the features of every image."""
ENTRY = FEATURES + 12
"""With the image itself, 2 x 2 pixels."""


class Counting(Segmenter):
    """Features that depend on the image; counts what it encodes."""

    def __init__(self, version: str = "counting", packs: bool = True) -> None:
        self.version, self.packs = version, packs
        self.encoded: list[int] = []

    def set_image(self, image: np.ndarray) -> ImageState:
        self.encoded.append(int(image[0, 0, 0]))
        return ImageState(image, {"a": [np.full(FEATURES // 4, image.sum(), np.float32)]})

    def predict(self, state: ImageState, clicks: Any, *, box: Any = None, prior: Any = None) -> Segmentation:
        raise NotImplementedError

    def pack(self, state: ImageState) -> Mapping[str, np.ndarray] | None:
        return {"a": state.features["a"][0]} if self.packs else None

    def unpack(self, image: np.ndarray, arrays: Mapping[str, np.ndarray]) -> ImageState:
        return ImageState(image, {"a": [arrays["a"]]})


def picture(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value, np.uint8)


def test_the_same_pixels_are_encoded_once() -> None:
    cache, tool = EmbeddingCache(), Counting()
    first = cache.encode(tool, picture(1))
    assert cache.encode(tool, picture(1)) is first
    assert cache.encode(tool, np.asfortranarray(picture(1))) is first
    assert cache.encode(tool, picture(2)) is not first
    assert cache.encode(tool, picture(1).reshape(1, 4, 3)) is not first
    assert tool.encoded == [1, 2, 1]
    assert cache.stats == CacheStats(hits=2, disk_hits=0, misses=3, entries=3, bytes=3 * ENTRY)
    assert cache.stats.hit_rate == pytest.approx(0.4)


def test_segmenters_do_not_share_states() -> None:
    cache, one, two = EmbeddingCache(), Counting("one"), Counting("two")
    assert cache.encode(one, picture(1)) is not cache.encode(two, picture(1))
    assert one.encoded == two.encoded == [1]


def test_drawing_on_the_image_later_changes_nothing() -> None:
    cache, image = EmbeddingCache(), picture(1)
    state = cache.encode(Counting(), image)
    image[:] = 0
    assert (state.image == 1).all()
    assert cache.encode(Counting(), picture(1)) is state


def test_the_budget_drops_what_was_not_used_for_longest() -> None:
    cache, tool = EmbeddingCache(3 * ENTRY), Counting()
    for value in (1, 2, 3, 1, 4, 1, 3, 2):  # 4 pushes out 2, then 2 pushes out 4
        cache.encode(tool, picture(value))
    assert tool.encoded == [1, 2, 3, 4, 2]
    assert (cache.stats.entries, cache.stats.bytes) == (3, 3 * ENTRY)
    cache.encode(tool, picture(1))
    assert len(tool.encoded) == 5
    cache.encode(tool, picture(4))
    assert len(tool.encoded) == 6


@pytest.mark.parametrize("budget", [0, ENTRY - 1])
def test_what_does_not_fit_is_answered_but_not_kept(budget: int) -> None:
    cache, tool = EmbeddingCache(budget), Counting()
    assert cache.encode(tool, picture(1)).features["a"][0][0] == 12
    cache.encode(tool, picture(1))
    assert tool.encoded == [1, 1] and cache.stats.entries == cache.stats.bytes == 0


def test_a_large_image_does_not_push_out_the_small_ones() -> None:
    cache, tool = EmbeddingCache(2 * ENTRY), Counting()
    small = cache.encode(tool, picture(1))
    cache.encode(tool, np.zeros((100, 100, 3), np.uint8))
    assert cache.encode(tool, picture(1)) is small


def test_threads_that_want_the_same_image_wait_for_one() -> None:
    entered, go = threading.Event(), threading.Event()

    class Slow(Counting):
        def set_image(self, image: np.ndarray) -> ImageState:
            entered.set()
            assert go.wait(10)
            return super().set_image(image)

    cache, tool = EmbeddingCache(), Slow()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(cache.encode, tool, picture(1)) for _ in range(8)]
        assert entered.wait(10)
        deadline = time.monotonic() + 10
        while cache.stats.hits < 7 and time.monotonic() < deadline:  # the other seven wait for the first
            time.sleep(0.001)
        assert not any(future.done() for future in asked)
        go.set()
        states = {id(future.result()) for future in asked}
    assert len(states) == 1 and tool.encoded == [1]
    assert cache.stats == CacheStats(hits=7, misses=1, entries=1, bytes=ENTRY)


def test_many_threads_and_a_small_budget() -> None:
    cache, tool = EmbeddingCache(3 * ENTRY), Counting()
    order = np.random.default_rng(0).integers(0, 8, 400)
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(lambda value: cache.encode(tool, picture(int(value))), order))
    for value, state in zip(order, states, strict=True):
        assert (state.image == value).all() and (state.features["a"][0] == 12 * value).all()
    stats = cache.stats
    assert stats.hits + stats.misses == 400 and stats.misses == len(tool.encoded)
    assert stats.bytes == stats.entries * ENTRY <= 3 * ENTRY


def test_a_failure_reaches_everyone_and_is_not_kept() -> None:
    entered, go = threading.Event(), threading.Event()

    class Failing(Counting):
        def set_image(self, image: np.ndarray) -> ImageState:
            state = super().set_image(image)
            if len(self.encoded) == 1:
                entered.set()
                assert go.wait(10)
                raise MemoryError("no room")
            return state

    cache, tool = EmbeddingCache(), Failing()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(cache.encode, tool, picture(1)) for _ in range(2)]
        assert entered.wait(10)
        deadline = time.monotonic() + 10
        while cache.stats.hits < 1 and time.monotonic() < deadline:
            time.sleep(0.001)
        go.set()
        for future in asked:
            with pytest.raises(MemoryError, match="no room"):
                future.result(10)
    assert cache.encode(tool, picture(1)).features["a"][0][0] == 12


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(InputError, match="RGB uint8"):
        EmbeddingCache().encode(Counting(), np.zeros((2, 2), np.uint8))


# On disk


@pytest.fixture
def on_disk(tmp_path: Path) -> Callable[..., EmbeddingCache]:
    """`on_disk(folder_bytes=…)`: a new cache over the same folder, as after a restart."""
    return lambda folder_bytes=10**6, max_bytes=10**6: EmbeddingCache(max_bytes, tmp_path / "deep" / "er", folder_bytes)


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "deep" / "er").iterdir(), key=lambda path: path.stat().st_mtime_ns)


def test_a_restart_keeps_what_is_on_disk(on_disk: Callable[..., EmbeddingCache], tmp_path: Path) -> None:
    first, tool = on_disk().encode(Counting(), picture(1)), Counting()
    cache = on_disk()
    again = cache.encode(tool, picture(1))
    np.testing.assert_array_equal(again.features["a"][0], first.features["a"][0])
    assert (again.image == 1).all() and tool.encoded == []
    cache.encode(tool, picture(1))
    assert cache.stats == CacheStats(hits=1, disk_hits=1, misses=0, entries=1, bytes=ENTRY)
    assert cache.stats.hit_rate == 1
    on_disk().encode(other := Counting("other"), picture(1))
    assert other.encoded == [1]
    assert [path.suffix for path in files(tmp_path)] == [".embedding"] * 2


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "alien", "other arrays"])
def test_a_damaged_file_is_a_miss(
    damage: str, on_disk: Callable[..., EmbeddingCache], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    on_disk().encode(Counting(), picture(1))
    [path] = files(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "other arrays":  # written by another version of the program

        class Renamed(Counting):
            def pack(self, state: ImageState) -> Mapping[str, np.ndarray]:
                return {"b": np.zeros(3)}

        path.unlink()
        on_disk().encode(Renamed(), picture(1))
    else:
        data[-1] ^= damage == "bit"
        path.write_bytes({"cut": data[:-100], "bit": data, "empty": b"", "alien": b"x" * 5000}[damage])
    cache, tool = on_disk(), Counting()
    with caplog.at_level(logging.WARNING):
        assert cache.encode(tool, picture(1)).features["a"][0][0] == 12
    assert tool.encoded == [1] and cache.stats.disk_hits == 0 and "is not used" in caplog.text
    on_disk().encode(later := Counting(), picture(1))  # written anew
    assert later.encoded == []


def test_the_folder_stays_within_its_budget(on_disk: Callable[..., EmbeddingCache], tmp_path: Path) -> None:
    on_disk().encode(Counting(), picture(0))
    size = files(tmp_path)[0].stat().st_size
    cache = on_disk(3 * size, 0)
    for value in (1, 2):
        cache.encode(Counting(), picture(value))
    for age, path in enumerate(files(tmp_path)):
        os.utime(path, (1000 + age, 1000 + age))
    cache.encode(Counting(), picture(0))  # read, so now the newest
    cache.encode(Counting(), picture(3))  # pushes out 1
    assert len(files(tmp_path)) == 3 and sum(path.stat().st_size for path in files(tmp_path)) <= 3 * size
    tool = Counting()
    for value in (0, 2, 3, 1):
        on_disk(3 * size).encode(tool, picture(value))
    assert tool.encoded == [1]


def test_segmenters_that_cannot_pack_stay_off_the_disk(on_disk: Callable[..., EmbeddingCache], tmp_path: Path) -> None:
    cache = on_disk()
    cache.encode(Counting(packs=False), picture(1))
    assert files(tmp_path) == [] and cache.stats.misses == 1


def test_a_full_disk_costs_only_the_file(
    on_disk: Callable[..., EmbeddingCache], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = on_disk()
    (tmp_path / "deep" / "er").rmdir()
    with caplog.at_level(logging.WARNING):
        state = cache.encode(Counting(), picture(1))
    assert state.features["a"][0][0] == 12 and "cannot be written" in caplog.text


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="for embeddings cannot be made"):
        EmbeddingCache(1, tmp_path / "file" / "folder", 1)
    EmbeddingCache(1, tmp_path / "file" / "folder", 0)  # not wanted, not made


def test_a_real_model_from_disk_answers_the_same(
    on_disk: Callable[..., EmbeddingCache], tiny_sams: dict[str, Path], disc_image: np.ndarray
) -> None:
    for kind in ("sam_hq", "sam2"):
        segmenter = HfSamSegmenter(str(tiny_sams[kind]))
        clicks = [Click(30, 20), Click(70, 40, False)]
        fresh = segmenter.predict(on_disk().encode(segmenter, disc_image), clicks)
        cache = on_disk()
        read = segmenter.predict(cache.encode(segmenter, disc_image), clicks)
        assert cache.stats.disk_hits == 1
        np.testing.assert_array_equal(read.logits, fresh.logits)
        np.testing.assert_array_equal(read.mask, fresh.mask)


# Counting bytes


def test_bytes_of_all_kinds_of_features() -> None:
    features = {"a": [np.zeros(3), (torch.zeros(2, 5), None)], "b": CacheStats(), "c": "text"}
    assert _tree_bytes(features) == 24 + 40


def test_the_embedded_segmenter_counts_what_zooming_may_add() -> None:
    segmenter = EmbeddedSegmenter()
    state = segmenter.set_image(np.random.default_rng(0).integers(0, 255, (90, 240, 3)).astype(np.uint8))
    reserved, small = segmenter.state_bytes(state), state.image.nbytes + _tree_bytes(state.features)
    for i in range(6):
        segmenter.predict(state, [], box=(30.0 * i, 5, 30.0 * i + 40, 45))
    grown = state.image.nbytes + sum(_tree_bytes(maps) for maps in state.features.zoomed.values())
    grown += _tree_bytes(state.features.maps)
    assert len(state.features.zoomed) == segmenter.settings.views
    assert small < grown <= reserved == segmenter.state_bytes(state)
    assert grown > 0.5 * reserved  # square windows, as large as they get
