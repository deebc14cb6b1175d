from __future__ import annotations

import re
from string import Template

import numpy as np
import pytest

from label_studio_segagent.errors import ConfigError
from label_studio_segagent.hlmat.actions import Answer, Click, Finish, JsonGrammar, LineGrammar
from label_studio_segagent.policies.prompts import BOX_HINT, PLAIN_HINT, PRESETS, REJECTED_HINT, find_preset
from label_studio_segagent.policies.resizing import Resize

SIZE = (300, 400)


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("qwen2_5_vl", "pixels"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "pixels"),
        ("Qwen2.5-Omni-7B", "pixels"),
        ("qwen2_vl", "per-mille"),
        ("qwen3_vl", "per-mille"),
        ("qwen3_vl_moe", "per-mille"),
        ("Qwen/Qwen3-VL-4B-Instruct", "per-mille"),
        ("internvl", "per-mille"),
        ("glm4v", "per-mille"),
        ("smolvlm", "per-mille"),
        ("llava", "per-mille"),
        ("gemma3", "row-column"),
        ("google/gemma-3-27b-it", "row-column"),
        ("our/SegAgent-LLaVA-SAM", "segagent"),
        ("", "per-mille"),
    ],
)
def test_the_preset_of_a_family(model: str, preset: str) -> None:
    assert find_preset(model) == preset


def test_the_operators_choice_comes_first() -> None:
    assert find_preset("qwen2_5_vl", "segagent") == "segagent"
    with pytest.raises(ConfigError, match="unknown preset 'qwen'.*SEGAGENT_PRESET.*per-mille"):
        find_preset("qwen2_5_vl", "qwen")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_prompts_are_complete(name: str) -> None:
    """Each text has all its fields, states the convention, and shows answers that the grammar itself can read."""
    preset = PRESETS[name]
    grammar = preset.grammar(preset.frame(Resize(2**20, preset.factor)))
    examples = {
        "click": grammar.format(Answer(Click(10, 20), 0.5), SIZE),
        "finish": grammar.format(Answer(Finish(), 1.0), SIZE),
    }
    fields = {"prompt", "coordinates", "found", *examples}
    for text in (preset.act, preset.locate):
        assert set(Template(text).get_identifiers()) <= fields and Template(text).is_valid()
    assert "$prompt" in preset.act
    if preset.locate:
        assert {"prompt", "coordinates", "found"} == set(Template(preset.locate).get_identifiers())
    if preset.grammar is JsonGrammar:
        assert {"prompt", "coordinates", *examples} == set(Template(preset.act).get_identifiers())
        for key in re.findall(r'"(\w+)":', examples["click"] + examples["finish"]):
            assert f'"{key}"' in preset.act, "every key of an answer is explained"
    for hint, field in ((BOX_HINT, "$box"), (REJECTED_HINT, "$clicks")):
        assert hint.count("$") == 1 and field in hint
    assert "$" not in PLAIN_HINT


def test_the_published_checkpoint_is_asked_as_it_was_trained() -> None:
    preset = PRESETS["segagent"]
    assert preset.grammar is LineGrammar and "<ref>$prompt</ref>" in preset.act and "green mask" in preset.act
    text = preset.grammar(preset.frame(Resize(2**20))).format(Answer(Click(100, 60, False), 0.74), SIZE)
    assert text == "Current IOU: 74\nNegative point: (200, 250)"


def test_coordinates_in_words_and_numbers_agree() -> None:
    """What the words call first is what the frame writes first."""
    for preset in PRESETS.values():
        first, second = preset.frame(Resize(2**20, preset.factor)).to_text(390, 3, SIZE)
        order = re.search(r"\[x, y\]|\[y, x\]|\(row, column\)", preset.coordinates)
        assert order is not None
        assert (first > second) == (order[0] == "[x, y]")
        assert np.isfinite([first, second]).all()
