from __future__ import annotations

import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from label_studio_segagent.errors import RegionError
from label_studio_segagent.labelstudio.brush import decode_brush, encode_brush

bool_masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40))


def rows(*lines: str) -> np.ndarray:
    return np.array([[character == "#" for character in line] for line in lines])


# Written by label_studio_sdk 2.1.2, converter/brush.py, mask2rle(mask * 255).
GOLDEN = [
    (rows(".....", "..#..", "#####"), [0, 0, 0, 60, 57, 27, 254, 27, 0, 143, 254, 112, 12, 39, 254]),
    (
        rows("......", ".####.", ".#..#.", ".####."),
        [0, 0, 0, 96, 57, 27, 254, 27, 0, 191, 255, 56, 4, 127, 243, 128, 71, 255, 56, 5, 255, 248, 192, 0],
    ),
    (
        np.array([[row >= 4 and column == 1 for column in range(2)] for row in range(9)]),
        [0, 0, 0, 72, 57, 27, 254, 35, 0, 143, 254, 48, 8, 255, 227, 0, 143, 254, 48, 8, 255, 227, 0, 143, 252],
    ),
    (np.ones((130, 130), bool), [0, 1, 8, 16, 57, 27, 255, 255, 255, 255, 225, 1, 255, 224]),
]


@pytest.mark.parametrize(("mask", "rle"), GOLDEN, ids=["T", "ring", "tall", "long run"])
def test_what_the_sdk_writes(mask: np.ndarray, rle: list[int]) -> None:
    assert np.array_equal(decode_brush(rle, *mask.shape), mask)
    assert encode_brush(mask) == rle


def random_blobs(seed: int, height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).random((height // 7 + 1, width // 7 + 1)) > 0.6
    return np.kron(coarse, np.ones((7, 7), bool))[:height, :width].astype(bool)


def test_both_ways_with_the_sdk() -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    for seed, (height, width) in enumerate([(1, 1), (5, 9), (60, 31), (300, 400), (1, 70_000)]):
        for mask in (
            random_blobs(seed, height, width),
            np.ones((height, width), bool),
            np.zeros((height, width), bool),
        ):
            theirs = brush.mask2rle(mask.astype(np.uint8) * 255)
            assert np.array_equal(decode_brush(theirs, height, width), mask)
            ours = encode_brush(mask)
            decoded = brush.decode_rle(ours).reshape(height, width, 4)
            assert np.array_equal(decoded[..., 3] > 127, mask)
            assert (decoded == decoded[..., :1]).all()  # the editor writes R = G = B = A


@given(bool_masks)
def test_round_trip(mask: np.ndarray) -> None:
    rle = encode_brush(mask)
    assert all(type(byte) is int and 0 <= byte <= 255 for byte in rle)
    got = decode_brush(rle, *mask.shape)
    assert got.dtype == bool and np.array_equal(got, mask)


def test_every_shape_survives(shape: np.ndarray) -> None:
    assert np.array_equal(decode_brush(encode_brush(shape), *shape.shape), shape)


@pytest.mark.parametrize("size", [(1, 1), (1, 16384), (1, 16385), (3, 50_000), (401, 307), (1000, 2000)])
@pytest.mark.parametrize("fill", ["empty", "full", "first", "last", "halves"])
def test_runs_longer_than_65536_bytes(size: tuple[int, int], fill: str) -> None:
    mask = np.full(size, fill == "full")
    if fill == "first":
        mask[0, 0] = True
    elif fill == "last":
        mask[-1, -1] = True
    elif fill == "halves":
        mask.ravel()[mask.size // 2 :] = True
    rle = encode_brush(mask)
    assert np.array_equal(decode_brush(rle, *size), mask)
    assert len(rle) < 20 + 4 * mask.size / 65536 * 8
    assert int.from_bytes(bytes(rle[:4]), "big") == 4 * mask.size


def test_large_mask_is_quick_enough() -> None:
    y, x = np.mgrid[:3000, :4000]
    mask = np.hypot(x - 2000, y - 1500) < 1200
    start = time.process_time()
    assert np.array_equal(decode_brush(encode_brush(mask), 3000, 4000), mask)
    assert time.process_time() - start < 5


class Bits:
    """A plain writer of the format, to make streams that our encoder does not write."""

    def __init__(self, count: int, sizes: tuple[int, int, int, int] = (3, 4, 8, 16), word: int = 8) -> None:
        self.sizes = sizes
        self.text = f"{count:032b}{word - 1:05b}" + "".join(f"{size - 1:04b}" for size in sizes)

    def run(self, value: int, length: int, size: int = 3) -> Bits:
        self.text += f"1{size:02b}{length - 1:0{self.sizes[size]}b}{value:08b}"
        return self

    def literal(self, values: list[int], size: int = 3) -> Bits:
        self.text += f"0{size:02b}{len(values) - 1:0{self.sizes[size]}b}" + "".join(f"{v:08b}" for v in values)
        return self

    def bytes(self) -> list[int]:
        text = self.text + "0" * (-len(self.text) % 8)
        return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def test_only_alpha_counts_and_from_128_on() -> None:
    pixels = [(255, 255, 255, 0), (0, 0, 0, 255), (9, 9, 9, 127), (9, 9, 9, 128)]
    rle = Bits(16).literal([value for pixel in pixels for value in pixel]).bytes()
    assert decode_brush(rle, 2, 2).tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize("alpha", [1, 2, 100, 127, 128, 254])
def test_the_threshold_is_half_of_the_largest_alpha(alpha: int) -> None:
    """Of a tool that paints with a hundred; the soft edge is below half of it."""
    pixels = [(9, 9, 9, 0), (0, 0, 0, alpha), (9, 9, 9, alpha), (9, 9, 9, alpha // 3)]
    rle = Bits(16).literal([value for pixel in pixels for value in pixel]).bytes()
    assert decode_brush(rle, 2, 2).tolist() == [[False, True], [True, False]]


@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=6)),
    st.sampled_from([(3, 4, 8, 16), (1, 2, 3, 4), (16, 16, 16, 16), (5, 7, 9, 11)]),
    st.data(),
)
def test_any_mixture_of_runs_is_read(alpha: np.ndarray, sizes: tuple[int, int, int, int], data: st.DataObject) -> None:
    """The editor mixes literal and repeated runs of all sizes, and draws with soft edges."""
    flat = np.repeat(alpha.ravel(), 4).tolist()
    bits = Bits(len(flat), sizes)
    at = 0
    while at < len(flat):
        size = data.draw(st.integers(0, 3))
        length = data.draw(st.integers(1, min(1 << sizes[size], len(flat) - at)))
        if len(set(flat[at : at + length])) == 1 and data.draw(st.booleans()):
            bits.run(flat[at], length, size)
        else:
            bits.literal(flat[at : at + length], size)
        at += length
    assert np.array_equal(decode_brush(bits.bytes(), *alpha.shape), alpha > alpha.max() / 2)


RING = GOLDEN[1]


@pytest.mark.parametrize("size", [(6, 4 + 1), (3, 6), (4, 7), (0, 0), (1000, 1000), (40, 60)])
def test_another_size(size: tuple[int, int]) -> None:
    with pytest.raises(RegionError, match=f"96 bytes.*{4 * size[0] * size[1]}"):
        decode_brush(RING[1], *size)


@pytest.mark.parametrize("mask", [golden[0] for golden in GOLDEN], ids=["T", "ring", "tall", "long run"])
def test_cut_anywhere(mask: np.ndarray) -> None:
    rle = encode_brush(mask)
    for end in range(len(rle)):
        with pytest.raises(RegionError):
            decode_brush(rle[:end], *mask.shape)


@given(bool_masks, st.data())
def test_cut_by_a_byte_is_noticed_even_in_the_last_value(mask: np.ndarray, data: st.DataObject) -> None:
    rle = encode_brush(mask)
    with pytest.raises(RegionError):
        decode_brush(rle[: data.draw(st.integers(0, len(rle) - 1))], *mask.shape)


def test_a_cut_literal_run() -> None:
    rle = Bits(16).literal([255] * 16).bytes()
    assert decode_brush(rle, 2, 2).all()
    for end in range(7, len(rle)):
        with pytest.raises(RegionError, match="ends"):
            decode_brush(rle[:end], 2, 2)


@given(st.binary(max_size=60), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=200)
def test_random_bytes_are_a_mask_or_a_region_error(data: bytes, height: int, width: int) -> None:
    header = Bits(4 * height * width).bytes()
    for rle in (list(data), [*header[:6], *data]):
        try:
            mask = decode_brush(rle, height, width)
        except RegionError:
            continue
        assert mask.shape == (height, width) and mask.dtype == bool


@pytest.mark.parametrize(
    "rle",
    [
        None,
        0,
        7,
        sys.maxsize,  # bytes(n) would be n zeros
        True,
        1.5,
        "AAAA",
        {},
        {"0": 1},
        [],
        [0] * 6,
        [256] * 20,
        [-1] * 20,
        [1.0] * 20,
        ["1"] * 20,
        [None],
        [[1], [2]],
        [10**30],
    ],
    ids=str,
)
def test_what_is_no_list_of_bytes(rle: object) -> None:
    with pytest.raises(RegionError):
        decode_brush(rle, 4, 6)  # type: ignore[arg-type]


def test_a_huge_header_allocates_nothing() -> None:
    start = time.process_time()
    with pytest.raises(RegionError, match="4294967295 bytes"):
        decode_brush([255] * 1000, 4, 6)
    assert time.process_time() - start < 0.5


def test_runs_past_the_end() -> None:
    with pytest.raises(RegionError, match="overflows"):
        decode_brush(Bits(16).run(255, 17).bytes(), 2, 2)
    with pytest.raises(RegionError, match="overflows"):
        decode_brush(Bits(16).run(255, 15).literal([1, 2]).bytes(), 2, 2)


def test_other_words_than_bytes() -> None:
    with pytest.raises(RegionError, match="16 bits"):
        decode_brush(Bits(16, word=16).run(255, 16).bytes(), 2, 2)
