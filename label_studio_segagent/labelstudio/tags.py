"""The tags of a labelling config that matter here: images, labels, and the controls that draw regions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from xml.etree.ElementTree import Element

from ..errors import InputError
from .variables import attribute, has_variable, resolve

__all__ = ["OUTPUT_SHAPES", "QC_CONTROL", "Control", "ImageTag", "Label", "read_controls", "read_images"]

QC_CONTROL = "qc_issue"
"""Name of the control for the boxes of quality control; never an output."""

OUTPUT_SHAPES = {"brush": 0, "bitmask": 1, "polygon": 2, "rectangle": 3}
"""Shapes we write, most faithful first."""
_READ_ONLY_SHAPES = ("ellipse", "keypoint", "vector", "magicwand")


@dataclass(frozen=True, slots=True)
class Label:
    """A label of a control.

    Attributes:
        value: What the annotator reads.
        name: What stands in results: the alias if there is one, else the value as the config has it: Label Studio saves
            `<Label value="$v"/>` as "$v", and knows it by nothing else.
        hint: The `hint` attribute, or "". It may have variables of the task.
    """

    value: str
    name: str
    hint: str = ""

    @property
    def title(self) -> str:
        """What people call it: its name, or what stands for a variable there."""
        return self.value if has_variable(self.name) else self.name

    def prompt(self, data: Mapping[str, Any]) -> str:
        """The text the policy is asked for: the hint, else the alias, else the value."""
        hint = resolve(self.hint, data)
        return ("" if hint is None else str(hint).strip()) or self.title

    def for_task(self, data: Mapping[str, Any]) -> Label | None:
        """The label with the variables of its value resolved; None where the task has nothing for them."""
        if not has_variable(self.value):
            return self
        value = resolve(self.value, data)
        return replace(self, value=str(value)) if isinstance(value, (str, int, float)) and value != "" else None


@dataclass(frozen=True, slots=True)
class Control:
    """A control that draws labelled regions on an image.

    Attributes:
        name: Its name; for `Labels` beside a shape control, the name of the shape control.
        shape: "brush", "bitmask", "polygon", "rectangle", "ellipse", "keypoint", "vector" or "magicwand".
        to_name: The Image it draws on.
        labels: Its labels; for a bare shape control those of the `Labels` beside it.
        labels_from: Name of that `Labels` control, or None when the control has labels of its own.
        labels_field: Variable with further labels of the task (`value="$field"`), or "".
        role: The `segagent` attribute.
    """

    name: str
    shape: str
    to_name: str
    labels: tuple[Label, ...]
    labels_from: str | None = None
    labels_field: str = ""
    role: str = ""

    @property
    def type(self) -> str:
        """The `type` of its results, for example "brushlabels"."""
        return self.shape if self.labels_from else f"{self.shape}labels"

    def labels_for(self, data: Mapping[str, Any]) -> tuple[Label, ...]:
        """Its labels for one task, including those that come from the task's data."""
        extra = resolve(self.labels_field, data) if self.labels_field else None
        items = extra if isinstance(extra, list) else []
        texts = [item if isinstance(item, dict) else {"value": item} for item in items]
        own = (label.for_task(data) for label in self.labels)
        return (*(label for label in own if label), *(_label(text) for text in texts if text.get("value")))


@dataclass(frozen=True, slots=True)
class ImageTag:
    """An Image tag.

    Attributes:
        name: Its name.
        source: What gives the URL, or a list of URLs: a text with variables of the task, such as "$image".
    """

    name: str
    source: str

    @property
    def field(self) -> str:
        """The variable's name, as people know it; or a text with variables as it is."""
        return self.source[1:] if self.source.count("$") == 1 and self.source.startswith("$") else self.source

    def urls(self, data: Mapping[str, Any]) -> list[tuple[int | None, str]]:
        """(item index or None, URL) for each picture of a task; the index is set for a `valueList`."""
        value = resolve(self.source, data)
        if isinstance(value, list):
            return [(index, url) for index, url in enumerate(value) if isinstance(url, str)]
        return [(None, value)] if isinstance(value, str) and value else []

    def picture(self, data: Mapping[str, Any], item_index: int | None) -> tuple[int | None, str]:
        """The (item index or None, URL) of one picture of a task; without an index the first.

        Raises:
            InputError: The task has none there.
        """
        for index, url in self.urls(data):
            if (index or 0) == (item_index or 0):
                return index, url
        raise InputError(f"the task has no image in {self.field!r}" + (f" at index {item_index}" if item_index else ""))


def read_images(tags: list[Element]) -> Iterator[ImageTag]:
    """The Images that are looked at."""
    for tag in tags:
        source = attribute(tag, "valuelist") or attribute(tag, "value")
        if tag.tag.lower() == "image" and has_variable(source) and attribute(tag, "segagent") != "ignore":
            yield ImageTag(attribute(tag, "name"), source)


def _label(attributes: Mapping[str, Any]) -> Label:
    value = str(attributes["value"])
    return Label(value, str(attributes.get("alias") or value), str(attributes.get("hint") or ""))


def _labels(tag: Element) -> tuple[Label, ...]:
    found = (
        {name.lower(): value for name, value in child.attrib.items()}
        for child in tag.iter()
        if child.tag.lower() == "label"
    )
    return tuple(_label(attributes) for attributes in found if attributes.get("value"))


def read_controls(tags: list[Element]) -> Iterator[Control]:
    """The controls that draw regions; those beside a `Labels` once for each."""
    shared: dict[str, list[Element]] = {}
    for tag in tags:
        if tag.tag.lower() == "labels":
            for target in attribute(tag, "toname").split(","):
                shared.setdefault(target.strip(), []).append(tag)
    for tag in tags:
        kind = tag.tag.lower()
        shape = kind.removesuffix("labels")
        if shape not in OUTPUT_SHAPES and shape not in _READ_ONLY_SHAPES:
            continue
        for target in (part.strip() for part in attribute(tag, "toname").split(",")):
            if kind.endswith("labels"):
                yield _control(tag, shape, target, tag, None)
            else:
                for labels in shared.get(target, []):
                    yield _control(tag, shape, target, labels, attribute(labels, "name"))


def _control(tag: Element, shape: str, target: str, labels: Element, labels_from: str | None) -> Control:
    source = attribute(labels, "value")
    return Control(
        name=attribute(tag, "name"),
        shape=shape,
        to_name=target,
        labels=_labels(labels),
        labels_from=labels_from,
        labels_field=source if has_variable(source) else "",
        role="ignore" if attribute(tag, "name") == QC_CONTROL else attribute(tag, "segagent"),
    )
