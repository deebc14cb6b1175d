"""Generated scenes: shapes on a textured ground, exact masks, and expressions that mean exactly one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from label_studio_segagent.hlmat.arrays import Image, Mask
from label_studio_segagent.hlmat.trajectory import Sample

__all__ = ["COLOURS", "KINDS", "RELATIONS", "SIDE", "SIZES", "Scene", "Shape", "expressions", "make_samples",
           "make_scene", "words"]  # fmt: skip

SIDE = 80
"""Height and width of a scene in pixels."""
KINDS = ("circle", "square", "triangle", "star", "ring", "cross")
SIZES = {"small": (6.5, 8.5), "large": (12.0, 16.5)}
"""Radius in pixels."""
COLOURS = {
    "red": (205, 40, 45),
    "orange": (235, 140, 40),
    "yellow": (235, 220, 70),
    "blue": (50, 80, 205),
    "purple": (135, 55, 165),
    "white": (238, 238, 238),
}
"""No green: that is the colour of the mask."""
RELATIONS: dict[str, tuple[int, int]] = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""The direction (x, y) from the anchor."""
_CLEAR = 7.0
"""Pixels between centres for a relation to hold, and for its contrary to hold for all others."""
_VISIBLE = 0.65
"""Share of a shape that others may not cover."""


@dataclass(frozen=True)
class Shape:
    """One object of a scene.

    Attributes:
        kind: One of `KINDS`.
        colour: One of `COLOURS`.
        size: One of `SIZES`.
        centre: (x, y) in pixels.
        mask: Its visible pixels, bool (SIDE, SIDE).
    """

    kind: str
    colour: str
    size: str
    centre: tuple[float, float]
    mask: Mask


@dataclass(frozen=True)
class Scene:
    """An image, RGB uint8 (SIDE, SIDE, 3), and what is in it, furthest back first."""

    image: Image
    shapes: tuple[Shape, ...]


def make_scene(seed: int | Sequence[int]) -> Scene:
    """The scene of a seed: three to five shapes, some two-tone, some partly covered, all mostly visible."""
    rng = np.random.default_rng(seed)
    while True:
        count = int(rng.integers(3, 6))
        drawn = [_random_shape(rng) for _ in range(count)]
        taken = np.zeros((SIDE, SIDE), bool)
        visible: list[Mask] = []
        for _, whole, _ in reversed(drawn):
            visible.insert(0, whole & ~taken)
            taken |= whole
        if all(v.sum() >= _VISIBLE * whole.sum() for v, (_, whole, _) in zip(visible, drawn, strict=True)):
            break
    image = _ground(rng)
    shapes = []
    for (shape, whole, paint), mask in zip(drawn, visible, strict=True):
        image[whole] = paint[whole]
        shapes.append(Shape(shape.kind, shape.colour, shape.size, shape.centre, mask))
    image += rng.normal(0, 5, image.shape)
    return Scene(np.clip(np.rint(image), 0, 255).astype(np.uint8), tuple(shapes))


def expressions(scene: Scene) -> list[list[str]]:
    """For each shape every expression that means it and nothing else; a list may be empty."""
    found: list[list[str]] = [[] for _ in scene.shapes]
    alone: list[tuple[str, int]] = []
    for subset in _attribute_sets():
        for index, shape in enumerate(scene.shapes):
            if [i for i, s in enumerate(scene.shapes) if _alike(s, shape, subset)] == [index]:
                alone.append((words(shape, subset), index))
    for text, index in alone:
        found[index].append(f"the {text}")
    for subset in _attribute_sets():
        for anchor_text, anchor in alone:
            if anchor_text.split()[-1] == "shape" or len(anchor_text.split()) > 2:
                continue
            for relation in RELATIONS:
                for index in _related(scene, subset, anchor, relation):
                    found[index].append(f"the {words(scene.shapes[index], subset)} {relation} the {anchor_text}")
    return found


def make_samples(count: int, seed: int, relations: float = 0.25) -> list[Sample]:
    """So many scenes with one expression each.

    Args:
        count: Samples wanted.
        seed: Different seeds give different scenes.
        relations: Share of the expressions that name a second shape.
    """
    samples: list[Sample] = []
    number = 0
    while len(samples) < count:
        scene, rng = make_scene([seed, number]), np.random.default_rng([seed, number, 1])
        index = int(rng.integers(len(scene.shapes)))
        text = choose(expressions(scene)[index], rng, relations)
        if text:
            shape = scene.shapes[index]
            samples.append(Sample(scene.image, text, shape.mask, id=f"shapes-{seed}-{number}"))
        number += 1
    return samples


def choose(texts: Sequence[str], rng: np.random.Generator, relations: float = 0.25) -> str:
    """One of several expressions, one with a relation at the given rate where there is one; "" where there is none."""
    related = [t for t in texts if any(f" {r} " in t for r in RELATIONS)]
    plain = [t for t in texts if t not in related]
    pool = related if related and (rng.random() < relations or not plain) else plain
    return str(pool[int(rng.integers(len(pool)))]) if pool else ""


def words(shape: Shape, subset: Sequence[str]) -> str:
    """A shape by some of its attributes."""
    parts = [shape.size if "size" in subset else "", shape.colour if "colour" in subset else ""]
    return " ".join([*filter(None, parts), shape.kind if "kind" in subset else "shape"])


def _attribute_sets() -> list[tuple[str, ...]]:
    return [("kind",), ("colour",), ("size", "kind"), ("colour", "kind"), ("size", "colour"),
            ("size", "colour", "kind")]  # fmt: skip


def _alike(a: Shape, b: Shape, subset: Sequence[str]) -> bool:
    return all(getattr(a, name) == getattr(b, name) for name in subset)


def _related(scene: Scene, subset: Sequence[str], anchor: int, relation: str) -> list[int]:
    """The shape that `subset` and the relation to the anchor single out where the attributes alone do not."""
    dx, dy = RELATIONS[relation]
    at = scene.shapes[anchor].centre
    found = []
    for index, shape in enumerate(scene.shapes):
        rivals = [i for i, s in enumerate(scene.shapes) if i != anchor and _alike(s, shape, subset)]
        if index == anchor or len(rivals) < 2:
            continue
        ahead = {i: dx * (scene.shapes[i].centre[0] - at[0]) + dy * (scene.shapes[i].centre[1] - at[1]) for i in rivals}
        if ahead[index] >= _CLEAR and all(d <= -_CLEAR for i, d in ahead.items() if i != index):
            found.append(index)
    return found


def _random_shape(rng: np.random.Generator) -> tuple[Shape, Mask, Any]:
    """A shape, all its pixels, and float (SIDE, SIDE, 3) paint."""
    kind, size = str(rng.choice(KINDS)), str(rng.choice(list(SIZES)))
    colour = str(rng.choice(list(COLOURS)))
    radius = rng.uniform(*SIZES[size])
    x, y = rng.uniform(radius, SIDE - 1 - radius, 2)
    mask = _draw(kind, x, y, radius, rng.uniform(0, 2 * np.pi))
    paint = np.full((SIDE, SIDE, 3), np.array(COLOURS[colour]) * rng.uniform(0.92, 1.08), np.float64)
    if rng.random() < 0.5:  # two tones, so that one click is not enough
        rows, columns = np.mgrid[:SIDE, :SIDE]
        angle = rng.uniform(0, 2 * np.pi)
        shade = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle) > rng.uniform(-0.3, 0.3) * radius
        paint[shade] *= 0.68
    return Shape(kind, colour, size, (float(x), float(y)), mask), mask, paint


def _draw(kind: str, x: float, y: float, radius: float, angle: float) -> Mask:
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    distance = np.hypot(columns - x, rows - y)
    if kind == "circle":
        return np.asarray(distance <= radius * 0.92)
    if kind == "ring":
        return np.asarray((distance <= radius) & (distance > radius * 0.52))
    cv2.fillPoly(canvas, [np.rint(_OUTLINES[kind](angle) * radius + (x, y)).astype(np.int32)], 1)
    return canvas.astype(bool)


def _spokes(angles: Any, radii: Any) -> Any:
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], 1)


def _cross(angle: float) -> Any:
    a = 0.3
    quarter = np.array([(-a, -1), (a, -1), (a, -a)])
    corners = np.concatenate([quarter @ np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), n) for n in range(4)])
    turn = (angle % 0.6) - 0.3
    return corners @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])


_OUTLINES: dict[str, Callable[[float], Any]] = {
    "square": lambda angle: _spokes((angle % 0.6) - 0.3 + np.pi / 4 + np.arange(4) * np.pi / 2, 1.1),
    "triangle": lambda angle: _spokes(-np.pi / 2 + (angle % 0.8) - 0.4 + np.arange(3) * 2 * np.pi / 3, 1.12),
    "star": lambda angle: _spokes(angle + np.arange(10) * np.pi / 5, np.where(np.arange(10) % 2, 0.48, 1.15)),
    "cross": _cross,
}


def _ground(rng: np.random.Generator) -> Any:
    """A float (SIDE, SIDE, 3) background: clouds of a dull colour, with or without stripes."""
    colour = rng.uniform(95, 150) + rng.normal(0, 10, 3)
    clouds = cv2.resize(rng.normal(0, 1, (6, 6)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.4:
        rows, columns = np.mgrid[:SIDE, :SIDE]
        angle = rng.uniform(0, np.pi)
        clouds += 0.8 * np.sin((columns * np.cos(angle) + rows * np.sin(angle)) * rng.uniform(0.4, 1.0))
    return colour + clouds[..., None] * rng.uniform(4, 12)
