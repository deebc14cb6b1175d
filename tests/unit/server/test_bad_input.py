"""The bad input table of the requirements: each case has a clear outcome, and the rest of the batch is kept.

Bad regions of smart tools are in test_interact.py, damaged and odd images in labelstudio/test_images.py.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.server.models import build_predictor

Body = Callable[..., dict[str, Any]]


# Broken requests


@pytest.mark.parametrize("path", ["/predict", "/webhook"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{broken",
        b'{"tasks": [',
        b"null",
        b"[]",
        b"[{}]",
        b'"text"',
        b"7",
        b"NaN",
        b"\xff\xfe{}",
        b"\x00",
        b"<xml/>",
        b"[" * 100_000,
        b'{"tasks":' * 50_000,
        b'{"tasks": ' + b"9" * 10_000 + b"}",
    ],
    ids=lambda data: repr(data[:20]),
)
def test_broken_json_is_400(client: FlaskClient, path: str, data: bytes) -> None:
    response = client.post(path, data=data, content_type="application/json")
    assert (response.status_code, response.json) == (400, {"error": "the body must be a JSON object"})


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_the_content_type_does_not_matter(client: FlaskClient, body: Body, kind: str) -> None:
    import json

    response = client.post("/predict", data=json.dumps(body()), content_type=kind)
    assert response.status_code == 200 and response.json["results"][0]["result"]


@pytest.mark.parametrize("tasks", [None, [], {}, {"0": {}}, "x", 5, True])
@pytest.mark.parametrize("context", [None, {"result": []}])
def test_no_tasks_is_400(client: FlaskClient, body: Body, tasks: Any, context: Any) -> None:
    response = client.post("/predict", json=body(context=context) | {"tasks": tasks})
    assert response.status_code == 400 and "'tasks' must be a list" in response.json["error"]


@pytest.mark.parametrize("config", [None, {}, [], 5])
def test_no_config_is_400(client: FlaskClient, body: Body, config: Any) -> None:
    response = client.post("/predict", json=body() | {"label_config": config})
    assert response.status_code == 400 and "'label_config'" in response.json["error"]


def test_a_request_without_anything_is_400(client: FlaskClient) -> None:
    assert client.post("/predict", json={}).status_code == 400


# Bad images in a batch


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.fixture
def studio(web: Any, serve_web: Any, web_answer: Any, scene: Sample) -> Any:
    """A Label Studio whose images go wrong in every way, and another server that must never be asked."""
    web.other = serve_web()
    web.routes.update(
        {
            "/data/upload/1/404.png": web_answer(b"", 404),
            "/data/upload/1/401.png": web_answer(b"", 401),
            "/data/upload/1/500.png": web_answer(b"", 500),
            "/data/upload/1/page.png": b"<html>log in</html>",
            "/data/upload/1/empty.png": b"",
            "/data/upload/1/cut.png": png_header(30, 20),
            "/data/upload/1/huge.png": png_header(20_000, 10_000),
            "/data/upload/1/away.png": web_answer(b"", 302, {"Location": f"{web.other.url}/x.png"}),
            "/data/upload/1/meta.png": web_answer(b"", 302, {"Location": "http://169.254.169.254/latest/meta-data/"}),
            "/data/upload/1/loop.png": web_answer(b"", 302, {"Location": "loop.png"}),
            "/tasks/2/presign/": web_answer(b"", 302, {"Location": f"{web.other.url}/bucket/x.png"}),
        }
    )
    yield web
    assert web.other.asked == []


@pytest.fixture
def connected(studio: Any, settings: Any, make_app: Any) -> Iterator[FlaskClient]:
    """A client of a server that is configured for this Label Studio."""
    predictor = build_predictor(settings(label_studio_url=studio.url, label_studio_api_key="0" * 40))
    yield make_app(predictor).test_client()
    predictor.close()


BAD_IMAGES = {
    "404": ("/data/upload/1/404.png", "'/data/upload/1/404.png' answers HTTP 404"),
    "401": ("/data/upload/1/401.png", "'/data/upload/1/401.png' answers HTTP 401: set LABEL_STUDIO_API_KEY"),
    "500": ("/data/upload/1/500.png", "'/data/upload/1/500.png' answers HTTP 500"),
    "not an image": ("/data/upload/1/page.png", "not an image that can be read"),
    "empty": ("/data/upload/1/empty.png", "not an image that can be read"),
    "cut off": ("/data/upload/1/cut.png", "not an image that can be read"),
    "200 megapixels": ("/data/upload/1/huge.png", "pixels allowed"),
    "file://": ("file:///etc/passwd", "'file:///etc/passwd' is refused"),
    "a path": ("/etc/passwd", "'/etc/passwd' is refused"),
    "traversal": ("/data/../etc/passwd", "'/data/../etc/passwd' leaves its folder"),
    "link-local": ("http://169.254.169.254/latest/meta-data/", "host '169.254.169.254' (port 80)"),
    "another host": ("http://images.example/cat.png", "SEGAGENT_ALLOWED_IMAGE_HOSTS"),
    "another host, no scheme": ("//images.example/data/cat.png", "is refused"),
    "redirect to another host": ("/data/upload/1/away.png", "is not allowed"),
    "redirect to link-local": ("/data/upload/1/meta.png", "host '169.254.169.254' (port 80)"),
    "redirect loop": ("/data/upload/1/loop.png", "redirected more than 4 times"),
    "cloud, other host": ("s3://bucket/cat.png", "is not allowed"),
    "data URI, no image": ("data:image/png;base64,aGVsbG8=", "not an image that can be read"),
    "data URI, text": ("data:text/html,hello", "must be data:image"),
    "control character": ("/data/upload/1/\x00.png", "cannot be fetched"),
    "half a surrogate pair": ("/data/upload/1/\ud800.png", "cannot be fetched"),
}


@pytest.mark.parametrize(("url", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_a_bad_image_loses_only_its_task(connected: FlaskClient, body: Body, task: Any, url: str, message: str) -> None:
    response = connected.post("/predict", json=body([task(1), task(2, image=url), task(3)]))
    assert response.status_code == 200
    first, second, third = response.json["results"]
    assert len(first["result"]) == len(third["result"]) == 1 and second == {}
    (failure,) = response.json["failures"]
    assert failure["task"] == 2 and message in failure["error"]


@pytest.mark.parametrize(("url", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_a_bad_image_under_a_smart_tool_is_422(
    connected: FlaskClient, body: Body, task: Any, url: str, message: str
) -> None:
    point = {
        "id": "k", "type": "keypointlabels", "from_name": "point", "to_name": "image", "is_positive": True,
        "value": {"x": 50, "y": 50, "keypointlabels": ["object"]},
    }  # fmt: skip
    response = connected.post("/predict", json=body([task(2, image=url)], context={"result": [point]}))
    assert response.status_code == 422 and message in response.json["error"]


def test_all_of_them_at_once(connected: FlaskClient, body: Body, task: Any, caplog: pytest.LogCaptureFixture) -> None:
    tasks = [task(100)] + [task(2, image=url) for url, _ in BAD_IMAGES.values()] + [task(200)]
    answer = connected.post("/predict", json=body(tasks)).json
    assert [bool(result) for result in answer["results"]] == [True] + [False] * len(BAD_IMAGES) + [True]
    assert len(answer["failures"]) == len(BAD_IMAGES)
    assert "Traceback" not in caplog.text and "0" * 40 not in caplog.text
    assert np.isfinite(answer["results"][0]["score"])
