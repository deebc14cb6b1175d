from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from label_studio_segagent.embedded.name_table import TABLE, NameTable
from label_studio_segagent.embedded.names import Meaning, class_names, meaning

TAUGHT = ("person", "pedestrian", "bicycle", "car", "bus", "truck", "train", "cat", "dog", "horse", "bird", "cup", "tv",
          "wine glass", "dining table", "chair", "sheep", "cow", "scissors", "skis", "mouse", "potted plant", "tree",
          "flower", "sky", "road", "baseball bat", "sports ball", "banana")  # fmt: skip
NAMES = class_names()
BREEDS = set(range(151, 269))


def classes(found: Meaning) -> dict[str, float]:
    return {NAMES[index]: weight for index, weight in found.classes}


def test_the_classes_are_in_the_order_of_imagenet() -> None:
    assert len(set(NAMES)) == len(NAMES) == 1000
    assert [NAMES[i] for i in (0, 151, 207, 281, 817, 954, 999)] == [
        "tench", "Chihuahua", "golden retriever", "tabby", "sports car", "banana", "toilet tissue",
    ]  # fmt: skip


@pytest.mark.parametrize("name", TAUGHT)
def test_a_taught_name_means_itself_most(name: str) -> None:
    for text in (name, f" {name.upper()}! "):
        found = meaning(text, TAUGHT)
        assert found.taught[0] == (name, 1.0)
        assert found.how == "name"


@pytest.mark.parametrize("index", range(0, 1000, 7))
def test_the_name_of_a_class_means_the_class(index: int) -> None:
    name = NAMES[index].split(" (")[0]
    assert index in dict(meaning(name, ()).classes)


def test_a_dog_is_all_breeds_and_no_dogsled() -> None:
    found = meaning("dog", TAUGHT)
    assert {index for index, _ in found.classes} == BREEDS
    assert dict(found.taught) == {"dog": 1.0}


@pytest.mark.parametrize(
    ("text", "there", "absent"),
    [
        ("bird", ("hen", "goose", "macaw"), ("birdhouse",)),
        ("cat", ("tabby", "Siamese cat"), ("tiger", "Madagascar cat", "leopard")),
        ("horse", ("sorrel",), ("hippopotamus", "horse cart", "sea horse", "zebra")),
        ("fig", ("fig",), ()),
        ("orange", ("orange",), ("lemon",)),
        ("mouse", ("mouse",), ("mousetrap",)),
        ("glass", ("beer glass", "goblet"), ("sunglasses",)),
        ("plant", ("daisy",), ("power drill",)),
        ("crane", ("crane (lifting device)", "crane (wading bird)"), ()),
        ("vehicle", ("minivan", "school bus", "tank", "moped"), ("car wheel", "car mirror")),
        ("furniture", ("desk", "rocking chair", "wardrobe"), ("television",)),
        ("fruit", ("banana", "strawberry", "pineapple"), ("broccoli",)),
        ("animal", ("tench", "zebra", "ant"), ("teddy",)),
        ("bottle", ("wine bottle", "beer bottle", "water bottle"), ("bottlecap",)),
        ("guitar", ("acoustic guitar", "electric guitar"), ("violin",)),
    ],
)
def test_what_lies_below_a_word_in_the_hierarchy_counts(
    text: str, there: tuple[str, ...], absent: tuple[str, ...]
) -> None:
    found = classes(meaning(text, TAUGHT))
    assert set(there) <= set(found)
    assert not set(absent) & set(found)


def test_taught_names_below_a_word_count() -> None:
    assert {"car", "bus", "truck", "bicycle", "train"} <= set(dict(meaning("vehicle", TAUGHT).taught))
    assert {"dog", "cat", "horse", "bird"} <= set(dict(meaning("animal", TAUGHT).taught))
    assert {"bus", "train"} <= set(dict(meaning("public transport", TAUGHT).taught))
    assert "flat shoes" in dict(meaning("shoe", ["flat shoes"]).taught)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("puppy", "dog"), ("labrador puppy", "dog"), ("stallion", "horse"), ("kitten", "cat"), ("woman", "person"),
        ("man", "person"), ("lorry", "truck"), ("armchair", "chair"), ("limousine", "car"), ("beagle", "dog"),
        ("duck", "bird"), ("mug", "cup"), ("ewe", "sheep"), ("firefighter", "person"),
    ],
)  # fmt: skip
def test_a_concept_above_a_word_counts_less(text: str, name: str) -> None:
    assert 0 < dict(meaning(text, TAUGHT).taught)[name] < 1


def test_a_word_with_a_class_of_its_own_is_first_that_class() -> None:
    found = meaning("beagle", TAUGHT)
    assert classes(found) == {"beagle": 1.0}
    assert dict(found.taught)["dog"] < dict(meaning("puppy", TAUGHT).taught)["dog"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a red sports car", "car"), ("cup of coffee", "cup"), ("man on a horse", "person"), ("dogs", "dog"),
        ("wine-glasses", "wine glass"), ("wineglass", "wine glass"), ("pair of skis", "skis"), ("mice", "mouse"),
        ("person running", "person"), ("bycicle", "bicycle"), ("group of people", "person"), ("television", "tv"),
        ("piece of banana", "banana"), ("Pedestrains", "pedestrian"), ("motorcar", "car"),
    ],
)  # fmt: skip
def test_phrases_plurals_synonyms_and_typing_errors(text: str, name: str) -> None:
    assert name in dict(meaning(text, TAUGHT).taught)


@pytest.mark.parametrize(
    "text", ["", "  ", "!?", "zorblax", "qilin", "tumour", "crack", "日本", "Käfer", "🐈", "lesion", "defect", "xyz"]
)
def test_unknown_words(text: str) -> None:
    assert meaning(text, TAUGHT) == Meaning((), (), "unknown")


@pytest.mark.parametrize("text", ["object", "thing", "foreground"])
def test_what_stands_out_has_no_concepts_unless_it_was_taught(text: str) -> None:
    assert meaning(text, TAUGHT).how == "unknown"
    assert dict(meaning(text, ("object",)).taught) == {"object": 1.0}


@pytest.mark.parametrize("name", ["zorblax", "weld seam", "Käfer", "日本"])
def test_names_that_no_table_has_can_be_taught(name: str) -> None:
    found = meaning(name.upper(), (name,))
    assert found.how == "name"
    assert [weight for _, weight in found.taught] == [1.0]
    assert meaning("weld seams", ("weld seam",)).taught == (("weld seam", 1.0),)


def test_a_taught_name_is_no_other_taught_name_by_a_synonym() -> None:
    assert dict(meaning("cyclist", ("cyclist", "person", "pedestrian", "baby")).taught) == {"cyclist": 1.0}
    assert dict(meaning("stop sign", ("stop sign", "traffic sign")).taught) == {"stop sign": 1.0}


def test_a_taught_name_is_also_looked_up_as_one_word() -> None:
    assert {"cougar", "lynx"} <= set(classes(meaning("wild cat", ("wild cat",))))


def test_synonyms_of_each_other_end() -> None:
    assert dict(meaning("pedestrian", ("walker",)).taught) == {"walker": 0.9}


def test_the_order_of_taught_names_does_not_matter() -> None:
    for text in ("vehicle", "animal", "bycicle", "shoe", "person"):
        assert meaning(text, TAUGHT) == meaning(text, TAUGHT[::-1]) == meaning(text, [*TAUGHT, *TAUGHT])


@given(st.text(max_size=40), st.lists(st.text(max_size=12), max_size=3))
def test_any_text_has_a_meaning(text: str, taught: list[str]) -> None:
    found = meaning(text, taught)
    weights = [weight for _, weight in (*found.classes, *found.taught)]
    assert all(type(weight) is float and 0 < weight <= 1 for weight in weights)
    assert (found.how == "unknown") == (not weights)
    assert [weight for _, weight in found.classes] == sorted((w for _, w in found.classes), reverse=True)
    assert all(0 <= index < 1000 for index, _ in found.classes)


def test_the_table_is_small_and_quick_to_load() -> None:
    assert TABLE.stat().st_size < 1_000_000
    start = time.process_time()
    NameTable()
    assert time.process_time() - start < 0.1


def test_names_need_neither_torch_nor_their_table_at_import() -> None:
    code = (
        "import sys; from label_studio_segagent.embedded import names; "
        "assert 'torch' not in sys.modules and not names._table.cache_info().currsize; "
        "names.meaning('dog', []); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
