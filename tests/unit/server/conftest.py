"""The real server with the real untrained models, on one easy image given as a data: URI."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image as PilImage

from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.server.app import create_app
from label_studio_segagent.server.models import build_predictor
from label_studio_segagent.server.predictor import Predictor
from label_studio_segagent.server.settings import Settings, load_settings

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="object"/></BrushLabels>
  <KeyPointLabels name="point" toName="image" smart="true"><Label value="object"/></KeyPointLabels>
  <RectangleLabels name="box" toName="image" smart="true"><Label value="object"/></RectangleLabels>
</View>"""


class StrictClient(FlaskClient):
    """A test client that refuses answers that are not strict JSON: NaN and Infinity never get past it."""

    def open(self, *args: Any, **kwargs: Any) -> Any:
        response = super().open(*args, **kwargs)
        if response.mimetype == "application/json":
            json.loads(response.get_data(as_text=True), parse_constant=_refuse)
        return response


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} in a JSON answer")


@pytest.fixture(autouse=True)
def _clean(clean_environment: None) -> None:
    pass


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    """`settings(**overrides)`, with a data folder of this test, and the policy that has no weights."""
    return lambda **overrides: load_settings(**{"data_dir": tmp_path / "data", "policy": "saliency", **overrides})


@pytest.fixture
def predictor(settings: Callable[..., Settings]) -> Iterator[Predictor]:
    """A real predictor; its answers do not change when weights are trained anew."""
    predictor = build_predictor(settings())
    yield predictor
    predictor.close()


@pytest.fixture
def make_app(settings: Callable[..., Settings], predictor: Predictor) -> Callable[..., Flask]:
    """`make_app(predictor=…, **settings)`."""

    def make(given: Any = None, **overrides: Any) -> Flask:
        app = create_app(settings(**overrides), given or predictor)
        app.test_client_class = StrictClient
        return app

    return make


@pytest.fixture
def client(make_app: Callable[..., Flask]) -> FlaskClient:
    """A client of the default server."""
    return make_app().test_client()


@pytest.fixture
def config() -> str:
    """A labelling config with brush, smart key points and smart rectangles, and one label."""
    return CONFIG


@pytest.fixture
def uri() -> Callable[[np.ndarray], str]:
    """`uri(image)`: the image as a data: URI."""

    def make(image: np.ndarray) -> str:
        file = io.BytesIO()
        PilImage.fromarray(image).save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

    return make


@pytest.fixture
def task(scene: Sample, uri: Callable[[np.ndarray], str]) -> Callable[..., dict[str, Any]]:
    """`task(7)`: a task as Label Studio sends it, with the scene as its image, or with the `data` given."""

    def make(number: int = 1, **data: Any) -> dict[str, Any]:
        return {"id": number, "data": data or {"image": uri(scene.image)}, "annotations": [], "predictions": []}

    return make


@pytest.fixture
def body(task: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`body(tasks, config, context)`: a /predict request as Label Studio sends it."""

    def make(tasks: Any = None, config: str = CONFIG, context: Any = None) -> dict[str, Any]:
        return {
            "tasks": [task()] if tasks is None else tasks,
            "project": "1.1795382579",
            "label_config": config,
            "params": {"login": None, "password": None, "context": context},
        }

    return make


@pytest.fixture
def check_prediction(predictor: Predictor) -> Callable[[Any], list[dict[str, Any]]]:
    """Everything that Label Studio needs of a prediction; returns its regions."""

    def check(prediction: Any) -> list[dict[str, Any]]:
        assert set(prediction) == {"result", "score", "model_version"}
        assert prediction["model_version"] == predictor.model_version
        assert isinstance(prediction["score"], float) and math.isfinite(prediction["score"])
        assert 0 <= prediction["score"] <= 1
        for region in prediction["result"]:
            assert isinstance(region["score"], float) and 0 <= region["score"] <= 1
            assert region["image_rotation"] == 0 and region["value"]
        return list(prediction["result"])

    return check
