"""Label Studio labelling configs: which images, which labels, and which controls their masks go to.

The XML is read case-insensitively. One attribute of our own, ignored by Label Studio, steers the output:

* `segagent="output"` on a label control: labels of this control are written here, whatever else has them.
* `segagent="ignore"` on a label control or an Image: never written to, or not looked at.
* `segagent="prompt"` on a TextArea: its text is the prompt, a referring expression; so is that of one named "prompt".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from ..errors import ConfigError, InputError
from .tags import OUTPUT_SHAPES, QC_CONTROL, Control, ImageTag, Label, read_controls, read_images
from .variables import attribute, expand_repeaters

__all__ = ["QC_CONTROL", "Control", "ImageTag", "Label", "LabelConfig"]


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """A labelling config for images.

    Attributes:
        images: The Image tags that are looked at.
        controls: All controls that draw labelled regions on them.
        prompts: Names of TextAreas that hold a prompt.
        names: Of all tags.
        template: The XML, where it has Repeaters; those are read as for one item until `for_task` is asked.
    """

    images: tuple[ImageTag, ...]
    controls: tuple[Control, ...]
    prompts: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    template: Element | None = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, xml: str) -> LabelConfig:
        """Read a labelling config.

        Raises:
            ConfigError: It is not XML, has no usable Image, or nothing on it can hold a mask or a box.
        """
        try:
            root = ElementTree.fromstring(xml)
            repeated = any(tag.tag.lower() == "repeater" for tag in root.iter())
            config = cls._read(expand_repeaters(root, None) if repeated else root)
        except (ParseError, DefusedXmlException, ValueError, TypeError) as error:
            raise ConfigError(f"the labelling config is not valid XML: {error}") from error
        except RecursionError as error:
            raise ConfigError("the labelling config is nested too deeply for its Repeater") from error
        if not config.images:
            raise ConfigError('the labelling config has no <Image name="…" value="$…"/>; this backend needs one')
        if not any(control.shape in OUTPUT_SHAPES and control.role != "ignore" for control in config.controls):
            raise ConfigError(
                "no control can hold a result; add BrushLabels, BitmaskLabels, PolygonLabels or RectangleLabels "
                f"with toName={' or '.join(sorted(image.name for image in config.images))!r}"
            )
        return replace(config, template=root) if repeated else config

    @classmethod
    def _read(cls, root: Element) -> LabelConfig:
        tags = list(root.iter())
        images = tuple(read_images(tags))
        names = {image.name for image in images}
        controls = tuple(control for control in read_controls(tags) if control.to_name in names)
        prompts = tuple(
            name
            for tag in tags
            if tag.tag.lower() == "textarea" and (name := attribute(tag, "name"))
            if attribute(tag, "segagent") == "prompt" or name == "prompt"
        )
        return cls(images, controls, prompts, frozenset(filter(None, (attribute(tag, "name") for tag in tags))))

    def for_task(self, data: Mapping[str, Any]) -> LabelConfig:
        """The config as it is for one task: what its Repeaters repeat is there for each item of their lists."""
        return self if self.template is None else self._read(expand_repeaters(self.template, data))

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
            if control.to_name != image or control.shape not in OUTPUT_SHAPES or control.role == "ignore":
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
    return control.role != "output", OUTPUT_SHAPES[control.shape]
