from __future__ import annotations

from collections.abc import Sequence

import pytest

from label_studio_segagent.embedded.names import meaning
from label_studio_segagent.embedded.words import SALIENT, SYNONYMS, normalise

NAMES = ("person", "pedestrian", "bicycle", "car", "cat", "cup", "tv", "wine glass", "dining table", "sheep", "knife",
         "scissors", "bus", "skis", "sandwich", "teddy bear", "bear", "hot dog", "dog")  # fmt: skip


def taught(text: str, names: Sequence[str] = NAMES) -> str:
    """The name that masks have taught that a text means first of all."""
    found = meaning(text, names).taught
    return found[0][0] if found else SALIENT


@pytest.mark.parametrize("name", NAMES)
def test_known_names_mean_themselves(name: str) -> None:
    assert taught(name) == name
    assert taught(f"  {name.upper()} ") == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Woman", "person"), ("people", "person"), ("bikes", "bicycle"), ("kitten", "cat"), ("kitties", "cat"),
        ("coffee-cup", "cup"), ("mug", "cup"), ("television", "tv"), ("wine_glasses", "wine glass"),
        ("a red sports car", "car"), ("cup of tea", "cup"), ("man on a horse", "person"), ("buses", "bus"),
        ("knives", "knife"), ("Pedestrians", "pedestrian"), ("bycicle", "bicycle"), ("pedestrain", "pedestrian"),
        ("teddy bears", "teddy bear"), ("hotdog", "hot dog"),
    ],
)  # fmt: skip
def test_other_words(text: str, name: str) -> None:
    assert taught(text) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("man on a horse", "person"), ("woman with an umbrella", "person"), ("dog under the table", "dog"),
        ("person running", "person"), ("car door", SALIENT), ("horse parked outside", "horse"),
        ("the cup next to the cat", "cup"), ("pair of scissors", "scissors"), ("group of people", "person"),
        ("person riding a bicycle", "person"), ("in the car", "car"), ("wheel of a car", "wheel of a car"),
    ],
)  # fmt: skip
def test_what_comes_before_the_preposition_counts(text: str, name: str) -> None:
    """Also where the words behind it are known."""
    assert taught(text, [*NAMES, "horse", "umbrella", "wheel of a car"]) == name


@pytest.mark.parametrize("text", ["", "   ", "!?", "xylophone", "Käfer", "日本", "🐈", "object", "Foreground", "ca"])
def test_unknown_labels_mean_what_stands_out(text: str) -> None:
    assert taught(text) == SALIENT


def test_a_label_that_was_learned_by_a_synonym() -> None:
    assert taught("cup", ["mug"]) == "mug"
    assert taught("mug", ["mug"]) == "mug"


def test_synonyms_are_normalised() -> None:
    for synonym, name in SYNONYMS.items():
        assert normalise(name) == name
        assert taught(synonym, [name]) == name or name == SALIENT
