"""Label Studio labelling configs: which images, which labels, and which controls their masks go to.

The XML is read case-insensitively. One attribute of our own, ignored by Label Studio, steers the output:

* `segagent="output"` on a label control: labels of this control are written here, whatever else has them.
* `segagent="ignore"` on a label control or an Image: never written to, or not looked at.
* `segagent="prompt"` on a TextArea: its text is the prompt, a referring expression; so is that of one named "prompt".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from ..errors import ConfigError, InputError

__all__ = ["QC_CONTROL", "Control", "ImageTag", "Label", "LabelConfig"]

QC_CONTROL = "qc_issue"
"""Name of the control for the boxes of quality control; never an output."""

_SHAPES = {"brush": 0, "bitmask": 1, "polygon": 2, "rectangle": 3}
"""Shapes we write, most faithful first."""
_READ_ONLY_SHAPES = ("ellipse", "keypoint", "vector", "magicwand")


@dataclass(frozen=True, slots=True)
class Label:
    """A label of a control.

    Attributes:
        value: What the annotator reads.
        name: What stands in results: the alias if there is one, else the value.
        hint: The `hint` attribute, or "". One that starts with `$` names a field of the task.
    """

    value: str
    name: str
    hint: str = ""

    def prompt(self, data: Mapping[str, Any]) -> str:
        """The text the policy is asked for: the hint (or the task field it names), else the alias, else the value."""
        hint = str(data.get(self.hint[1:]) or "") if self.hint.startswith("$") else self.hint
        return hint.strip() or self.name


@dataclass(frozen=True, slots=True)
class Control:
    """A control that draws labelled regions on an image.

    Attributes:
        name: Its name; for `Labels` beside a shape control, the name of the shape control.
        shape: "brush", "bitmask", "polygon", "rectangle", "ellipse", "keypoint", "vector" or "magicwand".
        to_name: The Image it draws on.
        labels: Its labels; for a bare shape control those of the `Labels` beside it.
        labels_from: Name of that `Labels` control, or None when the control has labels of its own.
        labels_field: Task field with further labels (`value="$field"`), or "".
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
        extra = data.get(self.labels_field) if self.labels_field else None
        items = extra if isinstance(extra, list) else []
        texts = [item if isinstance(item, dict) else {"value": item} for item in items]
        return self.labels + tuple(_label(text) for text in texts if text.get("value"))


@dataclass(frozen=True, slots=True)
class ImageTag:
    """An Image tag.

    Attributes:
        name: Its name.
        field: The task field with the URL, or with a list of URLs.
    """

    name: str
    field: str

    def urls(self, data: Mapping[str, Any]) -> list[tuple[int | None, str]]:
        """(item index or None, URL) for each picture of a task; the index is set for a `valueList`."""
        value = data.get(self.field)
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


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """A labelling config for images.

    Attributes:
        images: The Image tags that are looked at.
        controls: All controls that draw labelled regions on them.
        prompts: Names of TextAreas that hold a prompt.
        names: Of all tags.
    """

    images: tuple[ImageTag, ...]
    controls: tuple[Control, ...]
    prompts: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, xml: str) -> LabelConfig:
        """Read a labelling config.

        Raises:
            ConfigError: It is not XML, has no usable Image, or nothing on it can hold a mask or a box.
        """
        try:
            root = ElementTree.fromstring(xml)
        except (ParseError, DefusedXmlException, ValueError, TypeError) as error:
            raise ConfigError(f"the labelling config is not valid XML: {error}") from error
        tags = list(root.iter())
        images = tuple(_images(tags))
        if not images:
            raise ConfigError('the labelling config has no <Image name="…" value="$…"/>; this backend needs one')
        names = {image.name for image in images}
        controls = tuple(control for control in _controls(tags) if control.to_name in names)
        if not any(control.shape in _SHAPES and control.role != "ignore" for control in controls):
            raise ConfigError(
                "no control can hold a result; add BrushLabels, BitmaskLabels, PolygonLabels or RectangleLabels "
                f"with toName={' or '.join(sorted(names))!r}"
            )
        prompts = tuple(
            name
            for tag in tags
            if tag.tag.lower() == "textarea" and (name := _get(tag, "name"))
            if _get(tag, "segagent") == "prompt" or name == "prompt"
        )
        return cls(images, controls, prompts, frozenset(filter(None, (_get(tag, "name") for tag in tags))))

    def for_task(self, data: Mapping[str, Any]) -> LabelConfig:
        """The config as it is for one task."""
        return self

    def image(self, name: str) -> ImageTag:
        """The Image tag of a name.

        Raises:
            InputError: There is none that is looked at.
        """
        for tag in self.images:
            if tag.name == name:
                return tag
        known = ", ".join(repr(tag.name) for tag in self.images) or "none for this task"
        if name in self.names:
            raise InputError(f"{name[:60]!r} is no Image that this backend looks at; those are: {known}")
        raise InputError(f"the labelling config has no Image {name[:60]!r}; it has: {known}")

    def prompt_text(self, results: Any) -> str:
        """The newest prompt that an annotator typed, among the results of an annotation or a draft; or ""."""
        for result in reversed(results if isinstance(results, list) else []):
            if (
                isinstance(result, dict)
                and result.get("type") == "textarea"
                and result.get("from_name") in self.prompts
            ):
                value = result.get("value")
                text = value.get("text") if isinstance(value, dict) else None
                text = " ".join(map(str, text)) if isinstance(text, list) else text
                if isinstance(text, str) and text.strip():
                    return text.strip()
        return ""

    def outputs(self, image: str, data: Mapping[str, Any]) -> list[tuple[Control, Label]]:
        """Where the masks of each label of an Image go, in the order of the config; every label once.

        Args:
            image: Name of the Image tag.
            data: The task's data.
        """
        best: dict[str, tuple[Control, Label]] = {}
        for control in self.controls:
            if control.to_name != image or control.shape not in _SHAPES or control.role == "ignore":
                continue
            for label in control.labels_for(data):
                now = best.get(label.name)
                if now is None or _preference(control) < _preference(now[0]):
                    best[label.name] = (control, label)
        return list(best.values())

    def output_for(self, image: str, name: str | None, data: Mapping[str, Any]) -> tuple[Control, Label]:
        """Where the mask goes that a smart tool asks for.

        A prompt control may have labels of its own (`<KeyPointLabels>` with a single "click here"): when a label is
        not among the outputs and there is only one output, that one is meant. What was drawn by hand has the label
        that it has: see `output_of`.

        Args:
            image: Name of the Image tag.
            name: Label of the prompt, as it stands in a result, or None.
            data: The task's data.

        Raises:
            ConfigError: No output has this label.
        """
        outputs = self.outputs(image, data)
        return outputs[0] if len(outputs) == 1 else self.output_of(image, name, data)

    def output_of(self, image: str, name: str | None, data: Mapping[str, Any]) -> tuple[Control, Label]:
        """The output that has a label, by its alias or its value.

        Args:
            image: Name of the Image tag.
            name: Label as it stands in a result, or None.
            data: The task's data.

        Raises:
            ConfigError: No output has this label.
        """
        outputs = self.outputs(image, data)
        for control, label in outputs:
            if name in (label.name, label.value):
                return control, label
        known = ", ".join(repr(label.name) for _, label in outputs) or "none"
        if name is None:
            raise ConfigError(f"it has no label: choose one before you click or draw, here {known}")
        raise ConfigError(f"label {name!r} has no brush, bitmask, polygon or rectangle control; those have: {known}")

    def known_labels(self, image: str, data: Mapping[str, Any]) -> set[str]:
        """The labels of all controls on an Image, prompts too, by aliases and values.

        Args:
            image: Name of the Image tag.
            data: The task's data.
        """
        labels = [label for c in self.controls if c.to_name == image for label in c.labels_for(data)]
        return {name for label in labels for name in (label.name, label.value)}

    @property
    def ignored(self) -> frozenset[str]:
        """Names of the controls whose regions are not looked at."""
        return frozenset(control.name for control in self.controls if control.role == "ignore")


def _preference(control: Control) -> tuple[bool, int]:
    return control.role != "output", _SHAPES[control.shape]


def _get(tag: Element, attribute: str) -> str:
    """An attribute by its name in any case, or ""."""
    return next((value for name, value in tag.attrib.items() if name.lower() == attribute), "")


def _images(tags: list[Element]) -> Iterator[ImageTag]:
    for tag in tags:
        field = _get(tag, "value") or _get(tag, "valuelist")
        if tag.tag.lower() == "image" and field.startswith("$") and _get(tag, "segagent") != "ignore":
            yield ImageTag(_get(tag, "name"), field[1:])


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


def _controls(tags: list[Element]) -> Iterator[Control]:
    shared: dict[str, list[Element]] = {}
    for tag in tags:
        if tag.tag.lower() == "labels":
            for target in _get(tag, "toname").split(","):
                shared.setdefault(target.strip(), []).append(tag)
    for tag in tags:
        kind = tag.tag.lower()
        shape = kind.removesuffix("labels")
        if shape not in _SHAPES and shape not in _READ_ONLY_SHAPES:
            continue
        for target in (part.strip() for part in _get(tag, "toname").split(",")):
            if kind.endswith("labels"):
                yield _control(tag, shape, target, tag, None)
            else:
                for labels in shared.get(target, []):
                    yield _control(tag, shape, target, labels, _get(labels, "name"))


def _control(tag: Element, shape: str, target: str, labels: Element, labels_from: str | None) -> Control:
    field = _get(labels, "value")
    return Control(
        name=_get(tag, "name"),
        shape=shape,
        to_name=target,
        labels=_labels(labels),
        labels_from=labels_from,
        labels_field=field[1:] if field.startswith("$") else "",
        role="ignore" if _get(tag, "name") == QC_CONTROL else _get(tag, "segagent"),
    )
