from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PilImage

from label_studio_segagent.datasets import load_samples
from label_studio_segagent.datasets.record import MaskFile, Record, read_mask_file
from label_studio_segagent.errors import InputError
from label_studio_segagent.hlmat.trajectory import encode_mask

HEIGHT, WIDTH = 6, 8


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "bild ü.png"
    PilImage.new("RGB", (WIDTH, HEIGHT), (10, 20, 30)).save(path)
    return path


def drawn(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[rows, columns] = True
    return mask


SQUARE = drawn(slice(1, 3), slice(2, 6))
RING = drawn(slice(0, 6), slice(0, 6)) & ~drawn(slice(2, 4), slice(2, 4))


def _runs(mask: np.ndarray) -> dict[str, Any]:
    counts, value = [], False
    flat = mask.T.ravel().tolist()
    while flat:
        run = 0
        while flat and flat[0] == value:
            flat.pop(0)
            run += 1
        counts.append(run)
        value = not value
    return {"size": list(mask.shape), "counts": counts}


@pytest.mark.parametrize("mask", [SQUARE, RING, drawn(slice(5, 6), slice(7, 8)), drawn(slice(0, 0), slice(0, 0))])
@pytest.mark.parametrize("form", ["compressed", "bytes", "uncompressed", "several"])
def test_every_way_that_coco_writes_a_mask(image: Path, mask: np.ndarray, form: str) -> None:
    rle = encode_mask(mask)
    left, right = mask & drawn(slice(0, 6), slice(0, 4)), mask & drawn(slice(0, 6), slice(4, 8))
    content = {
        "compressed": rle,
        "bytes": {**rle, "counts": rle["counts"].encode()},
        "uncompressed": _runs(mask),
        "several": [encode_mask(left), encode_mask(right)],  # as RefCLEF has it
    }[form]
    sample = Record(image, "x", content, "1").load()
    assert np.array_equal(sample.mask, mask) and sample.mask.dtype == bool
    assert sample.void is None and tuple(sample.image[0, 0]) == (10, 20, 30)
    assert sample.path == str(image.resolve())


def test_polygons_with_several_rings(image: Path) -> None:
    rings = [[0, 0, 2, 0, 2, 2, 0, 2], [4, 1, 7, 1, 7, 4, 4, 4], [1, 1, 2, 2]]  # the last has no area
    sample = Record(image, "x", rings, "1").load()
    assert np.array_equal(sample.mask, drawn(slice(0, 2), slice(0, 2)) | drawn(slice(1, 4), slice(4, 7)))


HOSTILE = [
    None,
    5,
    "polygon",
    [],
    [[]],
    [[1, 2, 3, 4]],
    [[1, 2, 3, 4, 5]],
    [[1, 2, 3, 4, 5, None]],
    [[1, 2, 3, 4, 5, float("nan")]],
    [[1, 2, 3, 4, 5, 1e300]],
    [[True] * 6],
    [{"size": [6, 8], "counts": "1"}, [1, 2, 3, 4, 5, 6]],
    {},
    {"size": [6, 8]},
    {"size": [6, 8], "counts": None},
    {"size": [6, 8], "counts": [48, -1, 1]},
    {"size": [6, 8], "counts": [47]},
    {"size": [6, 8], "counts": [1.5, 46.5]},
    {"size": [6, 8], "counts": [10**30]},
    {"size": [6, 8], "counts": b"\xff\xfe"},
    {"size": [10**9, 10**9], "counts": [10**18]},
    {"size": 7, "counts": [48]},
    {"size": [[6], 8], "counts": [48]},
]


@pytest.mark.parametrize("mask", HOSTILE, ids=lambda mask: str(mask)[:50])
def test_what_is_no_mask_is_named(image: Path, mask: Any) -> None:
    with pytest.raises(InputError, match="object 7"):
        Record(image, "x", mask, "7").load()


@given(
    st.lists(st.lists(st.floats(-50, 50), max_size=12), max_size=4)
    | st.dictionaries(st.sampled_from(["size", "counts"]), st.lists(st.integers(-3, 60), max_size=4))
    | st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3))
)
def test_any_mask_loads_or_is_an_input_error(mask: Any) -> None:
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    try:
        sample = Record(Path("none.png"), "x", mask, "1").load(pixels)
    except InputError:
        return
    assert sample.mask.shape == (HEIGHT, WIDTH)


def test_a_size_that_is_not_the_images(image: Path) -> None:
    with pytest.raises(InputError, match=r"object 3 is \(8, 6\).*\(6, 8\)"):
        Record(image, "x", encode_mask(SQUARE), "3", (8, 6)).load()


def test_keys_tell_objects_apart(image: Path) -> None:
    one = Record(image, "x", encode_mask(SQUARE), "1")
    same = Record(image.parent / "elsewhere" / image.name, "x", encode_mask(SQUARE), "1")
    assert one.key == same.key  # a data set may move
    others = [
        Record(image, "x", encode_mask(RING), "1"),
        Record(image, "y \ud83d", encode_mask(SQUARE), "1"),
        Record(image, "x", encode_mask(SQUARE), "2"),
        Record(image.with_name("b.png"), "x", encode_mask(SQUARE), "1"),
        Record(image, "x", MaskFile(image, 1), "1"),
        Record(image, "x", MaskFile(image, 2), "1"),
    ]
    assert len({record.key for record in [one, *others]}) == 7
    assert one.outline == others[1].outline == others[2].outline != others[0].outline


def test_neighbours_share_the_pixels_and_failures_do_not_stop_the_rest(image: Path) -> None:
    records = [
        Record(image, "a", encode_mask(SQUARE), "1"),
        Record(image, "b", "broken", "2"),
        Record(image, "c", encode_mask(RING), "3"),
        Record(image.with_name("missing.png"), "d", encode_mask(RING), "4"),
        Record(image, "e", encode_mask(RING), "5"),
    ]
    failures: list[tuple[str, str]] = []
    samples = list(load_samples(records, lambda record, error: failures.append((record.id, str(error)))))
    assert [sample.id for sample in samples] == ["1", "3", "5"]
    assert samples[0].image is samples[1].image is not samples[2].image
    assert [name for name, _ in failures] == ["2", "4"] and "missing.png" in failures[1][1]
    with pytest.raises(InputError, match="object 2"):
        list(load_samples(records))


# masks in files


def saved(path: Path, values: np.ndarray) -> Path:
    PilImage.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("value", [1, 7, 255])
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA"])
def test_binary_masks_in_every_mode(tmp_path: Path, value: int, mode: str) -> None:
    pixels = np.where(RING, value, 0).astype(np.uint8)
    picture = PilImage.fromarray(pixels)
    if mode == "P":
        picture.putpalette([0, 0, 0] + [128, 0, 0] * 255)
    elif mode != "L":
        picture = picture.convert(mode)
    picture.save(tmp_path / "m.png")
    values, void = read_mask_file(tmp_path / "m.png")
    assert np.array_equal(values, np.where(RING, value, 0)) and not void.any()


@pytest.mark.parametrize("solid", [255, 100])
@pytest.mark.parametrize("colour", [(0, 0, 0), (200, 200, 200)])
def test_masks_that_are_in_alpha_alone(tmp_path: Path, solid: int, colour: tuple[int, int, int]) -> None:
    """However transparent: what counts is the largest alpha."""
    pixels = np.zeros((*RING.shape, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = colour, np.where(RING, solid, 0)
    values, void = read_mask_file(saved(tmp_path / "alpha.png", pixels))
    assert np.array_equal(values > 0, RING) and not void.any()


def test_one_bit_and_sixteen_bit_masks(tmp_path: Path) -> None:
    PilImage.fromarray(RING).save(tmp_path / "1.png")
    assert np.array_equal(read_mask_file(tmp_path / "1.png")[0], RING)
    ids = np.where(RING, 300, np.where(SQUARE, 40_000, 0)).astype(np.uint16)
    PilImage.fromarray(ids).save(tmp_path / "16.png")
    values, void = read_mask_file(tmp_path / "16.png")
    assert np.array_equal(values, ids) and not void.any()
    assert read_mask_file(saved(tmp_path / "255.png", np.where(RING, 255, 300).astype(np.uint16)))[1].sum() == 0


def test_255_beside_other_values_is_void(tmp_path: Path, image: Path) -> None:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[1:3, 2:6], pixels[4] = 3, 255
    sample = Record(image, "x", MaskFile(saved(tmp_path / "m.png", pixels), 3), "1").load()
    assert np.array_equal(sample.mask, SQUARE)
    assert sample.void is not None and np.array_equal(sample.void, drawn(slice(4, 5), slice(0, 8)))


def test_pictures_that_are_no_masks(tmp_path: Path, image: Path) -> None:
    colour = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colour[0, 0] = (255, 0, 0)
    grey = np.arange(100, dtype=np.uint8).reshape(10, 10)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, pixels, words in (("c", colour, "in colour"), ("g", grey, "threshold"), ("broken", None, "cannot read")):
        path = tmp_path / f"{name}.png"
        if pixels is not None:
            saved(path, pixels)
        with pytest.raises(InputError, match=words) as caught:
            read_mask_file(path)
        assert str(path) in str(caught.value)
    turned = saved(tmp_path / "t.png", np.ones((WIDTH, HEIGHT), np.uint8))
    with pytest.raises(InputError, match="EXIF"):
        Record(image, "x", MaskFile(turned, 1), "1").load()
