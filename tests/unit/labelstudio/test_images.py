from __future__ import annotations

import base64
import io
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage

from label_studio_segagent.datasets.image_file import decode_image
from label_studio_segagent.errors import ConfigError, ImageError
from label_studio_segagent.labelstudio import images as module
from label_studio_segagent.labelstudio.client import LabelStudioClient
from label_studio_segagent.labelstudio.images import ImageLoader

TOKEN = "0123456789abcdef0123456789abcdef01234567"
UPLOAD = "/data/upload/1/0a1b2c3d-cat.png"
PIXELS = 10**6


def picture(height: int = 6, width: int = 9, seed: int = 0) -> np.ndarray:
    """Blocks of colour that JPEG keeps apart, uint8 (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(array: np.ndarray | PilImage.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image = array if isinstance(array, PilImage.Image) else PilImage.fromarray(array)
    image.save(file, kind, **options)
    return file.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header says width x height; only decoding would show that there is no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"never read") + chunk(b"IEND", b"")


def data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


MakeLoader = Callable[..., ImageLoader]


@pytest.fixture
def make_loader(tmp_path: Path) -> Iterator[MakeLoader]:
    """`make_loader(web, **options)`: a loader with `web` as its Label Studio."""
    loaders = []

    def make(web: Any = None, *, cache: Path = tmp_path / "cache", **options: Any) -> ImageLoader:
        client = None if web is None else LabelStudioClient(web.url, TOKEN)
        loaders.append(ImageLoader(client, cache, **{"max_pixels": PIXELS, "max_bytes": 10**6, **options}))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


@pytest.fixture
def studio(web: Any) -> Any:
    """A Label Studio with one upload."""
    web.routes[UPLOAD] = encoded(picture())
    return web


# Decoding


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG"])
def test_formats(kind: str) -> None:
    blocks = np.kron(picture(2, 3), np.ones((16, 16, 1), np.uint8))
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    image = decode_image(encoded(blocks, kind, **options), PIXELS)
    assert image.dtype == np.uint8 and image.shape == (32, 48, 3)
    assert np.abs(image.astype(int) - blocks).max() <= (30 if kind == "JPEG" else 0)


def turned(reference: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores for `reference`, by the EXIF specification (row 0 / column 0 is which visual side)."""
    sides = {
        1: lambda a: a,  # top, left
        2: lambda a: a[:, ::-1],  # top, right
        3: lambda a: a[::-1, ::-1],  # bottom, right
        4: lambda a: a[::-1],  # bottom, left
        5: lambda a: a.transpose(1, 0, 2),  # left, top
        6: lambda a: a[:, ::-1].transpose(1, 0, 2),  # right, top
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
        8: lambda a: a[::-1].transpose(1, 0, 2),  # left, bottom
    }
    return np.ascontiguousarray(sides[orientation](reference))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_is_applied_once(orientation: int, kind: str) -> None:
    reference = np.kron(picture(3, 5, seed=4), np.ones((16, 16, 1), np.uint8))
    exif = PilImage.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    data = encoded(turned(reference, orientation), kind, exif=exif, **options)
    image = decode_image(data, PIXELS)
    assert image.shape == reference.shape
    assert np.abs(image.astype(int) - reference).max() <= (30 if kind == "JPEG" else 0)


def test_transparent_pixels_look_as_on_a_white_page() -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0] = [(200, 0, 0, 255), (200, 0, 0, 0), (0, 0, 0, 128)]
    image = decode_image(encoded(pixels), PIXELS)
    assert image[0].tolist() == [[200, 0, 0], [255, 255, 255], [127, 127, 127]]


def test_palette_images_with_and_without_transparency() -> None:
    palette = PilImage.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert decode_image(encoded(palette), PIXELS)[0].tolist() == [[10, 20, 30], [200, 100, 50]]
    assert decode_image(encoded(palette, transparency=0), PIXELS)[0].tolist() == [[255, 255, 255], [200, 100, 50]]


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_images(mode: str) -> None:
    grey = PilImage.new(mode, (2, 1))
    grey.putpixel((1, 0), (255, 255) if mode == "LA" else 255)
    grey.putpixel((0, 0), (0, 255) if mode == "LA" else 0)
    assert decode_image(encoded(grey), PIXELS)[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.array([[0, 1000, 2000, 4000]], np.uint16)
    assert decode_image(encoded(levels), PIXELS)[0, :, 0].tolist() == [0, 63, 127, 255]


def test_cmyk_jpeg() -> None:
    cyan = PilImage.new("CMYK", (16, 16), (255, 0, 0, 0))
    red, green, blue = decode_image(encoded(cyan, "JPEG", quality=95), PIXELS)[8, 8].tolist()
    assert red < 60 and green > 150 and blue > 150


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [PilImage.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, lossless=True)
    assert decode_image(data, PIXELS)[2, 2].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>not found</html>",
        b"%PDF-1.7 ...",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0garbage",
        b"GIF89a",
        b"II*\0\xff\xff\xff\xff",
    ],
)
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(ImageError, match="not an image that can be read"):
        decode_image(data, PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    data = encoded(np.kron(picture(8, 8), np.ones((20, 20, 1), np.uint8)), kind)
    with pytest.raises(ImageError, match="not an image that can be read"):
        decode_image(data[: len(data) // 2], PIXELS)


def test_flipped_bytes_give_an_image_or_an_image_error() -> None:
    """Nothing else may escape: struct.error, KeyError, ZeroDivisionError … are all known from image plugins."""
    random = np.random.default_rng(1)
    exif = PilImage.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    exif.get_ifd(0x8769)[0x9003] = "2026:01:01 00:00:00"
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"):
        data = encoded(picture(12, 12), kind, **({"exif": exif} if kind in ("PNG", "JPEG", "TIFF", "WEBP") else {}))
        for _ in range(150):
            broken = np.frombuffer(data, np.uint8).copy()
            where = random.integers(0, min(len(broken), 200), 4)
            broken[where] = random.integers(0, 256, 4, dtype=np.uint8)
            try:
                assert decode_image(broken.tobytes(), 10**5).ndim == 3
            except ImageError:
                pass


@pytest.mark.parametrize(("width", "height"), [(20_000, 10_000), (2**31 - 1, 2**31 - 1), (1001, 1000)])
def test_too_many_pixels_are_refused_by_the_header(width: int, height: int) -> None:
    # The data of this file cannot be decoded: an error about its size comes before any try to do so.
    with pytest.raises(ImageError, match="pixels.*allowed"):
        decode_image(huge_png(width, height), PIXELS)


def test_exactly_the_allowed_pixels_are_accepted() -> None:
    assert decode_image(encoded(picture(10, 10)), 100).shape == (10, 10, 3)
    with pytest.raises(ImageError, match=r"10x10 pixels, more than the 99 allowed.*SEGAGENT_MAX_PIXELS"):
        decode_image(encoded(picture(10, 10)), 99)


# data: URIs


def test_data_uri(make_loader: MakeLoader) -> None:
    assert (make_loader().load(data_uri(encoded(picture()))) == picture()).all()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:text/html;base64,AAAA", "must be data:image"),
        ("data:image/png,plain", "must be data:image"),
        ("data:image/png;base64", "must be data:image|not an image"),
        ("data:", "must be data:image"),
        ("data:image/png;base64,@@@@", "not valid base64"),
        ("data:image/png;base64,AAA", "not valid base64"),
        ("data:image/png;base64,é", "not valid base64|not an image"),
        ("data:image/png;base64,", "not an image"),
        (data_uri(b"no image at all"), "not an image"),
        (data_uri(bytes(1_000_010)), "larger than 1000000 bytes"),
        (data_uri(huge_png(20_000, 10_000)), "pixels.*allowed"),
    ],
)
def test_bad_data_uris(make_loader: MakeLoader, url: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        make_loader().load(url)


# What is fetched, and what is refused before any request


def test_an_upload_is_fetched_with_the_token(studio: Any, make_loader: MakeLoader) -> None:
    assert (make_loader(studio).load(UPLOAD) == picture()).all()
    assert [(r.path, r.token) for r in studio.asked] == [(UPLOAD, f"Token {TOKEN}")]


def test_the_full_url_of_label_studio_works_too(studio: Any, make_loader: MakeLoader) -> None:
    assert (make_loader(studio).load(studio.url + UPLOAD) == picture()).all()
    assert studio.asked[0].token == f"Token {TOKEN}"


@pytest.mark.parametrize("path", ["/data/local-files/?d=a/b.png", "/storage-data/uploaded/?filepath=upload/1/x.png"])
def test_other_paths_of_label_studio(studio: Any, make_loader: MakeLoader, path: str) -> None:
    studio.routes[path.partition("?")[0]] = encoded(picture())
    make_loader(studio).load(path)
    assert f"{studio.asked[0].path}?{studio.asked[0].query}" == path


RESOLVED = "/tasks/12/resolve/?fileuri=czM6Ly9idWNrZXQvYS5wbmc="


@pytest.mark.parametrize("kind", ["tasks", "projects"])
@pytest.mark.parametrize("verb", ["resolve", "presign"])
@pytest.mark.parametrize("redirected", [True, False])
def test_files_that_label_studio_resolves(
    studio: Any, make_loader: MakeLoader, web_answer: Any, kind: str, verb: str, redirected: bool
) -> None:
    path = f"/{kind}/12/{verb}/"
    studio.routes[path] = web_answer(b"", 303, {"Location": UPLOAD}) if redirected else encoded(picture())
    assert (make_loader(studio).load(f"{path}?fileuri=czM6Ly9i") == picture()).all()
    assert {request.token for request in studio.asked} == {f"Token {TOKEN}"}
    assert (studio.asked[0].path, studio.asked[0].query) == (path, "fileuri=czM6Ly9i")


@pytest.fixture
def prefixed(web: Any, tmp_path: Path) -> Iterator[tuple[Any, ImageLoader]]:
    """A Label Studio below a path of its host, and a loader for it."""
    for path in (UPLOAD, "/tasks/12/resolve/"):
        web.routes[f"/labelstudio{path}"] = encoded(picture())
    web.routes["/other/a.png"] = web.routes["/data/upload/1/a.png"] = encoded(picture(seed=1))
    loader = ImageLoader(LabelStudioClient(f"{web.url}/labelstudio/", TOKEN), tmp_path / "cache", max_pixels=PIXELS)
    yield web, loader
    loader.close()


@pytest.mark.parametrize(
    "url", [f"/labelstudio{UPLOAD}", UPLOAD, f"/labelstudio{RESOLVED}", RESOLVED, f"{{url}}/labelstudio{UPLOAD}"]
)
def test_a_label_studio_below_a_path(prefixed: tuple[Any, ImageLoader], url: str) -> None:
    web, loader = prefixed
    assert (loader.load(url.format(url=web.url)) == picture()).all()
    assert all(request.path.startswith("/labelstudio/") for request in web.asked)
    assert [request.token for request in web.asked] == [f"Token {TOKEN}"]


@pytest.mark.parametrize(
    "url",
    [
        "/other/a.png", "/labelstudio/etc/passwd", "/labelstudio", "/labelstudioX/data/upload/1/a.png",
        "/labelstudio/data/../../other/a.png", "/labelstudio/data/%2e%2e/%2e%2e/other/a.png",
        "/labelstudio/labelstudio/api/users/", "{url}/other/a.png", "{url}/labelstudio/../other/a.png",
        "{url}/labelstudio/%2e%2e/other/a.png", "{url}/labelstudioX/a.png", "{url}/data/upload/1/a.png",
        "//evil.example/labelstudio/data/a.png",
    ],
)  # fmt: skip
def test_what_is_beside_that_path_is_not_label_studio(prefixed: tuple[Any, ImageLoader], url: str) -> None:
    web, loader = prefixed
    with pytest.raises(ImageError, match="refused|not allowed|leaves its folder"):
        loader.load(url.format(url=web.url))
    assert web.asked == []


def test_the_token_does_not_follow_a_redirect_to_what_is_beside_that_path(
    web: Any, tmp_path: Path, web_answer: Any
) -> None:
    web.routes[f"/labelstudio{UPLOAD}"] = web_answer(b"", 302, {"Location": "/other/a.png"})
    web.routes["/other/a.png"] = encoded(picture())
    client = LabelStudioClient(f"{web.url}/labelstudio", TOKEN)
    refused = ImageLoader(client, tmp_path / "a", max_pixels=PIXELS)
    with pytest.raises(ImageError, match="not allowed"):
        refused.load(UPLOAD)
    allowed = ImageLoader(client, tmp_path / "b", max_pixels=PIXELS, allowed_hosts=[f"127.0.0.1:{web.port}"])
    assert (allowed.load(UPLOAD) == picture()).all()
    assert web.asked[-1].path == "/other/a.png" and web.asked[-1].token is None
    allowed.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/tasks/12/resolve/",
        "/tasks/12/resolve/?other=1",
        "/tasks/12/delete/?fileuri=x",
        "/tasks/../api/resolve/?fileuri=x",
        "/tasks/12/../../api/users/?fileuri=x",
        "/tasks/x/resolve/?fileuri=x",
        "/api/tasks/12/resolve/?fileuri=x",
        "cat.png",
        "/etc/passwd",
        "/database/x.png",
        "/api/users/",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "file://localhost/etc/passwd",
        "ftp://127.0.0.1/x.png",
        "gopher://127.0.0.1/x",
        "javascript:alert(1)",
        "//evil.example/data/x.png",
        "///data/x.png",
        "\\\\evil.example\\x.png",
        "/data/../etc/passwd",
        "/data/upload/../../api/users/",
        "/data/%2e%2e/api/users/",
        "/data/..%2fapi",
        "/data/..\\api",
        "/storage-data/../api/",
        "http://",
        "http:///data/x.png",
        "http://[::1",
        "http://evil.example/x.png",
        "https://evil.example:8080/x.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1]/x.png",
        "http://2852039166/latest/",
        "http://0/x.png",
        "http://localhost/x.png",
        "http://127.0.0.1/x.png",
        "http://host:99999/x.png",
    ],
)
def test_refused_without_a_request(studio: Any, make_loader: MakeLoader, url: str) -> None:
    with pytest.raises(ImageError) as caught:
        make_loader(studio).load(url)
    assert (
        "refused" in str(caught.value)
        or "not allowed" in str(caught.value)
        or "leaves its folder" in str(caught.value)
        or "URL" in str(caught.value)
        or "must start with" in str(caught.value)
    )
    assert studio.asked == []


@pytest.mark.parametrize(
    "template",
    [
        "http://user@127.0.0.1:{port}/data/upload/1/x.png",
        "http://user:word@127.0.0.1:{port}/x.png",
        "http://127.0.0.1:{port}@evil.example/x.png",
        "http://127.0.0.1:{port}\\@evil.example/x.png",
        "http://127.0.0.1:{port}.evil.example/x.png",
        "http://localhost:{port}/x.png",
        "https://127.0.0.1:{port}/x.png",
        "http://127.0.0.1:{port}%00.evil.example/x.png",
    ],
)
def test_what_only_looks_like_label_studio(studio: Any, make_loader: MakeLoader, template: str) -> None:
    with pytest.raises(ImageError):
        make_loader(studio).load(template.format(port=studio.port))
    assert studio.asked == []


@pytest.mark.parametrize("url", ["/data/upload/1/a\nb.png", "/data/upload/1/\x00.png", "/data/upload/\ud800.png"])
def test_characters_that_no_url_has_are_an_image_error(studio: Any, make_loader: MakeLoader, url: str) -> None:
    with pytest.raises(ImageError):
        make_loader(studio).load(url)


def test_a_url_of_any_length_is_an_image_error(studio: Any, make_loader: MakeLoader) -> None:
    with pytest.raises(ImageError) as caught:
        make_loader(studio).load("/data/upload/" + "x" * 200_000)
    assert len(str(caught.value)) < 1000


def test_without_label_studio_paths_name_the_setting(make_loader: MakeLoader) -> None:
    with pytest.raises(ImageError, match="LABEL_STUDIO_URL is not set"):
        make_loader(None).load(UPLOAD)


def test_an_allowed_host_is_fetched_without_the_token(studio: Any, serve_web: Any, make_loader: MakeLoader) -> None:
    other = serve_web({"/x.png": encoded(picture(seed=2))})
    loader = make_loader(studio, allowed_hosts=[f"127.0.0.1:{other.port}"])
    assert (loader.load(f"{other.url}/x.png") == picture(seed=2)).all()
    assert [r.token for r in other.asked] == [None]


def test_a_host_is_allowed_on_its_usual_port_only(serve_web: Any, make_loader: MakeLoader) -> None:
    other = serve_web({"/x.png": encoded(picture())})
    with pytest.raises(ImageError, match=r"host '127.0.0.1' \(port \d+\).*SEGAGENT_ALLOWED_IMAGE_HOSTS"):
        make_loader(None, allowed_hosts=["127.0.0.1"]).load(f"{other.url}/x.png")
    assert other.asked == []


# Redirects


def test_a_redirect_on_label_studio_is_followed_with_the_token(
    studio: Any, make_loader: MakeLoader, web_answer: Any
) -> None:
    studio.routes["/data/upload/1/old.png"] = web_answer(b"", 302, {"Location": "0a1b2c3d-cat.png"})
    assert (make_loader(studio).load("/data/upload/1/old.png") == picture()).all()
    assert [r.token for r in studio.asked] == 2 * [f"Token {TOKEN}"]


@pytest.mark.parametrize("location", ["{other}/x.png", "//127.0.0.1:{port}/x.png"])
def test_a_redirect_to_another_host_is_refused(
    studio: Any, serve_web: Any, make_loader: MakeLoader, web_answer: Any, location: str
) -> None:
    other = serve_web({"/x.png": encoded(picture())})
    where = location.format(other=other.url, port=other.port)
    studio.routes[UPLOAD] = web_answer(b"", 302, {"Location": where})
    with pytest.raises(ImageError, match=rf"port {other.port}.*is not allowed"):
        make_loader(studio).load(UPLOAD)
    assert other.asked == []


@pytest.mark.parametrize("location", ["file:///etc/passwd", "http://169.254.169.254/latest/", "http://[", "data:,x"])
def test_a_redirect_to_what_is_no_image_host_is_refused(
    studio: Any, make_loader: MakeLoader, web_answer: Any, location: str
) -> None:
    studio.routes[UPLOAD] = web_answer(b"", 302, {"Location": location})
    with pytest.raises(ImageError):
        make_loader(studio).load(UPLOAD)
    assert len(studio.asked) == 1


def test_an_allowed_redirect_never_carries_the_token(
    studio: Any, serve_web: Any, make_loader: MakeLoader, web_answer: Any
) -> None:
    other = serve_web({"/x.png": encoded(picture(seed=3))})
    studio.routes[UPLOAD] = web_answer(b"", 307, {"Location": f"{other.url}/x.png"})
    loader = make_loader(studio, allowed_hosts=[f"127.0.0.1:{other.port}"])
    assert (loader.load(UPLOAD) == picture(seed=3)).all()
    assert [r.token for r in other.asked] == [None]
    assert TOKEN not in str([r.headers for r in other.asked])


def test_a_redirect_loop_ends(studio: Any, make_loader: MakeLoader, web_answer: Any) -> None:
    studio.routes[UPLOAD] = web_answer(b"", 302, {"Location": UPLOAD})
    with pytest.raises(ImageError, match="redirected more than 4 times"):
        make_loader(studio).load(UPLOAD)
    assert len(studio.asked) == 5


# Cloud storage


@pytest.mark.parametrize("uri", ["s3://bucket/a cat?.png", "gs://bucket/x.png", "azure-blob://box/x.png"])
def test_cloud_uris_are_presigned_by_label_studio(
    studio: Any, serve_web: Any, make_loader: MakeLoader, web_answer: Any, uri: str
) -> None:
    bucket = serve_web({"/signed": encoded(picture(seed=5))})
    studio.routes["/tasks/7/presign/"] = web_answer(b"", 302, {"Location": f"{bucket.url}/signed?sig=1"})
    loader = make_loader(studio, allowed_hosts=[f"127.0.0.1:{bucket.port}"])
    assert (loader.load(uri, 7) == picture(seed=5)).all()
    asked = studio.asked[0]
    assert base64.urlsafe_b64decode(asked.query.removeprefix("fileuri=")).decode() == uri
    assert asked.token == f"Token {TOKEN}" and bucket.asked[0].token is None


def test_a_cloud_host_must_be_allowed(studio: Any, serve_web: Any, make_loader: MakeLoader, web_answer: Any) -> None:
    bucket = serve_web({"/signed": encoded(picture())})
    studio.routes["/tasks/7/presign/"] = web_answer(b"", 302, {"Location": f"{bucket.url}/signed"})
    with pytest.raises(ImageError, match="SEGAGENT_ALLOWED_IMAGE_HOSTS"):
        make_loader(studio).load("s3://bucket/x.png", 7)
    assert bucket.asked == []


@pytest.mark.parametrize("task", [None, "../../api/users", "7/../..", -1, 1.5, True])
def test_a_cloud_uri_needs_a_task_number(studio: Any, make_loader: MakeLoader, task: Any) -> None:
    with pytest.raises(ImageError, match="needs a task"):
        make_loader(studio).load("s3://bucket/x.png", task)
    assert studio.asked == []


# Answers


@pytest.mark.parametrize("status", [401, 403])
def test_no_access_names_the_setting(studio: Any, make_loader: MakeLoader, web_answer: Any, status: int) -> None:
    studio.routes[UPLOAD] = web_answer(b"", status)
    with pytest.raises(ImageError, match=f"HTTP {status}: set LABEL_STUDIO_API_KEY") as caught:
        make_loader(studio).load(UPLOAD)
    assert UPLOAD in str(caught.value) and TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "it is empty"),
        (
            b"<!doctype html><form action='/user/login/'>",
            "log-in page.*LABEL_STUDIO_API_KEY",
        ),
        (bytes([0, 0, 0, 20]) + b"ftypheic" + bytes(60), "HEIC"),
    ],
)
def test_answers_that_are_no_image_say_what_they_are(
    studio: Any, make_loader: MakeLoader, answer: bytes, words: str
) -> None:
    studio.routes[UPLOAD] = answer
    with pytest.raises(ImageError, match=f"{UPLOAD}.*not an image that can be read: .*{words}") as caught:
        make_loader(studio).load(UPLOAD)
    assert "BytesIO" not in str(caught.value)


def test_a_redirect_to_the_log_in_page_is_called_so(studio: Any, make_loader: MakeLoader, web_answer: Any) -> None:
    studio.routes[UPLOAD] = web_answer(b"", 302, {"Location": f"/user/login/?next={UPLOAD}"})
    studio.routes["/user/login/"] = b"<!doctype html>..."
    with pytest.raises(ImageError, match="log-in page.*token"):
        make_loader(studio).load(UPLOAD)


@pytest.mark.parametrize("status", [204, 304, 404, 500, 503])
def test_other_statuses_are_named(studio: Any, make_loader: MakeLoader, web_answer: Any, status: int) -> None:
    studio.routes[UPLOAD] = web_answer(encoded(picture()) if status >= 400 else b"", status)
    with pytest.raises(ImageError, match=f"{UPLOAD}.*HTTP {status}"):
        make_loader(studio).load(UPLOAD)


def test_a_refused_personal_access_token_is_an_image_error(studio: Any, tmp_path: Path) -> None:
    loader = ImageLoader(LabelStudioClient(studio.url, "a.b.c"), tmp_path)
    with pytest.raises(ImageError, match="refused the personal access token"):
        loader.load(UPLOAD)
    loader.close()


@pytest.mark.parametrize("data", [b"", b"<html>log in</html>", encoded(picture(40, 40))[:300]])
def test_an_answer_that_is_no_image_is_not_kept(
    studio: Any, make_loader: MakeLoader, tmp_path: Path, data: bytes
) -> None:
    studio.routes[UPLOAD] = data
    loader = make_loader(studio)
    with pytest.raises(ImageError, match="not an image that can be read"):
        loader.load(UPLOAD)
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "cache"])
    studio.routes[UPLOAD] = encoded(picture())
    assert (loader.load(UPLOAD) == picture()).all()


def test_two_hundred_megapixels_are_refused(studio: Any, make_loader: MakeLoader) -> None:
    studio.routes[UPLOAD] = huge_png(20_000, 10_000)
    with pytest.raises(ImageError, match="pixels.*allowed"):
        make_loader(studio).load(UPLOAD)


def test_a_server_that_never_stops_is_cut_off(studio: Any, make_loader: MakeLoader, web_answer: Any) -> None:
    sent = []

    def endless() -> Iterator[bytes]:
        while len(sent) < 10_000:
            sent.append(65536)
            yield bytes(65536)

    studio.routes[UPLOAD] = lambda _: web_answer(endless())
    with pytest.raises(ImageError, match="larger than 1000000 bytes; SEGAGENT_MAX_IMAGE_BYTES"):
        make_loader(studio).load(UPLOAD)
    time.sleep(0.1)
    assert sum(sent) < 100 * 10**6  # it got far, by buffers, but was not read on


def test_a_slow_drip_is_cut_off(
    studio: Any, make_loader: MakeLoader, web_answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_DOWNLOAD_SECONDS", 0.3)

    def drip() -> Iterator[bytes]:
        for _ in range(100):
            time.sleep(0.05)
            yield b"x"

    studio.routes[UPLOAD] = lambda _: web_answer(drip())
    start = time.monotonic()
    with pytest.raises(ImageError, match="did not arrive within 0.3 seconds"):
        make_loader(studio).load(UPLOAD)
    assert time.monotonic() - start < 3


def test_nobody_listens(make_loader: MakeLoader, serve_web: Any) -> None:
    loader = make_loader(None, allowed_hosts=["127.0.0.1:1"])
    with pytest.raises(ImageError, match=r"'http://127\.0\.0\.1:1/x\.png' cannot be fetched: ConnectError"):
        loader.load("http://127.0.0.1:1/x.png")


# The cache


def test_a_second_load_needs_no_request(studio: Any, make_loader: MakeLoader) -> None:
    loader = make_loader(studio)
    first = loader.load(UPLOAD)
    first[:] = 0  # what a caller does to its copy does not matter
    assert (loader.load(UPLOAD) == picture()).all()
    assert (make_loader(studio).load(UPLOAD) == picture()).all()  # nor does a restart
    assert len(studio.asked) == 1


def test_data_uris_are_not_cached(make_loader: MakeLoader, tmp_path: Path) -> None:
    make_loader().load(data_uri(encoded(picture())))
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_what_differs_in_the_query_is_another_image(studio: Any, make_loader: MakeLoader) -> None:
    shown = {"d=a.png": 1, "d=b.png": 2}
    studio.routes["/data/local-files/"] = lambda request: encoded(picture(seed=shown[request.query]))
    loader = make_loader(studio)
    for query, seed in shown.items():
        assert (loader.load(f"/data/local-files/?{query}") == picture(seed=seed)).all()


def age(folder: Path, seconds: float) -> None:
    for file in folder.iterdir():
        then = time.time() - seconds
        os.utime(file, (then, then))


def test_uploads_are_kept_and_other_images_become_stale(
    studio: Any, serve_web: Any, make_loader: MakeLoader, tmp_path: Path
) -> None:
    other = serve_web({"/data/upload/x.png": encoded(picture())})  # the path alone does not make it an upload
    loader = make_loader(studio, allowed_hosts=[f"127.0.0.1:{other.port}"])
    for seconds, requests in ((0, 1), (3000, 1), (4000, 2), (100, 2)):
        if seconds:
            age(tmp_path / "cache", seconds)
        loader.load(UPLOAD)
        loader.load(f"{other.url}/data/upload/x.png")
        assert (len(studio.asked), len(other.asked)) == (1, requests)


def test_using_an_image_does_not_make_it_fresh(serve_web: Any, make_loader: MakeLoader, tmp_path: Path) -> None:
    other = serve_web({"/x.png": encoded(picture())})
    loader = make_loader(None, allowed_hosts=[f"127.0.0.1:{other.port}"])
    loader.load(f"{other.url}/x.png")
    age(tmp_path / "cache", 3599)
    loader.load(f"{other.url}/x.png")
    time.sleep(1.2)
    loader.load(f"{other.url}/x.png")
    assert len(other.asked) == 2


def test_the_cache_stays_within_its_size_and_drops_the_least_recently_used(
    studio: Any, make_loader: MakeLoader, tmp_path: Path
) -> None:
    names = [f"/data/upload/1/{i}.png" for i in range(4)]
    for i, name in enumerate(names):
        studio.routes[name] = encoded(picture(30, 30, seed=i))
    size = max(len(studio.routes[name]) for name in names)
    loader = make_loader(studio, cache_bytes=3 * size + 10)
    for name in names[:3]:
        loader.load(name)
        time.sleep(0.02)
    loader.load(names[0])  # used again: now the second is the oldest
    time.sleep(0.02)
    loader.load(names[3])
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 3 and sum(file.stat().st_size for file in files) <= 3 * size + 10
    studio.asked.clear()
    for name in (names[0], names[2], names[3]):
        loader.load(name)
    assert studio.asked == []
    loader.load(names[1])
    assert studio.paths() == [names[1]]


def test_a_cache_of_no_bytes_keeps_nothing(studio: Any, make_loader: MakeLoader, tmp_path: Path) -> None:
    loader = make_loader(studio, cache_bytes=0)
    for _ in range(2):
        assert (loader.load(UPLOAD) == picture()).all()
    assert len(studio.asked) == 2 and list((tmp_path / "cache").iterdir()) == []


def test_simultaneous_loads_and_no_partial_file_to_be_seen(
    studio: Any, make_loader: MakeLoader, tmp_path: Path, web_answer: Any
) -> None:
    image = picture(200, 200)
    data = encoded(image)
    pieces = [data[i : i + 20_000] for i in range(0, len(data), 20_000)]

    def slowly(_: Any) -> Any:
        return web_answer(piece for piece in pieces if time.sleep(0.005) is None)

    studio.routes[UPLOAD] = slowly
    loader, done, seen = make_loader(studio), threading.Event(), set()

    def watch() -> None:
        while not done.is_set():
            for file in (tmp_path / "cache").glob("[!.]*"):
                seen.add(file.stat().st_size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(loader.load, 16 * [UPLOAD]))
    done.set()
    watcher.join()
    assert all((result == image).all() for result in results)
    assert seen <= {len(data)}
    assert [file.stat().st_size for file in (tmp_path / "cache").iterdir()] == [len(data)]


@pytest.mark.parametrize("damage", [b"", b"garbage", encoded(picture())[:60]])
def test_a_damaged_file_is_fetched_again(
    studio: Any, make_loader: MakeLoader, tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    loader = make_loader(studio)
    loader.load(UPLOAD)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(damage)
    assert (loader.load(UPLOAD) == picture()).all()
    assert file.read_bytes() == encoded(picture())
    assert len(studio.asked) == 2 and "damaged" in caplog.text


def test_a_folder_that_cannot_be_made_costs_time_only(
    studio: Any, make_loader: MakeLoader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    loader = make_loader(studio, cache=tmp_path / "file" / "cache")
    for _ in range(2):
        assert (loader.load(UPLOAD) == picture()).all()
    assert len(studio.asked) == 2 and "cannot write to the image cache" in caplog.text


def test_a_folder_that_was_removed_is_made_again(studio: Any, make_loader: MakeLoader, tmp_path: Path) -> None:
    loader = make_loader(studio)
    loader.load(UPLOAD)
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    (tmp_path / "cache").rmdir()
    loader.load(UPLOAD)
    loader.load(UPLOAD)
    assert len(studio.asked) == 2


def test_a_full_disk_costs_time_only_and_leaves_nothing_behind(
    studio: Any, make_loader: MakeLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "replace", full)
    assert (make_loader(studio).load(UPLOAD) == picture()).all()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wrong_label_studio_url_is_a_config_error() -> None:
    with pytest.raises(ConfigError):
        LabelStudioClient("localhost:8080")
