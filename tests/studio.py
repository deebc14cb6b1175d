"""A small server that answers /api/tasks as Label Studio does, and annotations to put on it."""

from __future__ import annotations

import io
import json
from typing import Any
from urllib.parse import parse_qs

import cv2
import numpy as np
from PIL import Image as PilImage

from label_studio_segagent.labelstudio.config import LabelConfig
from label_studio_segagent.labelstudio.regions import write_region

HEIGHT, WIDTH = 30, 50

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image">
    <Label value="Katze" hint="the cat 🐈"/><Label value="dog" alias="hound"/>
  </BrushLabels>
  <PolygonLabels name="polygon" toName="image"><Label value="flag"/></PolygonLabels>
  <BitmaskLabels name="bitmask" toName="image"><Label value="bowl"/></BitmaskLabels>
  <RectangleLabels name="box" toName="image"><Label value="Katze"/><Label value="sign"/></RectangleLabels>
  <EllipseLabels name="ellipse" toName="image"><Label value="Katze"/><Label value="sign"/></EllipseLabels>
  <BrushLabels name="note" toName="image" segagent="ignore"><Label value="Katze"/></BrushLabels>
  <KeyPointLabels name="point" toName="image"><Label value="Katze"/></KeyPointLabels>
</View>"""
OUTPUTS = {label.name: (control, label) for control, label in LabelConfig.parse(CONFIG).outputs("image", {})}


def ring(column: int = 15) -> np.ndarray:
    mask = cv2.circle(cv2.circle(np.zeros((HEIGHT, WIDTH), np.uint8), (column, 15), 9, 1, -1), (column, 15), 4, 0, -1)
    mask[1:3, 40:45] = 1  # a second part
    return mask.astype(bool)


def drawn(mask: np.ndarray, label: str = "Katze") -> list[dict[str, Any]]:
    return write_region(mask, *OUTPUTS[label], 0.9)


def shape(kind: str, label: str, **value: Any) -> list[dict[str, Any]]:
    name = {"rectangle": "box"}.get(kind, kind)
    base = {"id": f"{kind}1", "type": f"{kind}labels", "from_name": name, "to_name": "image"}
    return [{**base, "value": {f"{kind}labels": [label], **value}}]


RECTANGLE: dict[str, Any] = {"x": 20, "y": 10, "width": 40, "height": 50, "rotation": 0}
ELLIPSE: dict[str, Any] = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 30, "rotation": 0}


def annotation(number: int, result: Any, **fields: Any) -> dict[str, Any]:
    return {"id": number, "result": result, "was_cancelled": False, "updated_at": "2025-11-23T05:41:09Z", **fields}


def task(number: int, *annotations: Any, predictions: Any = (), **fields: Any) -> dict[str, Any]:
    return {
        "id": number, "data": {"image": "/data/upload/1/a-cat.png"}, "annotations": list(annotations),
        "predictions": list(predictions), **fields,
    }  # fmt: skip


class Studio:
    """Tasks behind /api/tasks, chosen and ordered by its query; uploads are a photograph."""

    def __init__(self, web: Any) -> None:
        self.web, self.tasks, self.queries = web, [], []
        self.config = CONFIG
        file = io.BytesIO()
        picture = PilImage.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8))
        picture.save(file, "PNG")
        self.photo = file.getvalue()
        web.routes.update({
            "/api/projects/7/": lambda _: {"id": 7, "label_config": self.config},
            "/api/tasks": self.page,
            "/data/upload/1/a-cat.png": lambda _: self.photo,
            "/data/upload/1/b-cat.png": lambda _: self.photo,
        })  # fmt: skip

    def page(self, request: Any) -> Any:
        query = {name: values[0] for name, values in parse_qs(request.query).items()}
        self.queries.append(query)
        chosen = json.loads(query["query"])
        values = {item["filter"].removeprefix("filter:tasks:"): item["value"] for item in chosen["filters"]["items"]}
        assert values["total_annotations"] == 0 and chosen["ordering"] == ["tasks:id"]
        wanted = chosen.get("selectedItems", {}).get("included")
        found = [
            t
            for t in sorted(self.tasks, key=lambda t: t["id"])
            if t["id"] > values.get("id", 0) and (wanted is None or t["id"] in wanted)
            if any(not a.get("was_cancelled") for a in t["annotations"] if isinstance(a, dict))
        ]
        return {"total": len(found), "tasks": found[: int(query["page_size"])]}
