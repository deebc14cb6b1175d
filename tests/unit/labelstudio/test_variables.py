"""What Label Studio's page makes of the variables of a labelling config."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import fromstring, tostring

import pytest

from label_studio_segagent.labelstudio.variables import expand_repeaters, look_up, resolve

DATA: dict[str, Any] = {
    "image": "a.jpg", "photo": {"url": "b.jpg", "sizes": [{"w": 3}]}, "photos": [{"page": "c.jpg"}, {"page": "d.jpg"}],
    "id": 7, "share": 0.5, "whole": 2.0, "yes": True, "dotted.name": "e.jpg", "none": None, "pages": ["f.jpg", "g.jpg"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$image", "a.jpg"),
        ("$photo.url", "b.jpg"),
        ("$photos[0].page", "c.jpg"),
        ("$photos[1].page", "d.jpg"),
        ("$photo.sizes[0].w", 3),
        ("$pages", ["f.jpg", "g.jpg"]),
        ("$pages[1]", "g.jpg"),
        ("$dotted.name", "e.jpg"),
        ("$photos[2].page", None),
        ("$photos.page", None),
        ("$photo.url.more", None),
        ("$image[0]", None),
        ("$none", None),
        ("$gone.url", None),
        ("https://h/$id.jpg", "https://h/7.jpg"),
        ("https://h/$photo.url", "https://h/b.jpg"),
        ("https://h/$photos[1].page?w=$id&s=$share", "https://h/d.jpg?w=7&s=0.5"),
        ("https://h/$id/$whole/$yes.png", "https://h/7/2/true.png"),
        ("a $gone thing", None),
        ("a $photo thing", None),
        ("no variable", "no variable"),
        ("5 $", "5 $"),
        ("", ""),
    ],
)
def test_a_text_with_variables(text: str, value: Any) -> None:
    assert resolve(text, DATA) == value


@pytest.mark.parametrize("path", ["", ".", "[", "a[0", "[999999999999999999999999]", "photos[-1]", "photos[x].page"])
def test_odd_paths_find_nothing(path: str) -> None:
    assert look_up(path, {"photos": []}) in (None, {"photos": []})
    assert look_up(path, [1]) in (None, [1]) and look_up(path, None) is None


def names(xml: str, data: Any) -> list[str]:
    root = fromstring(xml)
    before = tostring(root)
    found = [str(tag.get("name")) for tag in expand_repeaters(root, data).iter("Image")]
    assert tostring(root) == before
    return found


def test_repeaters() -> None:
    page = '<View><Image name="page_{{idx}}" value="$document[{{idx}}].page"/></View>'
    one = f'<View><Image name="first"/><Repeater on="$document" indexFlag="{{{{idx}}}}">{page}</Repeater></View>'
    assert names(one, {"document": [1, 2, 3]}) == ["first", "page_0", "page_1", "page_2"]
    assert names(one.replace(' indexFlag="{{idx}}"', ""), {"document": [1]}) == ["first", "page_0"]
    assert names(one, None) == ["first", "page_0"]
    for nothing in ({}, {"document": []}, {"document": "abc"}, {"document": {"a": 1}}, {"document": None}):
        assert names(one, nothing) == ["first"]
    nested = (
        '<Repeater on="$documents" indexFlag="{{d}}"><Repeater on="$documents[{{d}}].pages" indexFlag="{{p}}">'
        '<Image name="{{d}}-{{p}}"/></Repeater></Repeater>'
    )
    data = {"documents": [{"pages": [1, 2]}, {"pages": []}, {"pages": [3]}]}
    assert names(nested, data) == ["0-0", "0-1", "2-0"]
