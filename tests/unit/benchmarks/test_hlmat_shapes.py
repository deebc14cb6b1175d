from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.hlmat_shapes.annotator import GRID, GridAnnotator, snapped
from benchmarks.hlmat_shapes.base import BaseSettings, collate, lesson, train_base
from benchmarks.hlmat_shapes.evaluation import RandomPolicy, TruePolicy, evaluate
from benchmarks.hlmat_shapes.model import POINT, make_model, make_processor
from benchmarks.hlmat_shapes.scenes import COLOURS, KINDS, RELATIONS, SIDE, Scene, expressions, make_samples, make_scene
from benchmarks.hlmat_shapes.wand import WandSegmenter
from label_studio_segagent.hlmat.actions import Click

SEEDS = st.integers(0, 10_000)


def meant(scene: Scene, expression: str) -> list[int]:
    """The shapes that an expression fits, worked out from its words; a relation must hold at all, not clearly."""
    for relation, (dx, dy) in RELATIONS.items():
        if f" {relation} " in expression:
            what, _, anchor = expression.partition(f" {relation} ")
            [at] = meant(scene, anchor)
            x, y = scene.shapes[at].centre
            return [
                i
                for i in meant(scene, what)
                if i != at and dx * (scene.shapes[i].centre[0] - x) + dy * (scene.shapes[i].centre[1] - y) > 0
            ]
    wanted = set(expression.split()[1:]) - {"shape"}
    return [i for i, s in enumerate(scene.shapes) if wanted <= {s.kind, s.colour, s.size}]


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_every_expression_means_exactly_its_shape(seed: int) -> None:
    scene = make_scene(seed)
    for index, texts in enumerate(expressions(scene)):
        assert len(set(texts)) == len(texts)
        for text in texts:
            assert meant(scene, text) == [index], text


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_scenes_are_exact_and_repeatable(seed: int) -> None:
    scene, again = make_scene(seed), make_scene(seed)
    assert np.array_equal(scene.image, again.image) and scene.image.shape == (SIDE, SIDE, 3)
    assert 3 <= len(scene.shapes) <= 5
    assert sum(s.mask.astype(int) for s in scene.shapes).max() == 1, "visible pixels belong to one shape"
    for shape in scene.shapes:
        assert shape.kind in KINDS and shape.mask.sum() > 20
        colour = np.array(COLOURS[shape.colour], float)
        nearest = [np.linalg.norm(scene.image[shape.mask] - colour * f, axis=1) for f in (1, 0.68)]
        assert np.median(np.minimum(*nearest)) < 40, "its pixels have its colour, in one of two tones"


def test_samples_are_many_kinds_and_stay_the_same() -> None:
    samples = make_samples(60, 5)
    assert [s.prompt for s in samples] == [s.prompt for s in make_samples(60, 5)]
    assert len({s.id for s in samples}) == 60 and len({s.prompt for s in samples}) > 40
    share = np.mean([any(f" {r} " in s.prompt for r in RELATIONS) for s in samples])
    assert 0.03 < share < 0.5
    assert not {s.image.tobytes() for s in samples} & {s.image.tobytes() for s in make_samples(60, 6)}


def test_the_wand_takes_what_is_connected_and_within_reach() -> None:
    image = np.full((40, 60, 3), 90, np.uint8)
    image[10:30, 10:50] = (200, 40, 40)
    tool = WandSegmenter()
    state = tool.set_image(image)
    first = tool.predict(state, [Click(15, 20)])
    assert first.mask[20, 12] and first.mask[20, 25] and not first.mask[20, 30] and not first.mask[5, 15]
    second = tool.predict(state, [Click(15, 20), Click(35, 20)], prior=first.logits)
    whole = tool.predict(state, [Click(15, 20), Click(35, 20)])
    assert np.array_equal(second.mask, whole.mask) and second.mask.sum() > first.mask.sum()
    undone = tool.predict(state, [Click(15, 20), Click(35, 20), Click(35, 20, False)], prior=second.logits)
    assert undone.mask.sum() < second.mask.sum() and not undone.mask[20, 40]
    given_mask = np.zeros((40, 60), bool)
    given_mask[0, 0] = True
    refined = tool.predict(state, [Click(15, 20), Click(35, 20)], prior=given_mask)
    assert np.array_equal(refined.mask, whole.mask | given_mask)
    assert not tool.predict(state, []).mask.any()


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_snapped_clicks_stay_in_the_part_they_are_meant_for(seed: int) -> None:
    region = make_scene(seed).shapes[0].mask
    rows, columns = np.nonzero(region)
    pick = seed % len(rows)
    click = Click(float(columns[pick]), float(rows[pick]))
    moved = snapped(click, region)
    assert region[moved.pixel(SIDE, SIDE)]
    assert moved == click or (moved.x % GRID, moved.y % GRID) == (GRID // 2, GRID // 2)


def test_random_clicks_fail_and_the_annotator_does_not() -> None:
    samples, tool = make_samples(30, 9), WandSegmenter()
    random, true = (evaluate(p, tool, samples) for p in (RandomPolicy(), TruePolicy(samples, GridAnnotator())))
    assert random["blind"]["7"] < 0.15 and "prm" not in random
    assert true["blind"]["1"] < true["prm"]["3"] < true["prm"]["7"] and true["prm"]["7"] > 0.9
    assert true["rating_mae"] == 0 and true["prm"]["7"] > true["blind"]["7"], "the tool can spoil a mask late"


def test_questions_of_one_image_do_not_see_each_other() -> None:
    """The logits of every question are those it gets when it is asked alone."""
    processor = make_processor()
    model = make_model(processor.tokenizer).eval()
    one = lesson(np.random.default_rng(0), 4)
    batch = collate(processor, [one])
    keys = ("input_ids", "attention_mask", "position_ids", "pixel_values")
    with torch.no_grad():
        together = model(**{key: batch[key] for key in keys}).logits[0, 100:]
        start = 0
        for question, answer in one.dialogue:
            alone = collate(processor, [type(one)(one.image, ((question, answer),), one.patches, one.places[:1])])
            logits = model(input_ids=alone["input_ids"], pixel_values=alone["pixel_values"]).logits[0, 100:]
            torch.testing.assert_close(together[start : start + len(logits)], logits, rtol=1e-4, atol=1e-4)
            start += len(logits)
    assert start == len(together)


def test_the_tokenizer_is_lossless_and_numbers_are_single_tokens() -> None:
    tokenizer = make_processor().tokenizer
    for text in ("Current IOU: 74\nPositive point: (175, 1000)", "Current IOU: 7\nFinish", "A zebra? 2 'of' them!"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer("Current IOU: 74\nNegative point: (175, 1000)").input_ids) == 7


def test_the_template_asks_as_in_training() -> None:
    """Jinja drops a line feed that follows a block."""
    processor = make_processor()
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"{POINT}<ref>the ring</ref>"}]}]
    text = processor.apply_chat_template([chat], add_generation_prompt=True)[0]
    told = processor(text=text, images=make_scene(0).image, return_tensors="pt")["input_ids"][0].tolist()
    one = lesson(np.random.default_rng(0), 1)
    dialogue = ((f"{POINT}<ref>the ring</ref>", one.dialogue[0][1]),)
    batch = collate(processor, [type(one)(one.image, dialogue, one.patches, one.places)])
    assert batch["input_ids"][0, : len(told)].tolist() == told and len(told) == 106


def test_the_base_model_trains_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = BaseSettings(minutes=0.06, images=2, questions=2, workers=0)
    train_base(tmp_path, short)
    first = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    folder = train_base(tmp_path, BaseSettings(minutes=0.1, images=2, questions=2, workers=0))
    then = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert then["step"] > first["step"] > 0 and then["seconds"] > first["seconds"]
    assert sum(t.numel() for t in then["model"].values()) == pytest.approx(6.2e6, rel=0.05)
    assert (folder / "model.safetensors").is_file() and (folder / "chat_template.jinja").is_file()
