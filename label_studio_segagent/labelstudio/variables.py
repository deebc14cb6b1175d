"""The variables of a labelling config, `$photo.url`, and its Repeaters: what they are for the data of a task.

They are resolved as Label Studio's own page does it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

__all__ = ["attribute", "expand_repeaters", "has_variable", "look_up", "resolve"]

_VARIABLE = re.compile(r"\$[\w[\].{}]+")
_STEP = re.compile(r"[^.[\]]+")


def attribute(tag: Element, name: str) -> str:
    """An attribute of a tag by its name in any case, or ""."""
    return next((value for given, value in tag.attrib.items() if given.lower() == name), "")


def has_variable(text: str) -> bool:
    """Whether a text names something in the data of a task."""
    return _VARIABLE.search(text) is not None


def look_up(path: str, data: Any) -> Any:
    """What `photos[0].page` is in the data of a task, or None; a field with that very name comes first."""
    if isinstance(data, Mapping) and path in data:
        return data[path]
    for step in _STEP.findall(path):
        if isinstance(data, Mapping):
            data = data.get(step)
        elif isinstance(data, Sequence) and not isinstance(data, str) and step.isdecimal() and len(step) < 9:
            data = data[int(step)] if int(step) < len(data) else None
        else:
            return None
    return data


def resolve(text: str, data: Mapping[str, Any]) -> Any:
    """An attribute for the data of a task.

    Args:
        text: A variable, such as "$photo.url", or a text with variables in it, such as "https://h/$id.jpg".
        data: The task's.

    Returns:
        What a variable names, of any type, or the text with the values of its variables. None where there is nothing
        of the name of one of them.
    """
    if _VARIABLE.fullmatch(text):
        return look_up(text[1:], data)
    parts, end = [], 0
    for found in _VARIABLE.finditer(text):
        value = _embedded(found[0][1:], data)
        if value is None:
            return None
        parts += [text[end : found.start()], value]
        end = found.end()
    return "".join([*parts, text[end:]])


def _embedded(path: str, data: Mapping[str, Any]) -> str | None:
    """A variable inside of a text; what follows its name may belong to the text, as in "$id.jpg"."""
    for length in range(len(path), 0, -1):
        value = look_up(path[:length], data) if length == len(path) or not path[length].isalnum() else None
        if isinstance(value, (str, int, float)):
            text = str(value).lower() if isinstance(value, bool) else str(value)
            return text.removesuffix(".0") + path[length:] if isinstance(value, float) else text + path[length:]
    return None


def expand_repeaters(root: Element, data: Mapping[str, Any] | None) -> Element:
    """A labelling config with the content of each Repeater written out, once for each item of its list.

    Args:
        root: The config; it stays as it is.
        data: Of the task, or None for one item in each list.
    """
    root = copy.deepcopy(root)
    waiting = [root]
    while waiting:
        tag = waiting.pop()
        if isinstance(tag.tag, str) and tag.tag.lower() == "repeater":
            items = [None] if data is None else resolve(attribute(tag, "on"), data)
            flag, content = attribute(tag, "indexflag") or "{{idx}}", list(tag)
            tag.tag, tag[:] = "View", []
            for number in range(len(items) if isinstance(items, list) else 0):
                tag.extend(_numbered(child, flag, number) for child in content)
        waiting.extend(tag)
    return root


def _numbered(tag: Element, flag: str, number: int) -> Element:
    tag = copy.deepcopy(tag)
    for inner in tag.iter():
        for name, value in inner.attrib.items():
            inner.attrib[name] = value.replace(flag, str(number))
    return tag
