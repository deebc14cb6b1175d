"""Pictures as they come: what `decode_image` and `read_image` make of them is the same."""

from __future__ import annotations

import io
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage

from label_studio_segagent.datasets.image_file import decode_image, picture_frame, read_image
from label_studio_segagent.errors import ImageError, InputError
from label_studio_segagent.labelstudio.images import ImageLoader


def encoded(picture: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    made = picture if isinstance(picture, PilImage.Image) else PilImage.fromarray(picture)
    made.save(file, kind, **options)
    return file.getvalue()


def grey(*levels: float, dtype: Any) -> np.ndarray:
    return np.array([levels], dtype)


def palette(**options: Any) -> bytes:
    picture = PilImage.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    return encoded(picture, **options)


def deep(suffix: str, *pixels: tuple[int, ...]) -> bytes:
    """A picture with 16 bits in each of its channels, which are in the order RGBA."""
    array = np.array([pixels], np.uint16)
    array[..., :3] = array[..., 2::-1]
    return bytes(cv2.imencode(suffix, array)[1])


def turned(orientation: int) -> bytes:
    exif = PilImage.Exif()
    exif[0x0112] = orientation
    return encoded(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8), exif=exif)


PICTURES: dict[str, tuple[bytes, list[list[int]] | list[int]]] = {
    "8 bit": (encoded(grey(0, 7, 200, dtype=np.uint8)), [0, 7, 200]),
    "16 bit PNG, an object of 4095 on 1200": (encoded(grey(1200, 4095, dtype=np.uint16)), [74, 255]),
    "16 bit TIFF": (encoded(grey(0, 30000, 60000, dtype=np.uint16), "TIFF"), [0, 127, 255]),
    "16 bit that holds 8": (encoded(grey(0, 7, 200, dtype=np.uint16)), [0, 7, 200]),
    "16 bit colours PNG": (deep(".png", (0, 1200, 4095), (600, 0, 0)), [[0, 74, 255], [37, 0, 0]]),
    "16 bit colours TIFF": (deep(".tiff", (0, 1200, 4095), (600, 0, 0)), [[0, 74, 255], [37, 0, 0]]),
    "16 bit colours, all of them": (deep(".png", (0, 0, 65535), (257, 514, 0)), [[0, 0, 255], [1, 2, 0]]),
    "16 bit colours with alpha": (deep(".png", (0, 0, 4095, 65535), (9, 9, 9, 0)), [[0, 0, 255], [255] * 3]),
    "signed 32 bit": (encoded(grey(-1000, 0, 1000, 3000, dtype=np.int32), "TIFF"), [0, 63, 127, 255]),
    "negative only": (encoded(grey(-300, -200, -100, dtype=np.int32), "TIFF"), [0, 127, 255]),
    "32 bit": (encoded(grey(0, 50000, 100000, dtype=np.int32), "TIFF"), [0, 127, 255]),
    "float 0..1": (encoded(grey(0, 0.25, 1, dtype=np.float32), "TIFF"), [0, 63, 255]),
    "float up to a half": (encoded(grey(0, 0.25, 0.5, dtype=np.float32), "TIFF"), [0, 63, 127]),
    "float 0..255": (encoded(grey(0, 1.5, 200, dtype=np.float32), "TIFF"), [0, 1, 200]),
    "large floats": (encoded(grey(0, 1e6, 2e6, dtype=np.float32), "TIFF"), [0, 127, 255]),
    "negative floats": (encoded(grey(-1, 0, 1, dtype=np.float32), "TIFF"), [0, 127, 255]),
    "holes in floats": (encoded(grey(0, np.nan, 1, np.inf, -np.inf, dtype=np.float32), "TIFF"), [0, 0, 255, 255, 0]),
    "nothing but holes": (encoded(grey(np.nan, np.nan, dtype=np.float32), "TIFF"), [0, 0]),
    "RGBA": (encoded(np.array([[[200, 0, 0, 255], [200, 0, 0, 0]]], np.uint8)), [[200, 0, 0], [255, 255, 255]]),
    "palette": (palette(), [[10, 20, 30], [200, 100, 50]]),
    "palette with transparency": (palette(transparency=0), [[255, 255, 255], [200, 100, 50]]),
    "mirrored": (turned(2), [[0, 0, 255], [0, 255, 0], [255, 0, 0]]),
    "upside down": (turned(3), [[0, 0, 255], [0, 255, 0], [255, 0, 0]]),
    "AVIF": (encoded(np.full((1, 2, 3), 90, np.uint8), "AVIF", quality=100), [[90] * 3, [90] * 3]),
    "PGM": (encoded(grey(3, 200, dtype=np.uint8), "PPM"), [3, 200]),
}


@pytest.mark.parametrize("name", list(PICTURES))
def test_tasks_and_data_sets_see_the_same_picture(name: str, tmp_path: Path) -> None:
    data, pixels = PICTURES[name]
    expected = np.array([pixel if isinstance(pixel, list) else [pixel] * 3 for pixel in pixels])
    (tmp_path / "picture").write_bytes(data)
    file = read_image(tmp_path / "picture")
    assert file.dtype == np.uint8 and np.abs(file[0].astype(int) - expected).max() <= (2 if name == "AVIF" else 0)
    assert np.array_equal(decode_image(data), file)


def test_both_readings_of_an_exif_tag(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(turned(6))
    assert read_image(path).shape[:2] == (3, 1) and read_image(path, exif="ignored").shape[:2] == (1, 3)
    assert read_image(path, (1, 3)).shape[:2] == (1, 3) and read_image(path, (3, 1)).shape[:2] == (3, 1)
    assert read_image(path, (5, 5)).shape[:2] == (3, 1)
    assert picture_frame(path) == (3, 1, "applied") and picture_frame(path, (1, 3)) == (1, 3, "ignored")
    with pytest.raises(InputError, match="--exif applied"):
        picture_frame(path, (3, 1), "ignored")


def test_pixels_of_a_file_that_is_ones_own_may_be_many_but_not_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    PilImage.new("L", (100, 100)).save(path)
    monkeypatch.setattr(PilImage, "MAX_IMAGE_PIXELS", 6000)  # Pillow warns here, and refuses twice as many
    assert read_image(path).shape == (100, 100, 3)
    monkeypatch.setattr(PilImage, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(InputError, match=rf"{re.escape(str(path))}.*larger than the 8000 pixels allowed"):
        read_image(path)


def ftyp(*brands: bytes) -> bytes:
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands)
    return (len(body) + 4).to_bytes(4, "big") + body + bytes(60)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty (0 bytes)"),
        (b"<!DOCTYPE html><html><body>Log in</body></html>", "web page (HTML), as a log-in page is"),
        (b"\xef\xbb\xbf\n  <HTML>", "LABEL_STUDIO_API_KEY"),
        (b"<!-- comment --><html lang=en>", "web page (HTML)"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG drawing"),
        (b'{"detail": "Invalid token."}', "JSON"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"%PDF-1.7", "PDF"),
        (bytes(128) + b"DICM" + bytes(50), "DICOM"),
        (ftyp(b"isom", b"mp42"), "video"),
        (ftyp(b"avif", b"mif1"), "AVIF"),
        (b"neither this nor that", "it starts with b'neither this nor'"),
    ],
)
def test_what_is_no_picture_is_called_by_its_name(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=rf"not an image that can be read: .*{re.escape(words)}") as caught:
        decode_image(data)
    assert "BytesIO" not in str(caught.value)
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        read_image(tmp_path / "a.jpg")
    assert str(tmp_path / "a.jpg") in str(caught.value) and "BytesIO" not in str(caught.value)


def test_heic_photographs_are_read_where_pillow_heif_is_installed_or_say_so() -> None:
    if find_spec("pillow_heif") is None:
        for brands in ((b"heic", b"mif1"), (b"mif1", b"heic"), (b"heix",)):
            with pytest.raises(ImageError, match="HEIC photograph: `pip install pillow-heif`"):
                decode_image(ftyp(*brands))
        return
    decode_image(encoded(grey(0, 1, dtype=np.uint8)))  # registers the format
    image = decode_image(encoded(np.full((64, 64, 3), (200, 90, 40), np.uint8), "HEIF", quality=95))
    assert image.shape == (64, 64, 3) and np.abs(image.astype(int) - (200, 90, 40)).max() < 8
    with pytest.raises(ImageError, match="pillow-heif cannot read"):
        decode_image(ftyp(b"heic", b"mif1"))


def test_the_loader_of_tasks_has_no_reader_of_its_own(tmp_path: Path) -> None:
    from label_studio_segagent.datasets import image_file
    from label_studio_segagent.labelstudio import images

    assert images.decode_image is image_file.decode_image
    loader = ImageLoader(None, tmp_path)
    with pytest.raises(ImageError, match="data:image/png;base64.*empty"):
        loader.load("data:image/png;base64,")
    loader.close()
