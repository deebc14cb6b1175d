from __future__ import annotations

import base64
import io
import json
import math
import time
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image as PilImage

from label_studio_segagent.errors import RegionError
from label_studio_segagent.hlmat.actions import Click
from label_studio_segagent.hlmat.arrays import mask_box
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.labelstudio.brush import encode_brush
from label_studio_segagent.labelstudio.config import Control, Label
from label_studio_segagent.labelstudio.regions import Region, read_regions, write_region

H, W = 100, 200


def region(kind: str, **value: Any) -> Region:
    (found,) = read_regions([{"id": "r", "type": kind, "from_name": "c", "to_name": "image", "value": value}])
    return found


def control(shape: str, labels_from: str | None = None) -> Control:
    return Control("shape", shape, "image", (), labels_from)


def data_url(picture: PilImage.Image, **save: Any) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", **save)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def raw_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["brushlabels", "brush", "magicwand", "labels"])
def test_brush(kind: str, shapes: dict[str, np.ndarray]) -> None:
    mask = shapes["ring"]
    got = region(kind, format="rle", rle=encode_brush(mask), brushlabels=["Cat"]).mask(*mask.shape)
    assert np.array_equal(got, mask)


@pytest.mark.parametrize("kind", ["rectanglelabels", "rectangle", "labels"])
def test_rectangle_by_hand(kind: str) -> None:
    got = region(kind, x=10, y=20, width=25, height=50, rotation=0).mask(H, W)
    expected = np.zeros((H, W), bool)
    expected[20:70, 20:70] = True
    assert np.array_equal(got, expected)
    assert region(kind, x=10, y=20, width=25, height=50).box(H, W) == (20, 20, 70, 70)


@pytest.mark.parametrize(
    ("rotation", "box"),
    [
        # 40 x 20 pixels whose top-left corner stays at (100, 50); turned clockwise as it is seen.
        (0, (100, 50, 140, 70)),
        (90, (80, 50, 100, 90)),
        (180, (60, 30, 100, 50)),
        (270, (100, 10, 120, 50)),
        (-90, (100, 10, 120, 50)),
        (360, (100, 50, 140, 70)),
    ],
)
def test_rotated_rectangle(rotation: float, box: tuple[int, int, int, int]) -> None:
    got = region("rectanglelabels", x=50, y=50, width=20, height=20, rotation=rotation)
    mask = got.mask(H, W)
    assert got.box(H, W) == pytest.approx(box, abs=1)
    assert mask.sum() == pytest.approx(800, abs=60)


def test_rectangle_turned_by_an_odd_angle() -> None:
    """The percentages are of different lengths: the turn is in pixels, not in percent."""
    mask = region("rectanglelabels", x=50, y=10, width=20, height=40, rotation=45).mask(H, W)
    assert mask.sum() == pytest.approx(40 * 40, rel=0.03)
    # A square of 40 turned by 45 degrees about (100, 10): its corners are 40 / sqrt(2) = 28.3 apart in x and y.
    assert mask_box(mask) == pytest.approx((100 - 28.3, 10, 100 + 28.3, 10 + 56.6), abs=1.5)
    assert mask[38, 100] and not mask[12, 110]


def test_rectangle_beyond_the_image_is_cut_off() -> None:
    assert region("rectangle", x=-50, y=-50, width=100, height=100).mask(H, W).sum() == 100 * 50
    assert region("rectangle", x=0, y=0, width=1000, height=1000).mask(H, W).all()


def test_ellipse_by_hand() -> None:
    mask = region("ellipselabels", x=50, y=50, radiusX=20, radiusY=20).mask(H, W)  # 40 x 20 pixels
    assert mask.sum() == pytest.approx(math.pi * 40 * 20, rel=0.02)
    assert mask_box(mask) == pytest.approx((60, 30, 140, 70), abs=1)
    y, x = np.mgrid[:H, :W] + 0.5
    assert iou(mask, ((x - 100) / 40) ** 2 + ((y - 50) / 20) ** 2 <= 1) > 0.97


@pytest.mark.parametrize("rotation", [30, 90, -45])
def test_rotated_ellipse_turns_about_its_centre(rotation: float) -> None:
    mask = region("ellipse", x=50, y=50, radiusX=20, radiusY=10, rotation=rotation).mask(H, W)
    y, x = np.mgrid[:H, :W] + 0.5
    angle = math.radians(rotation)  # clockwise, as y points down
    along = (x - 100) * math.cos(angle) + (y - 50) * math.sin(angle)
    across = -(x - 100) * math.sin(angle) + (y - 50) * math.cos(angle)
    assert iou(mask, (along / 40) ** 2 + (across / 10) ** 2 <= 1) > 0.95


def test_polygon_by_hand() -> None:
    triangle = [[0, 0], [100, 0], [0, 100]]
    assert region("polygonlabels", points=triangle, closed=True).mask(H, W).sum() == pytest.approx(H * W / 2, rel=0.02)
    bow = region("polygon", points=[[0, 0], [100, 100], [100, 0], [0, 100]]).mask(H, W)
    assert bow.sum() == pytest.approx(H * W / 2, rel=0.05)


def test_closed_vector_is_a_polygon() -> None:
    corners = [(10, 10), (60, 10), (60, 40), (10, 40)]
    vertices = [{"id": str(i), "x": x, "y": y, "isBezier": False} for i, (x, y) in enumerate(corners)]
    got = region("vectorlabels", vertices=vertices, closed=True).mask(H, W)
    assert np.array_equal(got, region("polygon", points=[list(c) for c in corners]).mask(H, W)) and got.sum() == 3000
    with pytest.raises(RegionError, match="not closed"):
        region("vectorlabels", vertices=vertices, closed=False).mask(H, W)


def curve(x: float, y: float, arm: tuple[float, float] | None, number: int) -> dict[str, Any]:
    """A vertex with handles `arm` before and behind it, or a corner."""
    before = str(number - 1) if number else None
    vertex: dict[str, Any] = {"id": str(number), "x": x, "y": y, "isBezier": arm is not None, "prevPointId": before}
    if arm is not None:
        vertex["controlPoint1"] = {"x": x - arm[0], "y": y - arm[1]}
        vertex["controlPoint2"] = {"x": x + arm[0], "y": y + arm[1]}
    return vertex


FOUR = [((50, 10), (25, 0)), ((90, 50), (0, 25)), ((50, 90), (-25, 0)), ((10, 50), (0, -25))]


def test_curves_of_a_vector_are_curves() -> None:
    vertices = [curve(*at, arm, n) for n, (at, arm) in enumerate(FOUR)]
    mask = region("vectorlabels", vertices=vertices, closed=True).mask(72, 96)
    assert mask.sum() == pytest.approx(3611, rel=0.01)
    closing = [{**vertices[0], "prevPointId": "3"}, *vertices[1:]]  # as the editor closes it
    assert np.array_equal(region("vector", vertices=closing, closed=True).mask(72, 96), mask)
    shuffled = [vertices[i] for i in (2, 0, 3, 1)]  # followed by their ids
    assert iou(region("vector", vertices=shuffled, closed=True).mask(72, 96), mask) > 0.999
    bare = [{k: v for k, v in vertex.items() if k not in ("id", "prevPointId")} for vertex in vertices]
    assert np.array_equal(region("vector", vertices=bare, closed=True).mask(72, 96), mask)
    corners = [{**vertex, "isBezier": False} for vertex in vertices]
    assert region("vector", vertices=corners, closed=True).mask(72, 96).sum() == pytest.approx(2212, rel=0.01)
    half = [*vertices[:2], *corners[2:]]  # a curve with a handle at one end only is one, too
    assert 2212 < region("vector", vertices=half, closed=True).mask(72, 96).sum() < 3000


def test_two_curved_vertices_are_an_area() -> None:
    lens = [curve(20, 50, (0, -40), 0), curve(80, 50, (0, 40), 1)]
    mask = region("vectorlabels", vertices=lens, closed=True).mask(H, W)
    assert mask_box(mask) == pytest.approx((40, 20, 160, 80), abs=1.5) and mask[50, 100]
    with pytest.raises(RegionError, match="fewer than 3"):
        region("vector", vertices=[curve(1, 1, None, 0), curve(9, 9, None, 1)], closed=True).mask(H, W)


@pytest.mark.parametrize("handle", ["x", [1], {}, {"x": 1}, {"x": "1", "y": 1}, {"x": math.nan, "y": 1}])
def test_bad_handles(handle: Any) -> None:
    vertices = [curve(*at, arm, n) for n, (at, arm) in enumerate(FOUR)]
    vertices[2]["controlPoint1"] = handle
    with pytest.raises(RegionError):
        region("vector", vertices=vertices, closed=True).mask(H, W)


PIXELS: dict[str, dict[str, Any]] = {
    "polygonlabels": {"points": [[300, 200], [500, 200], [500, 400]]},
    "vectorlabels": {"vertices": [{"x": 300, "y": 200}, {"x": 500, "y": 200}, {"x": 500, "y": 400}], "closed": True},
    "ellipselabels": {"x": 400, "y": 300, "radiusX": 50, "radiusY": 50},
    "rectanglelabels": {"x": 300, "y": 200, "width": 80, "height": 60},
    "polygon": {"points": [[50, 50], [90, 50], [600, 400]]},  # partly on the image
}


@pytest.mark.parametrize("kind", PIXELS)
def test_pixels_instead_of_percent_are_asked_for(kind: str) -> None:
    with pytest.raises(RegionError, match=r"outside of the image: are these pixels\? Coordinates are percent"):
        region(kind, **PIXELS[kind]).mask(H, W)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "RGB", "I;16"])
def test_bitmasks_of_every_mode(mode: str, shapes: dict[str, np.ndarray]) -> None:
    """With alpha the mask is where anything is drawn, be it black; without, where the picture is not black."""
    mask = shapes["ring"]
    levels = mask.astype(np.uint8)
    if mode == "RGBA":
        picture = PilImage.fromarray(np.dstack([levels * 0] * 3 + [levels * 3]))
    elif mode == "LA":
        picture = PilImage.merge("LA", [PilImage.new("L", mask.shape[::-1]), PilImage.fromarray(levels * 255)])
    elif mode == "RGB":
        picture = PilImage.fromarray(np.dstack([levels * 200, levels * 0, levels * 0]))
    elif mode == "1":
        picture = PilImage.fromarray(mask)
    elif mode == "I;16":
        picture = PilImage.fromarray(levels.astype(np.uint16) * 65535)
    else:
        picture = PilImage.fromarray(levels * 255)
    if mode == "P":
        picture = PilImage.fromarray(levels)
        picture.putpalette([0, 0, 0, 0, 0, 0])
        url = data_url(picture, transparency=0)
    else:
        url = data_url(picture)
    assert np.array_equal(region("bitmasklabels", imageDataURL=url).mask(*mask.shape), mask)


@pytest.mark.parametrize("mode", ["opaque RGBA", "opaque LA", "alpha 100", "white, alpha", "soft alpha", "palette"])
def test_bitmaps_are_read_by_alpha_only_where_it_varies(mode: str, shapes: dict[str, np.ndarray]) -> None:
    mask = shapes["ring"]
    levels = mask.astype(np.uint8)
    full = np.full(mask.shape, 255, np.uint8)
    if mode == "opaque RGBA":
        picture = PilImage.fromarray(np.dstack([levels * 255] * 3 + [full]))
    elif mode == "opaque LA":
        picture = PilImage.merge("LA", [PilImage.fromarray(levels * 200), PilImage.fromarray(full)])
    elif mode == "alpha 100":
        picture = PilImage.fromarray(np.dstack([levels * 0] * 3 + [levels * 100]))
    elif mode == "white, alpha":
        picture = PilImage.fromarray(np.dstack([full] * 3 + [levels * 255]))
    elif mode == "soft alpha":
        edge = cv2.dilate(levels, np.ones((3, 3), np.uint8)) - levels
        picture = PilImage.fromarray(np.dstack([levels * 0] * 3 + [levels * 200 + edge * 60]))
    else:  # black and white, one of them named transparent that is not used
        picture = PilImage.fromarray(levels)
        picture.putpalette([0, 0, 0, 255, 255, 255, 9, 9, 9])
    url = data_url(picture, **({"transparency": 2} if mode == "palette" else {}))
    assert np.array_equal(region("bitmasklabels", imageDataURL=url).mask(*mask.shape), mask)
    prediction = region("brushlabels", maskDataURL=url)  # as some tools give it to the editor
    assert prediction.shape == "brush" and np.array_equal(prediction.mask(*mask.shape), mask)


def test_a_bitmap_of_one_colour_is_the_whole_image_if_it_is_there_at_all() -> None:
    for colour, share in (((0, 0, 0, 255), 1), ((255, 255, 255, 255), 1), ((9, 9, 9, 100), 1), ((0, 0, 0, 0), 0)):
        url = data_url(PilImage.new("RGBA", (W, H), colour))
        assert region("bitmask", imageDataURL=url).mask(H, W).mean() == share, colour
    assert not region("bitmask", imageDataURL=data_url(PilImage.new("L", (W, H)))).mask(H, W).any()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("colour", [(0, 0, 1), (1, 0, 0), (0, 0, 3)])
def test_the_darkest_colour_is_not_black(mode: str, colour: tuple[int, ...], shapes: dict[str, np.ndarray]) -> None:
    """The luminance of a class id written as a colour may round to 0."""
    mask = shapes["ring"]
    picture = PilImage.fromarray(mask[..., None] * np.uint8(colour)).convert("RGBA" if mode == "RGBA" else "RGB")
    if mode == "P":
        picture = PilImage.fromarray(mask.astype(np.uint8))
        picture.putpalette([0, 0, 0, *colour])
    assert np.array_equal(region("bitmask", imageDataURL=data_url(picture)).mask(*mask.shape), mask)


@pytest.mark.parametrize("value", [1, 300])
def test_bitmaps_of_16_bits(value: int, shapes: dict[str, np.ndarray]) -> None:
    mask = shapes["ring"]
    url = data_url(PilImage.fromarray(mask.astype(np.uint16) * value))
    assert np.array_equal(region("bitmask", imageDataURL=url).mask(*mask.shape), mask)


def test_fully_transparent_bitmask_is_empty() -> None:
    white = PilImage.new("RGBA", (W, H), (255, 255, 255, 0))
    assert not region("bitmask", imageDataURL=data_url(white)).mask(H, W).any()


# --- clicks and boxes ------------------------------------------------------------------------------------------------


def keypoint(**value: Any) -> Region:
    return region("keypointlabels", **value)


@pytest.mark.parametrize(
    ("x", "y", "column", "row"),
    [
        (0, 0, 0, 0),
        (100, 100, W - 1, H - 1),
        (50.25, 50.5, 100, 50),  # the centre of pixel (100, 50) is 100.5 of 200 and 50.5 of 100
        (0.25, 0.5, 0, 0),
        (99.75, 99.5, 199, 99),
    ],
)
def test_key_point(x: float, y: float, column: float, row: float) -> None:
    click = keypoint(x=x, y=y, width=0.3, keypointlabels=["Cat"]).click(H, W)
    assert (click.x, click.y, click.positive) == (pytest.approx(column), pytest.approx(row), True)


@pytest.mark.parametrize(("x", "y"), [(100.04, 50), (-0.0001, 50), (50, -0.6), (50, 100.5), (-0.3, 100.9)])
def test_a_key_point_by_a_hair_beside_the_image_is_on_its_border(x: float, y: float) -> None:
    click = keypoint(x=x, y=y).click(H, W)
    inside = keypoint(x=min(max(x, 0), 100), y=min(max(y, 0), 100)).click(H, W)
    assert (click.x, click.y) == (inside.x, inside.y)


def test_key_point_in_the_real_context_of_label_studio() -> None:
    """As the editor of 1.23 sends it."""
    result = {
        "original_width": 640,
        "original_height": 480,
        "image_rotation": 0,
        "value": {"x": 79.89, "y": 19.87, "width": 0.233, "labels": ["Cell"], "keypointlabels": ["Cell"]},
        "is_positive": True,
        "id": "GK4PMjjs5j",
        "from_name": "kp",
        "to_name": "image",
        "type": "keypointlabels",
        "origin": "manual",
    }
    (positive,) = read_regions([result])
    assert positive.click(480, 640) == Click(pytest.approx(510.796), pytest.approx(94.876), True)
    assert positive.labels == ("Cell",) and positive.shape == "keypoint" and positive.from_name == "kp"
    (negative,) = read_regions([{**result, "is_positive": False}])
    assert negative.click(480, 640).positive is False
    with pytest.raises(RegionError):
        positive.mask(480, 640)


@pytest.mark.parametrize("missing", [True, None, 1])
def test_only_false_is_negative(missing: Any) -> None:
    result = {"id": "k", "type": "keypoint", "value": {"x": 1, "y": 1}, "is_positive": missing}
    assert read_regions([result])[0].positive
    del result["is_positive"]
    assert read_regions([result])[0].positive


@pytest.mark.parametrize(("x", "y"), [(-1.1, 50), (50, 101.1), (1e5, 50), (-5, -5)])
def test_key_point_outside_the_image(x: float, y: float) -> None:
    with pytest.raises(RegionError, match="outside the image"):
        keypoint(x=x, y=y).click(H, W)


@given(st.floats(0, 100), st.floats(0, 100), st.integers(1, 50), st.integers(1, 50))
def test_key_points_are_always_in_the_image(x: float, y: float, height: int, width: int) -> None:
    click = keypoint(x=x, y=y).click(height, width)
    assert 0 <= click.x <= width - 1 and 0 <= click.y <= height - 1
    row, column = click.pixel(height, width)
    assert abs(column + 0.5 - x / 100 * width) <= 0.5 + 1e-6 or column in (0, width - 1)
    assert abs(row + 0.5 - y / 100 * height) <= 0.5 + 1e-6 or row in (0, height - 1)


def test_what_is_no_key_point() -> None:
    with pytest.raises(RegionError, match="not a key point"):
        region("rectanglelabels", x=1, y=1, width=5, height=5).click(H, W)
    with pytest.raises(RegionError, match="not a key point"):
        region("ellipse", x=1, y=1, radiusX=5, radiusY=5).click(H, W)


def test_box_of_an_empty_region() -> None:
    with pytest.raises(RegionError, match="covers no pixel"):
        region("rectanglelabels", x=10, y=10, width=0, height=0).box(H, W)
    with pytest.raises(RegionError, match="covers no pixel"):
        region("brush", rle=encode_brush(np.zeros((H, W), bool))).box(H, W)
    with pytest.raises(RegionError, match="covers no pixel"):
        region("rectangle", x=150, y=10, width=20, height=20).box(H, W)


# --- bad values ------------------------------------------------------------------------------------------------------

BAD_NUMBERS = [
    float("nan"), float("inf"), -float("inf"), None, "5", True, [5], {}, 1e7, 10**400, -(10**400),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_NUMBERS, ids=lambda bad: str(bad)[:12])
def test_bad_numbers(bad: Any) -> None:
    square = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0}
    circle = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 10, "rotation": 0}
    for kind, fields in (("rectanglelabels", square), ("ellipselabels", circle)):
        for name in fields:
            with pytest.raises(RegionError) as caught:
                region(kind, **{**fields, name: bad}).mask(H, W)
            assert name in str(caught.value) and len(str(caught.value)) < 300
    for point in ([bad, 5], [5, bad]):
        with pytest.raises(RegionError):
            region("polygonlabels", points=[[0, 0], point, [9, 9], [0, 9]]).mask(H, W)
    with pytest.raises(RegionError):
        region("vector", closed=True, vertices=[{"x": 0, "y": 0}, {"x": bad, "y": 0}, {"x": 9, "y": 9}]).mask(H, W)
    with pytest.raises(RegionError):
        keypoint(x=bad, y=5).click(H, W)


@pytest.mark.parametrize(
    "points",
    [
        None,
        5,
        "abc",
        {},
        [],
        [[1, 1]],
        [[1, 1], [2, 2]],
        [1, 2, 3],
        [[1], [2], [3]],
        [[1, 2, 3]] * 3,
        [None] * 3,
        [{}] * 3,
    ],
    ids=str,
)
def test_bad_points(points: Any) -> None:
    with pytest.raises(RegionError):
        region("polygonlabels", points=points).mask(H, W)
    with pytest.raises(RegionError):
        region("vectorlabels", vertices=points, closed=True).mask(H, W)


def test_two_point_polygon_says_what_is_wrong() -> None:
    with pytest.raises(RegionError, match="'r' has fewer than 3 points"):
        region("polygonlabels", points=[[1, 1], [2, 2]]).mask(H, W)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"x": 1, "y": 1},
        {"x": 1, "y": 1, "width": 1},
        {"radiusX": 5},
        {"choices": ["a"]},
    ],
)
@pytest.mark.parametrize("kind", ["brushlabels", "rectanglelabels", "keypointlabels", "labels"])
def test_no_area(kind: str, value: dict[str, Any]) -> None:
    with pytest.raises(RegionError):
        region(kind, **value).mask(H, W)


@pytest.mark.parametrize(
    "points",
    [
        [[0, 0], [1e6, 0], [1e6, 1e6]],
        [[0, 0], [-1e6, 1e6], [1e6, 1e6], [1e6, -1e6]],
        [[0, 0], [100, 100]] * 5000 + [[0, 100]],
    ],
)
def test_outlines_that_would_take_all_memory(points: list[list[float]]) -> None:
    start = time.process_time()
    with pytest.raises(RegionError, match="outline is"):
        region("polygonlabels", points=points).mask(3000, 4000)
    with pytest.raises(RegionError, match="outline is"):
        region("rectanglelabels", x=0, y=0, width=1e6, height=1e6, rotation=5).mask(3000, 4000)
    with pytest.raises(RegionError, match="outline is"):
        region("ellipselabels", x=0, y=0, radiusX=1e6, radiusY=1e6, rotation=5).mask(3000, 4000)
    assert time.process_time() - start < 1


def test_detailed_outlines_are_not_refused() -> None:
    turns = np.linspace(0, 2 * math.pi, 20_000, endpoint=False)
    radius = 40 + np.sin(turns * 300) * 3
    points = np.stack([50 + radius * np.cos(turns), 50 + radius * np.sin(turns)], axis=1).tolist()
    assert region("polygonlabels", points=points).mask(3000, 4000).mean() == pytest.approx(0.5, abs=0.05)


def test_sizes_must_agree(shapes: dict[str, np.ndarray]) -> None:
    mask = shapes["ring"]
    brush = region("brushlabels", rle=encode_brush(mask))
    bitmap = region("bitmasklabels", imageDataURL=data_url(PilImage.fromarray(mask)))
    for size in ((60, 40), (41, 60), (80, 120)):
        with pytest.raises(RegionError, match="another size"):
            brush.mask(size[0] + 1, size[1])
        with pytest.raises(RegionError, match=f"the bitmap is 60x40, but the image is {size[1]}x{size[0]}"):
            bitmap.mask(*size)


def huge_png(width: int, height: int) -> bytes:
    """A header that promises a picture of that size, and next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 6, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "url",
    [
        None,
        5,
        "",
        "data:image/png;base64,",
        "data:image/png;base64,****",
        "data:image/png;base64,ü",
        "data:image/jpeg;base64,AAAA",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        raw_url(b"not a picture"),
        raw_url(b"GIF89a" + bytes(50)),
        raw_url(b"\x89PNG\r\n\x1a\n"),
        raw_url(huge_png(60_000, 60_000)),
        raw_url(huge_png(W, H)),
    ],
    ids=lambda url: str(url)[:40],
)
def test_bad_bitmaps(url: Any) -> None:
    start = time.process_time()
    with pytest.raises(RegionError):
        region("bitmasklabels", imageDataURL=url).mask(H, W)
    assert time.process_time() - start < 1


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=4))
def test_damaged_bitmaps_are_a_mask_or_a_region_error(place: int, junk: bytes) -> None:
    file = io.BytesIO()
    PilImage.fromarray(np.tri(20, 30, dtype=np.uint8) * 255).save(file, "PNG")
    data = bytearray(file.getvalue())
    place %= len(data)
    data[place : place + len(junk)] = junk
    for damaged in (bytes(data), file.getvalue()[:place]):
        try:
            mask = region("bitmask", imageDataURL=raw_url(damaged)).mask(20, 30)
        except RegionError:
            continue
        assert mask.shape == (20, 30)


# --- lists of results ------------------------------------------------------------------------------------------------


def test_what_is_no_region_is_left_out() -> None:
    box = {"x": 1, "y": 1, "width": 5, "height": 5}
    results = [
        {"id": "1", "type": "choices", "from_name": "q", "to_name": "image", "value": {"choices": ["good"]}},
        {"id": "2", "type": "textarea", "value": {"text": ["hello"]}},
        {"type": "relation", "from_id": "5", "to_id": "6", "direction": "right"},
        {"id": "5", "type": "taxonomy", "value": {"taxonomy": [["a"]]}},
        {"id": "6", "type": "datetime", "value": {"datetime": "2020-01-01"}},
        {"id": "7", "type": "ranker", "value": {"ranker": {}}},
        None,
        "region",
        5,
        [],
        {},
        {"id": "3", "type": "rectanglelabels"},
        {"id": "3", "type": "rectanglelabels", "value": None},
        {"id": "4", "type": "rectanglelabels", "from_name": "r", "to_name": "image", "value": box},
    ]
    assert [r.id for r in read_regions(results)] == ["4"]
    assert read_regions([]) == read_regions(None) == read_regions("x") == read_regions({"id": "4"}) == []


def test_answers_about_a_region_do_not_hide_it() -> None:
    """Choices, ratings and dates per region carry the region's id and coordinates."""
    box = {"x": 10, "y": 10, "width": 50, "height": 50, "rotation": 0}
    base = {"id": "a", "to_name": "image"}
    shape = {**base, "from_name": "r", "type": "rectanglelabels", "value": {**box, "rectanglelabels": ["Cat"]}}
    extra = [
        {**base, "from_name": "q", "type": "choices", "value": {**box, "choices": ["blurred"]}},
        {**base, "from_name": "d", "type": "datetime", "value": {**box, "datetime": "2020-01-01"}},
        {**base, "from_name": "s", "type": "rating", "value": {**box, "rating": 4}},
    ]
    for results in ([shape, *extra], [*extra, shape]):
        (got,) = read_regions(results)
        assert (got.type, got.from_name, got.labels) == ("rectanglelabels", "r", ("Cat",))
        assert got.mask(H, W).sum() == 100 * 50


@pytest.mark.parametrize("reverse", [False, True])
def test_labels_and_shape_are_one_region(reverse: bool) -> None:
    points = [[0, 0], [50, 0], [50, 50]]
    pair = [
        {
            "id": "a",
            "type": "polygon",
            "from_name": "p",
            "to_name": "image",
            "value": {"points": points, "closed": True},
        },
        {"id": "a", "type": "labels", "from_name": "l", "to_name": "image", "value": {"labels": ["Cat", "Кот"]}},
    ]
    (got,) = read_regions(pair[::-1] if reverse else pair)
    assert (got.type, got.shape, got.from_name, got.labels) == ("polygon", "polygon", "p", ("Cat", "Кот"))
    assert got.mask(H, W).sum() == pytest.approx(H * W / 8, rel=0.05)


def test_a_negative_key_point_in_two_halves_stays_negative() -> None:
    halves = [
        {"id": "k", "type": "keypoint", "from_name": "k", "value": {"x": 50, "y": 50}, "is_positive": False},
        {"id": "k", "type": "labels", "from_name": "l", "value": {"x": 50, "y": 50, "labels": ["Cat"]}},
    ]
    for results in (halves, halves[::-1]):
        (got,) = read_regions(results)
        assert got.click(H, W).positive is False and got.labels == ("Cat",)


def test_order_and_ids() -> None:
    box = {"x": 1, "y": 1, "width": 5, "height": 5}
    results = [{"id": name, "type": "rectangle", "value": box} for name in ("b", "a", None, None, 7)]
    got = read_regions(results)
    assert [r.id for r in got][:2] == ["b", "a"] and len(got) == 5 and len({r.id for r in got}) == 5


@pytest.mark.parametrize(("value", "index"), [(0, 0), (3, 3), (None, None), ("1", None), (True, None), (1.5, None)])
def test_item_index(value: Any, index: int | None) -> None:
    result = {"id": "a", "type": "rectangle", "item_index": value, "value": {"x": 1, "y": 1, "width": 5, "height": 5}}
    assert read_regions([result])[0].item_index == index


@pytest.mark.parametrize("labels", [None, "Cat", 5, {}, {"a": 1}])
def test_labels_that_are_no_list(labels: Any) -> None:
    got = region("rectanglelabels", x=1, y=1, width=1, height=1, rectanglelabels=labels)
    assert got.labels == ()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from(
    [
        "rle",
        "imageDataURL",
        "points",
        "vertices",
        "closed",
        "x",
        "y",
        "width",
        "height",
        "radiusX",
        "radiusY",
        "rotation",
    ]
)
kinds = st.sampled_from(
    ["brushlabels", "brush", "bitmask", "polygon", "rectangle", "ellipselabels", "keypoint", "labels"]
)


@given(json_values, st.lists(st.tuples(kinds, st.dictionaries(fields, json_values | st.floats(-20, 120), max_size=8))))
def test_any_result_is_read_or_refused_with_a_region_error(
    junk: Any, results: list[tuple[str, dict[str, Any]]]
) -> None:
    read_regions(junk)
    made = [{"id": junk, "type": kind, "value": value, "item_index": junk} for kind, value in results]
    for number, result in enumerate(made):
        for got in read_regions([junk, {**result, "id": number}]) + read_regions(made):
            for read in (got.mask, got.box, got.click):
                try:
                    read(12, 17)
                except RegionError as error:
                    assert len(str(error)) < 500


# --- writing ---------------------------------------------------------------------------------------------------------

LABEL = Label("Katze", "Katze 🐈")


def fill_holes(mask: np.ndarray) -> np.ndarray:
    outside = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    _, labels = cv2.connectedComponents(outside, connectivity=4)
    return ~(labels == labels[0, 0])[1:-1, 1:-1]


@pytest.mark.parametrize("labels_from", [None, "labels"])
@pytest.mark.parametrize("kind", ["brush", "bitmask"])
def test_exact_shapes_survive(shape: np.ndarray, kind: str, labels_from: str | None) -> None:
    results = json.loads(json.dumps(write_region(shape, control(kind, labels_from), LABEL, 0.5)))
    (got,) = read_regions(results)
    assert np.array_equal(got.mask(*shape.shape), shape)
    assert got.labels == ("Katze 🐈",) and got.shape == kind and got.from_name == "shape"


@pytest.mark.parametrize("labels_from", [None, "labels"])
def test_polygons_survive_but_for_holes(shape: np.ndarray, labels_from: str | None) -> None:
    results = write_region(shape, control("polygon", labels_from), LABEL, 0.5)
    regions = read_regions(json.loads(json.dumps(results)))
    union = np.any([got.mask(*shape.shape) for got in regions], axis=0)
    assert iou(union, fill_holes(shape)) >= 0.98
    holes = int((fill_holes(shape) & ~shape).any())
    for result in results:
        assert result["value"]["closed"] is True
        assert ("meta" in result) == bool(holes)
        if holes:
            assert result["meta"] == {"text": ["1 hole(s) filled: a polygon cannot have holes"]}


@pytest.mark.parametrize("labels_from", [None, "labels"])
def test_rectangles_are_the_box_around(shape: np.ndarray, labels_from: str | None) -> None:
    (got,) = read_regions(write_region(shape, control("rectangle", labels_from), LABEL, 0.5))
    assert got.box(*shape.shape) == mask_box(shape)


def test_parts_become_regions_of_their_own(shapes: dict[str, np.ndarray]) -> None:
    mask = shapes["two parts"]
    results = write_region(mask, control("polygon"), LABEL, 0.5)
    assert len(results) == 2 and len({result["id"] for result in results}) == 2
    pairs = write_region(mask, control("polygon", "labels"), LABEL, 0.5)
    assert [result["type"] for result in pairs] == ["polygon", "labels", "polygon", "labels"]
    assert pairs[0]["id"] == pairs[1]["id"] != pairs[2]["id"] == pairs[3]["id"]
    assert len(write_region(mask, control("brush"), LABEL, 0.5)) == 1


def test_fields_of_a_result(shapes: dict[str, np.ndarray]) -> None:
    (result,) = write_region(shapes["disc"], control("brush"), LABEL, 0.123456, item_index=2)
    value, key = result.pop("value"), result.pop("id")
    assert result == {
        "from_name": "shape",
        "to_name": "image",
        "type": "brushlabels",
        "original_width": 60,
        "original_height": 40,
        "image_rotation": 0,
        "score": 0.1235,
        "origin": "prediction",
        "item_index": 2,
    }
    assert set(value) == {"format", "rle", "brushlabels"} and value["format"] == "rle"
    assert value["brushlabels"] == ["Katze 🐈"]
    assert isinstance(key, str) and len(key) >= 8


def test_fields_of_a_pair(shapes: dict[str, np.ndarray]) -> None:
    shape, labels = write_region(shapes["disc"], control("rectangle", "animals"), LABEL, np.float32(0.5))
    assert (shape["type"], shape["from_name"]) == ("rectangle", "shape")
    assert (labels["type"], labels["from_name"]) == ("labels", "animals")
    assert shape["id"] == labels["id"] and labels["value"]["labels"] == ["Katze 🐈"]
    assert "labels" not in shape["value"] and "item_index" not in shape
    assert type(shape["score"]) is float
    assert {name: shape["value"][name] for name in shape["value"]} == {
        name: labels["value"][name] for name in labels["value"] if name != "labels"
    }


@pytest.mark.parametrize("kind", ["brush", "bitmask", "polygon", "rectangle"])
def test_ids_are_fresh_each_time(kind: str, shapes: dict[str, np.ndarray]) -> None:
    ids = [result["id"] for _ in range(50) for result in write_region(shapes["disc"], control(kind), LABEL, 0.5)]
    assert len(set(ids)) == 50


@pytest.mark.parametrize("kind", ["brush", "bitmask", "polygon", "rectangle"])
def test_an_empty_mask_gives_nothing(kind: str) -> None:
    assert write_region(np.zeros((5, 5), bool), control(kind), LABEL, 0.5) == []


def test_percentages_do_not_depend_on_the_aspect() -> None:
    mask = np.zeros((H, W), bool)
    mask[20:70, 20:70] = True
    (rectangle,) = write_region(mask, control("rectangle"), LABEL, 0.5)
    assert {name: rectangle["value"][name] for name in ("x", "y", "width", "height", "rotation")} == {
        "x": 10, "y": 20, "width": 25, "height": 50, "rotation": 0,
    }  # fmt: skip
    (polygon,) = write_region(mask, control("polygon"), LABEL, 0.5)
    corners = np.array(sorted(polygon["value"]["points"]))
    assert corners == pytest.approx(np.array([[10, 20], [10, 70], [35, 20], [35, 70]]), abs=0.6)


def test_bitmask_is_black_on_transparent() -> None:
    mask = np.eye(4, 6, dtype=bool)
    (result,) = write_region(mask, control("bitmask"), LABEL, 0.5)
    head, _, data = result["value"]["imageDataURL"].partition(",")
    picture = PilImage.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/png;base64" and picture.mode == "RGBA" and picture.size == (6, 4)
    pixels = np.asarray(picture)
    assert not pixels[..., :3].any() and np.array_equal(pixels[..., 3], mask.astype(np.uint8) * 255)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)).filter(lambda mask: bool(mask.any())))
def test_any_mask_survives_in_every_shape(mask: np.ndarray) -> None:
    for kind in ("brush", "bitmask"):
        (got,) = read_regions(write_region(mask, control(kind), LABEL, 1.0))
        assert np.array_equal(got.mask(*mask.shape), mask)
    (got,) = read_regions(write_region(mask, control("rectangle"), LABEL, 1.0))
    assert got.box(*mask.shape) == mask_box(mask)
    for part in read_regions(write_region(mask, control("polygon"), LABEL, 1.0)):
        assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in part.value["points"])
