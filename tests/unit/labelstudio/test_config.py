from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from label_studio_segagent.errors import ConfigError
from label_studio_segagent.labelstudio.config import Label, LabelConfig

IMAGE = '<Image name="image" value="$image"/>'
BRUSH = '<BrushLabels name="brush" toName="image"><Label value="Cat"/><Label value="Dog"/></BrushLabels>'


def parse(*tags: str) -> LabelConfig:
    return LabelConfig.parse(f"<View>{''.join(tags)}</View>")


def where(config: LabelConfig, data: dict[str, Any] | None = None, image: str = "image") -> dict[str, tuple[str, str]]:
    """label -> (control, type of its results)."""
    return {label.name: (control.name, control.type) for control, label in config.outputs(image, data or {})}


@pytest.mark.parametrize(
    ("tag", "kind"),
    [
        ("BrushLabels", "brushlabels"),
        ("BitmaskLabels", "bitmasklabels"),
        ("PolygonLabels", "polygonlabels"),
        ("RectangleLabels", "rectanglelabels"),
    ],
)
def test_one_control(tag: str, kind: str) -> None:
    config = parse(IMAGE, f'<{tag} name="c" toName="image"><Label value="Cat" background="red"/></{tag}>')
    assert where(config) == {"Cat": ("c", kind)}
    assert config.images[0].name == "image" and config.images[0].field == "image"
    control = config.controls[0]
    assert control.labels_from is None and control.to_name == "image"


@pytest.mark.parametrize(
    ("tag", "kind"), [("Brush", "brush"), ("Bitmask", "bitmask"), ("Polygon", "polygon"), ("Rectangle", "rectangle")]
)
@pytest.mark.parametrize("labels_first", [True, False])
def test_labels_beside_a_shape(tag: str, kind: str, labels_first: bool) -> None:
    labels, shape = '<Labels name="l" toName="image"><Label value="Cat"/></Labels>', f'<{tag} name="s" toName="image"/>'
    config = parse(IMAGE, *([labels, shape] if labels_first else [shape, labels]))
    assert where(config) == {"Cat": ("s", kind)}
    assert config.controls[0].labels_from == "l"


def test_the_most_faithful_shape_wins_for_each_label() -> None:
    config = parse(
        IMAGE,
        '<RectangleLabels name="r" toName="image"><Label value="A"/><Label value="B"/><Label value="C"/>'
        "</RectangleLabels>",
        '<PolygonLabels name="p" toName="image"><Label value="B"/><Label value="C"/></PolygonLabels>',
        '<BitmaskLabels name="m" toName="image"><Label value="C"/><Label value="D"/></BitmaskLabels>',
        '<BrushLabels name="b" toName="image"><Label value="D"/></BrushLabels>',
    )
    assert where(config) == {
        "A": ("r", "rectanglelabels"),
        "B": ("p", "polygonlabels"),
        "C": ("m", "bitmasklabels"),
        "D": ("b", "brushlabels"),
    }
    assert list(where(config)) == ["A", "B", "C", "D"]


def test_segagent_output_overrides_the_preference() -> None:
    polygon = '<PolygonLabels name="poly" toName="image" segagent="output"><Label value="Cat"/></PolygonLabels>'
    config = parse(IMAGE, BRUSH, polygon)
    assert where(config) == {"Cat": ("poly", "polygonlabels"), "Dog": ("brush", "brushlabels")}


def test_segagent_ignore_on_a_control() -> None:
    config = parse(
        IMAGE,
        BRUSH.replace("<BrushLabels", '<BrushLabels segagent="ignore"'),
        '<PolygonLabels name="p" toName="image"><Label value="Cat"/></PolygonLabels>',
    )
    assert where(config) == {"Cat": ("p", "polygonlabels")}
    with pytest.raises(ConfigError, match="no control can hold a result"):
        parse(IMAGE, BRUSH.replace("<BrushLabels", '<BrushLabels segagent="ignore"'))


def test_segagent_ignore_on_an_image() -> None:
    second = '<Image name="map" value="$map" segagent="ignore"/>'
    config = parse(IMAGE, second, BRUSH, BRUSH.replace("image", "map").replace('"brush"', '"brush2"'))
    assert [image.name for image in config.images] == ["image"]
    assert where(config, image="map") == {}
    with pytest.raises(ConfigError, match="no <Image"):
        parse(second, BRUSH.replace("image", "map"))


def test_several_images_have_their_own_controls() -> None:
    config = parse(
        '<Image name="left" value="$a"/>',
        '<Image name="right" value="$b"/>',
        '<BrushLabels name="l" toName="left"><Label value="Cat"/></BrushLabels>',
        '<PolygonLabels name="r" toName="right"><Label value="Cat"/><Label value="Dog"/></PolygonLabels>',
        '<RectangleLabels name="both" toName="left,right"><Label value="Bird"/></RectangleLabels>',
    )
    assert where(config, image="left") == {"Cat": ("l", "brushlabels"), "Bird": ("both", "rectanglelabels")}
    assert where(config, image="right") == {
        "Cat": ("r", "polygonlabels"),
        "Dog": ("r", "polygonlabels"),
        "Bird": ("both", "rectanglelabels"),
    }
    data = {"a": "http://host/a.jpg", "b": "/data/upload/b.jpg"}
    assert [image.urls(data) for image in config.images] == [
        [(None, "http://host/a.jpg")],
        [(None, "/data/upload/b.jpg")],
    ]


def test_value_list() -> None:
    config = parse('<Image name="image" valueList="$pages"/>', BRUSH)
    image = config.images[0]
    assert image.urls({"pages": ["a.jpg", "b.jpg"]}) == [(0, "a.jpg"), (1, "b.jpg")]
    assert image.urls({"pages": ["a.jpg", None, 5, "d.jpg"]}) == [(0, "a.jpg"), (3, "d.jpg")]
    assert image.urls({"pages": []}) == []


@pytest.mark.parametrize("data", [{}, {"image": None}, {"image": ""}, {"image": 5}, {"image": {"url": "a"}}])
def test_no_url(data: dict[str, Any]) -> None:
    assert parse(IMAGE, BRUSH).images[0].urls(data) == []


def test_an_interactive_project_with_choices_and_prompts() -> None:
    """As people have it: brush for the result, smart key points and boxes as prompts, questions beside them."""
    config = LabelConfig.parse(
        """<?xml version="1.0" encoding="UTF-8"?>
        <!-- our project -->
        <View style="display: flex">
          <Header value="Mark every animal"/>
          <Image name="image" value="$image" zoom="true" zoomControl="true"/>
          <View visibleWhen="region-selected">
            <BrushLabels name="brush" toName="image">
              <Label value="Cat" background="#FF0000"/>
              <!-- <Label value="Fish"/> -->
              <Label value="Dog" background="#0d14d3"/>
            </BrushLabels>
          </View>
          <KeyPointLabels name="kp" toName="image" smart="true"><Label value="Cat" smart="true"/></KeyPointLabels>
          <RectangleLabels name="rect" toName="image" smart="true"><Label value="Cat"/></RectangleLabels>
          <EllipseLabels name="e" toName="image"><Label value="Eye"/></EllipseLabels>
          <Choices name="quality" toName="image"><Choice value="Cat"/><Choice value="blurred"/></Choices>
          <TextArea name="prompt" toName="image"/>
          <TextArea name="remarks" toName="image"/>
          <TextArea name="what" toName="image" segagent="prompt"/>
          <Rating name="stars" toName="image"/>
        </View>"""
    )
    assert where(config) == {"Cat": ("brush", "brushlabels"), "Dog": ("brush", "brushlabels")}
    assert [(control.name, control.shape) for control in config.controls] == [
        ("brush", "brush"), ("kp", "keypoint"), ("rect", "rectangle"), ("e", "ellipse"),
    ]  # fmt: skip
    assert config.prompts == ("prompt", "what")


def test_names_are_read_in_any_case() -> None:
    config = LabelConfig.parse(
        '<VIEW><image NAME="i" Value="$x"/><brushlabels Name="b" TONAME="i"><LABEL VALUE="Cat" ALIAS="c" HINT="h"/>'
        "</brushlabels></VIEW>"
    )
    assert where(config, image="i") == {"c": ("b", "brushlabels")}
    assert config.controls[0].labels == (Label("Cat", "c", "h"),)


def test_unicode() -> None:
    config = parse(
        '<Image name="изображение" value="$фото"/>',
        '<BrushLabels name="кисть" toName="изображение"><Label value="Кошка 🐈"/><Label value="Hund &amp; “Katze”"/>'
        "</BrushLabels>",
    )
    assert list(where(config, image="изображение")) == ["Кошка 🐈", "Hund & “Katze”"]
    assert config.images[0].urls({"фото": "http://host/ü.jpg"}) == [(None, "http://host/ü.jpg")]


@pytest.mark.parametrize(
    ("attributes", "name", "prompt"),
    [
        ('value="Cat"', "Cat", "Cat"),
        ('value="Cat" alias="felis"', "felis", "felis"),
        ('value="Cat" hint="the sleeping cat"', "Cat", "the sleeping cat"),
        ('value="Cat" alias="felis" hint="the cat"', "felis", "the cat"),
        ('value="Cat" hint="$wanted"', "Cat", "the red one"),
        ('value="Cat" hint="$number"', "Cat", "7"),
        ('value="Cat" hint="$missing"', "Cat", "Cat"),
        ('value="Cat" alias="felis" hint="$missing"', "felis", "felis"),
        ('value="Cat" hint="$blank"', "Cat", "Cat"),
        ('value="Cat" hint="$null"', "Cat", "Cat"),
        ('value="Cat" hint="  "', "Cat", "Cat"),
        ('value="Cat" alias=""', "Cat", "Cat"),
    ],
)
def test_alias_and_hint(attributes: str, name: str, prompt: str) -> None:
    config = parse(IMAGE, f'<BrushLabels name="b" toName="image"><Label {attributes}/></BrushLabels>')
    data = {"wanted": " the red one ", "blank": "  ", "null": None, "number": 7}
    ((_, label),) = config.outputs("image", data)
    assert (label.value, label.name, label.prompt(data)) == ("Cat", name, prompt)


def test_labels_with_variables() -> None:
    """Label Studio shows what the task has for "$v", and saves "$v"."""
    config = parse(
        IMAGE,
        '<BrushLabels name="b" toName="image"><Label value="$v"/><Label value="$meta.kind" alias="k"/>'
        '<Label value="a $colour cat"/><Label value="Cat" hint="$meta.caption"/></BrushLabels>',
    )
    data = {"v": "horse", "meta": {"kind": "cow", "caption": " the cat on the mat "}, "colour": "red"}
    found = [(label.name, label.value, label.prompt(data)) for _, label in config.outputs("image", data)]
    assert found == [
        ("$v", "horse", "horse"), ("k", "cow", "k"), ("a $colour cat", "a red cat", "a red cat"),
        ("Cat", "Cat", "the cat on the mat"),
    ]  # fmt: skip
    for name in ("$v", "horse"):
        assert config.output_of("image", name, data)[1].prompt(data) == "horse"
    # What the task has nothing for is not asked for.
    assert list(where(config, {})) == ["Cat"] and list(where(config, {"v": "", "colour": ["x"]})) == ["Cat"]
    nested = parse(IMAGE, '<BrushLabels name="b" toName="image" value="$doc.labels"/>')
    assert list(where(nested, {"doc": {"labels": [{"value": "Dog"}]}})) == ["Dog"]


def test_labels_from_the_task() -> None:
    config = parse(IMAGE, '<BrushLabels name="b" toName="image" value="$labels"><Label value="Cat"/></BrushLabels>')
    data = {"labels": [{"value": "Dog", "hint": "a dog", "alias": "d"}, {"value": "Bird"}, "Fish"]}
    assert list(where(config, data)) == ["Cat", "d", "Bird", "Fish"]
    assert [label.prompt(data) for _, label in config.outputs("image", data)] == ["Cat", "a dog", "Bird", "Fish"]
    assert list(where(config)) == ["Cat"]


@pytest.mark.parametrize(
    "labels", [None, "Dog", 5, {"value": "Dog"}, [None], [{}], [{"value": ""}], [[]], [{"value": None}]]
)
def test_task_labels_that_are_none(labels: Any) -> None:
    config = parse(IMAGE, '<BrushLabels name="b" toName="image" value="$labels"><Label value="Cat"/></BrushLabels>')
    assert list(where(config, {"labels": labels})) == ["Cat"]


def test_labels_of_labels_beside_a_shape_may_come_from_the_task() -> None:
    config = parse(IMAGE, '<Labels name="l" toName="image" value="$labels"/>', '<Polygon name="p" toName="image"/>')
    assert where(config, {"labels": [{"value": "Dog"}]}) == {"Dog": ("p", "polygon")}
    assert where(config) == {}


def test_grouped_labels_and_empty_ones() -> None:
    config = parse(
        IMAGE,
        '<BrushLabels name="b" toName="image"><View><Label value="A"/></View><Label/><Label value=""/>'
        '<Label value="B"/></BrushLabels>',
    )
    assert list(where(config)) == ["A", "B"]


def test_the_same_label_twice_is_one_output() -> None:
    config = parse(
        IMAGE,
        '<BrushLabels name="b1" toName="image"><Label value="Cat"/><Label value="Cat"/></BrushLabels>',
        '<BrushLabels name="b2" toName="image"><Label value="Cat"/></BrushLabels>',
    )
    assert where(config) == {"Cat": ("b1", "brushlabels")}


def test_two_labels_controls_share_one_shape() -> None:
    config = parse(
        IMAGE,
        '<Labels name="animals" toName="image"><Label value="Cat"/></Labels>',
        '<Labels name="things" toName="image"><Label value="Car"/></Labels>',
        '<Brush name="b" toName="image"/>',
    )
    assert {label.name: control.labels_from for control, label in config.outputs("image", {})} == {
        "Cat": "animals", "Car": "things",
    }  # fmt: skip


def test_output_for() -> None:
    config = parse(
        IMAGE, '<BrushLabels name="b" toName="image"><Label value="Cat" alias="c"/><Label value="D"/></BrushLabels>'
    )
    assert config.output_for("image", "c", {})[1].name == "c"
    assert config.output_for("image", "Cat", {})[1].name == "c"
    assert config.output_for("image", "D", {})[1].name == "D"
    for unknown in ("Bird", None):
        with pytest.raises(ConfigError, match=r"'c', 'D'"):
            config.output_for("image", unknown, {})


def test_output_for_a_prompt_with_a_label_of_its_own() -> None:
    config = parse(
        IMAGE,
        '<BrushLabels name="b" toName="image"><Label value="Cat"/></BrushLabels>',
        '<KeyPointLabels name="k" toName="image" smart="true"><Label value="click here"/></KeyPointLabels>',
    )
    control, label = config.output_for("image", "click here", {})
    assert (control.name, label.name) == ("b", "Cat")
    assert config.output_for("image", None, {})[1].name == "Cat"
    with pytest.raises(ConfigError, match="none"):
        config.output_for("other image", "Cat", {})


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("", "not valid XML"),
        ("<View>", "not valid XML"),
        ("no xml", "not valid XML"),
        ("<View>\x00</View>", "not valid XML"),
        ("<View>\ud800</View>", "not valid XML"),
        (None, "not valid XML"),
        ("<View/>", "no <Image"),
        (f"<View>{BRUSH}</View>", "no <Image"),
        (f'<View><Image name="image" value="http://fixed/a.jpg"/>{BRUSH}</View>', "no <Image"),
        (f'<View><Text name="image" value="$text"/>{BRUSH}</View>', "no <Image"),
        (f"<View>{IMAGE}</View>", "no control can hold a result"),
        (f'<View>{IMAGE}<Choices name="c" toName="image"><Choice value="A"/></Choices></View>', "no control"),
        (
            f'<View>{IMAGE}<KeyPointLabels name="k" toName="image"><Label value="A"/></KeyPointLabels></View>',
            "no control",
        ),
        (
            f'<View>{IMAGE}<EllipseLabels name="k" toName="image"><Label value="A"/></EllipseLabels></View>',
            "no control",
        ),
        (f'<View>{IMAGE}<Brush name="k" toName="image"/></View>', "no control"),
        (f"<View>{IMAGE}{BRUSH.replace('image', 'other')}</View>", "toName='image'"),
        (f'<View>{IMAGE}<BrushLabels name="b"><Label value="A"/></BrushLabels></View>', "no control"),
    ],
)
def test_what_cannot_be_used(xml: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LabelConfig.parse(xml)


BOMB = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))


@pytest.mark.parametrize(
    ("doctype", "use"),
    [
        ('<!DOCTYPE x [<!ENTITY a "ha">]>', "&a;"),  # harmless, but none are needed
        (f'<!DOCTYPE x [<!ENTITY a0 "ha">{BOMB}]>', "&a9;"),
        ('<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>', "&e;"),
        ('<!DOCTYPE x [<!ENTITY % p SYSTEM "http://127.0.0.1:1/x.dtd"> %p;]>', ""),
    ],
    ids=["entity", "billion laughs", "external entity", "parameter entity"],
)
def test_xml_attacks_are_refused(doctype: str, use: str) -> None:
    start = time.process_time()
    with pytest.raises(ConfigError, match="EntitiesForbidden"):
        LabelConfig.parse(f'{doctype}<View>{IMAGE}<Header value="{use}"/>{BRUSH}</View>')
    assert time.process_time() - start < 1


def test_deep_and_wide_configs() -> None:
    deep = "<View>" * 5000 + IMAGE + BRUSH + "</View>" * 5000
    assert where(LabelConfig.parse(deep)) == {"Cat": ("brush", "brushlabels"), "Dog": ("brush", "brushlabels")}
    many = "".join(f'<Label value="L{i}"/>' for i in range(3000))
    config = parse(IMAGE, f'<BrushLabels name="b" toName="image">{many}</BrushLabels>')
    assert len(config.outputs("image", {})) == 3000


tags = st.sampled_from(
    ["View", "Image", "BrushLabels", "Labels", "Polygon", "Label", "KeyPoint", "TextArea", "Choices"]
)
attributes = st.dictionaries(
    st.sampled_from(["name", "toName", "value", "valueList", "alias", "hint", "segagent"]),
    st.sampled_from(["a", "b", "a,b", "$a", "$", "", "ignore", "output", "prompt"]),
)
trees = st.recursive(
    st.tuples(tags, attributes, st.just([])), lambda inner: st.tuples(tags, attributes, st.lists(inner, max_size=4))
)


def write(tree: Any) -> str:
    tag, attrs, children = tree
    written = "".join(f' {name}="{value}"' for name, value in attrs.items())
    return f"<{tag}{written}>{''.join(map(write, children))}</{tag}>"


@given(st.lists(trees, max_size=6))
def test_any_tree_is_a_config_or_a_config_error(children: list[Any]) -> None:
    try:
        config = parse(*map(write, children))
    except ConfigError:
        return
    data = {"a": ["x", {"value": "y"}], "": 5}
    for image in config.images:
        image.urls(data)
        names = [label.name for _, label in config.outputs(image.name, data)]
        assert len(names) == len(set(names))
        assert all(label.prompt(data) for _, label in config.outputs(image.name, data))


def test_the_prompt_that_an_annotator_typed() -> None:
    config = LabelConfig.parse(
        """<View><Image name="image" value="$image"/>
        <BrushLabels name="b" toName="image"><Label value="x"/></BrushLabels>
        <TextArea name="prompt" toName="image"/><TextArea name="note" toName="image"/></View>"""
    )

    def typed(text: object, name: str = "prompt") -> dict[str, object]:
        return {"type": "textarea", "from_name": name, "value": {"text": text}}

    assert config.prompt_text([typed(["the left", "one"]), typed("  "), typed("a note", "note")]) == "the left one"
    assert config.prompt_text([typed("old"), typed(" new ")]) == "new"
    for nothing in (None, 5, [], [None, "x"], [typed(None)], [{"type": "textarea", "from_name": "prompt", "value": 5}]):
        assert config.prompt_text(nothing) == ""
