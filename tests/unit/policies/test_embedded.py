from __future__ import annotations

import copy
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from label_studio_segagent.agent.agent import SegAgent
from label_studio_segagent.errors import ConfigError, InputError
from label_studio_segagent.hlmat.actions import Click, Finish
from label_studio_segagent.hlmat.metrics import box_iou
from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.policies import Observation, load_policy
from label_studio_segagent.policies.embedded import ActSettings, EmbeddedPolicy
from label_studio_segagent.policies.embedded_inputs import affine_of, sample_context
from label_studio_segagent.policies.embedded_net import Located
from label_studio_segagent.policies.embedded_targets import choose_clicks, find_targets
from label_studio_segagent.policies.embedded_weights import save_net
from label_studio_segagent.segmenters import load_segmenter
from label_studio_segagent.segmenters.embedded import EmbeddedSegmenter, ViewSettings
from label_studio_segagent.segmenters.embedded_views import View


def test_answers_follow_the_protocol(tiny_policy: EmbeddedPolicy, scene: Sample) -> None:
    image, mask = scene.image, scene.mask
    targets = tiny_policy.locate(image, "cat")
    assert [t.score for t in targets] == sorted((t.score for t in targets), reverse=True)
    for target in targets:
        assert target.box is not None and 0 <= target.score <= 1
        assert 0 <= target.box[0] < target.box[2] <= image.shape[1]
        assert 0 <= target.box[1] < target.box[3] <= image.shape[0]
    for shown in (mask, np.zeros_like(mask), np.ones_like(mask)):
        for box in (None, (20.0, 10.0, 80.0, 60.0)):
            decision = tiny_policy.act([Observation(image, shown, "cat", box)])[0]
            assert decision.predicted_iou is not None and 0 <= decision.predicted_iou <= 1
            assert re.fullmatch(r"Current IOU: \d+\n(Finish|(Positive|Negative) point: \(\d+, \d+\))", decision.text)
            assert tiny_policy.grammar.parse(decision.text, mask.shape).action == decision.action
            if isinstance(decision.action, Click):
                assert shown[decision.action.pixel(*mask.shape)] != decision.action.positive


def test_empty_masks_are_worth_nothing(tiny_policy: EmbeddedPolicy, scene: Sample) -> None:
    empty = np.zeros_like(scene.mask)
    assert tiny_policy.act([Observation(scene.image, empty, "cat", (20, 10, 80, 60))])[0].predicted_iou == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (2, 3), (5, 900), (300, 200)])
@pytest.mark.parametrize("filled", [False, True])
def test_images_of_any_size(tiny_policy: EmbeddedPolicy, size: tuple[int, int], filled: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    tiny_policy.locate(image, "cat")
    decision = tiny_policy.act([Observation(image, np.full(size, filled), "cat", (0, 0, size[1], size[0]))])[0]
    assert isinstance(decision.action, (Click, Finish))


@pytest.mark.parametrize("prompt", ["", "zorblax", "日本", "🐈", "a" * 5000, "object"])
def test_unknown_labels_mean_the_same(tiny_policy: EmbeddedPolicy, scene: Sample, prompt: str) -> None:
    assert tiny_policy.locate(scene.image, prompt) == tiny_policy.locate(scene.image, "thing")
    seen = [Observation(scene.image, scene.mask, p) for p in (prompt, "thing")]
    first, second = tiny_policy.act(seen)
    assert first == second


def test_the_tireless_one_is_never_content(tiny_policy: EmbeddedPolicy, scene: Sample) -> None:
    easy = copy.copy(tiny_policy)
    easy.settings = ActSettings(good=0.0, judged=0.0)
    seen = [Observation(scene.image, scene.mask, "cat", (20, 10, 80, 60))]
    [content], [tireless] = easy.act(seen), easy.tireless().act(seen)
    assert isinstance(content.action, Finish) and isinstance(tireless.action, Click)
    assert tireless.predicted_iou == content.predicted_iou and easy.settings.good == 0.0
    assert easy.tireless().version != easy.version


def test_synonyms_mean_the_same(tiny_policy: EmbeddedPolicy, scene: Sample) -> None:
    assert tiny_policy.locate(scene.image, "Persons") == tiny_policy.locate(scene.image, "person")
    [(woman, _)], [(person, _)] = tiny_policy.query("Women").taught, tiny_policy.query("person").taught
    assert woman == person


def test_examples_are_evidence_without_training(
    tiny_policy: EmbeddedPolicy, scene: Sample, photos: list[Sample]
) -> None:
    """Only for their own label, however it is written, and only for the policy that was shown them."""
    image, other = scene.image, photos[0].image
    before = tiny_policy.locate(image, "zorblax")
    shown = tiny_policy.with_examples({"Zorblax": [(image, scene.mask), (other, photos[0].mask)]})
    query = shown.query("zorblaxes")
    assert query.count == 2 and query.examples is not None and not query.classes and not query.taught
    assert shown.version != tiny_policy.version and shown.locate(image, "zorblax") != before
    assert shown.locate(image, "cat") == tiny_policy.locate(image, "cat")
    assert tiny_policy.locate(image, "zorblax") == before and tiny_policy.query("zorblax").blank
    again = shown.with_examples({"blip": [(image, scene.mask)]})
    assert [name for name, _ in again.net.config.examples] == ["zorblax", "blip"]
    assert again.locate(image, "zorblax") == shown.locate(image, "zorblax")
    nothing = tiny_policy.with_examples({"zorblax": [(image, np.zeros_like(scene.mask))]})
    assert nothing.query("zorblax").blank and nothing.locate(image, "zorblax") == before
    with pytest.raises(InputError, match="must be bool"):
        tiny_policy.with_examples({"zorblax": [(image, scene.mask[:5])]})


def test_examples_survive_in_the_weights(
    tiny_policy: EmbeddedPolicy, tiny_segmenter: EmbeddedSegmenter, scene: Sample, tmp_path: Path
) -> None:
    shown = tiny_policy.with_examples({"zorblax": [(scene.image, scene.mask)]})
    save_net(shown.net, tmp_path / "shown.safetensors", tiny_segmenter.version)
    read = EmbeddedPolicy(tmp_path / "shown.safetensors", tiny_segmenter).query("zorblax")
    assert read.count == 1 and read.examples is not None
    torch.testing.assert_close(read.examples, shown.query("zorblax").examples, atol=2e-3, rtol=2e-3)


def test_how_often_a_label_is_there_is_taken_into_account(tiny_policy: EmbeddedPolicy, scene: Sample) -> None:
    rare, common = (tiny_policy.with_priors({"Cat": share}) for share in (0.0, 1.0))
    assert rare.locate(scene.image, "cat") == [] and common.locate(scene.image, "cats")
    assert rare.locate(scene.image, "thing") == tiny_policy.locate(scene.image, "thing")
    assert len({tiny_policy.version, rare.version, common.version}) == 3


@pytest.mark.parametrize("level", [0, 90, 255])
def test_flat_images_show_nothing(tiny_policy: EmbeddedPolicy, level: int) -> None:
    image = np.full((50, 70, 3), level, np.uint8)
    assert tiny_policy.locate(image, "cat") == []
    decision = tiny_policy.act([Observation(image, np.zeros((50, 70), bool), "cat")])[0]
    assert decision.action == Finish() and decision.predicted_iou == 0


def test_batches_are_answered_as_one_by_one(tiny_policy: EmbeddedPolicy, scene: Sample, photos: list[Sample]) -> None:
    other = photos[0]
    observations = [
        Observation(scene.image, scene.mask, "cat"),
        Observation(other.image, np.zeros_like(other.mask), "person", (5, 5, 50, 50)),
        Observation(scene.image, ~scene.mask, "thing"),
    ]
    assert tiny_policy.act(observations) == [tiny_policy.act([seen])[0] for seen in observations]
    items = [(scene.image, "cat"), (other.image, "person")]
    assert tiny_policy.locate_batch(items) == [tiny_policy.locate(*item) for item in items]
    several = [(scene.image, "cat"), (scene.image, "thing"), (scene.image, "person"), (other.image, "cat")]
    assert tiny_policy.locate_batch(several) == [tiny_policy.locate(*item) for item in several]
    assert tiny_policy.act([]) == [] and tiny_policy.locate_batch([]) == []


def test_parts_of_an_image_are_looked_at_as_well(
    policy_weights: Path, tiny_segmenter: EmbeddedSegmenter, photos: list[Sample]
) -> None:
    """Once for all labels, and not for one that is unknown: what stands out in a part need not in the image."""
    image = np.concatenate([photos[0].image] * 2, 1)
    policy = EmbeddedPolicy(policy_weights, tiny_segmenter)
    unknown = policy.locate(image, "thing")
    seen = policy.sight.see(image)
    assert seen.parts is None
    cats = policy.locate(image, "cat")
    assert seen.parts is not None and [window[1] for window, _ in seen.parts] == [0, 0]
    first = seen.parts[0][1]
    assert policy.locate(image, "person") and policy.locate(image, "cat") == cats and seen.parts[0][1] is first
    assert policy.locate(image, "thing") == unknown
    whole = policy._targets(seen, image.shape[:2], "cat")
    assert cats != whole and all(0 <= t.box[0] < t.box[2] <= image.shape[1] for t in cats if t.box)


def test_threads_agree(tiny_policy: EmbeddedPolicy, scene: Sample) -> None:
    seen = Observation(scene.image, scene.mask, "cat")
    expected = tiny_policy.act([seen])[0]
    with ThreadPoolExecutor(4) as pool:
        assert all(answer == expected for answer in pool.map(lambda _: tiny_policy.act([seen])[0], range(8)))


def test_states_of_any_segmenter_will_do(
    tiny_policy: EmbeddedPolicy, tiny_segmenter: EmbeddedSegmenter, scene: Sample
) -> None:
    own = Observation(scene.image, scene.mask, "cat")
    shared = Observation(scene.image, scene.mask, "cat", state=tiny_segmenter.set_image(scene.image))
    foreign = Observation(scene.image, scene.mask, "cat", state=load_segmenter("grabcut").set_image(scene.image))
    answers = tiny_policy.act([own, shared, foreign])
    assert answers[0] == answers[1] == answers[2]


def test_an_agent_works_with_it(tiny_policy: EmbeddedPolicy, tiny_segmenter: EmbeddedSegmenter, scene: Sample) -> None:
    rollout = SegAgent(tiny_policy, tiny_segmenter, max_clicks=2).segment(scene.image, "cat")
    assert rollout.mask.shape == scene.mask.shape


def test_it_looks_through_the_segmenter_that_it_works_with(
    policy_weights: Path, tiny_segmenter: EmbeddedSegmenter
) -> None:
    policy = load_policy(f"embedded:{policy_weights}", tiny_segmenter)
    assert isinstance(policy, EmbeddedPolicy) and policy.segmenter is tiny_segmenter
    other = load_policy("embedded", load_segmenter("grabcut"))
    assert isinstance(other, EmbeddedPolicy) and other.version == load_policy("embedded").version


def test_versions_name_everything_that_matters(
    policy_weights: Path, tiny_segmenter: EmbeddedSegmenter, tmp_path: Path
) -> None:
    first, again = (EmbeddedPolicy(policy_weights, tiny_segmenter) for _ in range(2))
    assert first.version == again.version
    with torch.no_grad():
        again.net.evidence.prototypes[1] += 1
    save_net(again.net, tmp_path / "other.safetensors", tiny_segmenter.version)
    assert EmbeddedPolicy(tmp_path / "other.safetensors", tiny_segmenter).version != first.version


def test_weights_that_are_none(tmp_path: Path, policy_weights: Path, tiny_segmenter: EmbeddedSegmenter) -> None:
    with pytest.raises(ConfigError, match="no policy weights"):
        EmbeddedPolicy(tmp_path / "missing.safetensors", tiny_segmenter)
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(ConfigError, match="not a safetensors file"):
        EmbeddedPolicy(tmp_path / "text", tiny_segmenter)
    save_file({"a": torch.zeros(1)}, tmp_path / "other", {"kind": "other"})
    with pytest.raises(ConfigError, match="no policy"):
        EmbeddedPolicy(tmp_path / "other", tiny_segmenter)
    save_file({"a": torch.zeros(1)}, tmp_path / "old", {"kind": "segagent-policy", "config": '{"labels": ["object"]}'})
    with pytest.raises(ConfigError, match="another version"):
        EmbeddedPolicy(tmp_path / "old", tiny_segmenter)


def test_views_must_agree(policy_weights: Path, tiny_segmenter: EmbeddedSegmenter, tmp_path: Path) -> None:
    from label_studio_segagent.segmenters.embedded import EmbeddedSegmenter as Segmenter  # noqa: PLC0415

    other = object.__new__(Segmenter)
    other.net, other.version, other.eyes, other.settings = tiny_segmenter.net, "x", "x", ViewSettings(zoom=128)
    with pytest.raises(ConfigError, match="views of 96 pixels"):
        EmbeddedPolicy(policy_weights, other)


def test_clicks_go_where_drawing_and_mask_differ() -> None:
    view = View.of((0, 0, 100, 80), 96)
    wanted = np.full((view.height // 4, view.width // 4), 0.02, np.float32)
    wanted[4:14, 4:14] = 0.98
    mask = np.zeros((80, 100), bool)
    first = choose_clicks(mask, wanted, view, (), least=0.04)[0]
    assert isinstance(first, Click) and first.positive and 20 < first.x < 55 and 20 < first.y < 55
    around = tuple(Click(first.x + dx, first.y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1))
    second = choose_clicks(mask, wanted, view, around, least=0.04)[0]
    assert isinstance(second, Click) and np.hypot(second.x - first.x, second.y - first.y) > 2
    mask[:] = True
    assert choose_clicks(mask, wanted, view, (), least=0.04)[0].positive is False
    mask = np.zeros((80, 100), bool)
    mask[20:70, 17:58] = True
    assert choose_clicks(mask, wanted, view, (), least=0.1) == [Finish()]


def test_targets_come_from_peaks() -> None:
    heat = torch.full((1, 1, 16, 16), -6.0)
    heat[0, 0, 4, 5], heat[0, 0, 4, 6], heat[0, 0, 10, 12] = 3.0, 2.0, 1.0
    located = Located(heat, torch.full((1, 4, 16, 16), 2.0), torch.full_like(heat, -6.0), heat, torch.zeros(1))
    targets = find_targets(located, 0, View.of((0, 0, 256, 256), 128), (256, 256), 0.3)
    assert [t.box for t in targets] == [(56.0, 40.0, 120.0, 104.0), (168.0, 136.0, 232.0, 200.0)]
    assert find_targets(located, 0, View.of((0, 0, 256, 256), 128), (256, 256), 0.99) == []
    assert box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3) and box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0


def test_boxes_fit_a_region_of_their_own_but_not_one_that_is_shared() -> None:
    heat, region = torch.full((1, 1, 16, 16), -6.0), torch.full((1, 1, 16, 16), -6.0)
    heat[0, 0, 3, 3], heat[0, 0, 10, 4], heat[0, 0, 10, 11], heat[0, 0, 3, 5] = 3.0, 2.0, 2.0, 1.0
    region[0, 0, 1:6, 2:9] = 6.0  # one object, of which there are two opinions
    region[0, 0, 8:13, 2:14] = 6.0  # two that touch
    located = Located(heat, torch.full((1, 4, 16, 16), 2.0), region, heat, torch.zeros(1))
    first, *others = find_targets(located, 0, View.of((0, 0, 256, 256), 128), (256, 256), 0.3)
    assert first.box == (2 * 16, 1 * 16, 9 * 16, 6 * 16)
    assert {t.box for t in others if t.box and t.box[1] > 100} == {(40, 136, 104, 200), (152, 136, 216, 200)}


def test_several_candidates_are_in_different_places_best_first(tiny_policy: EmbeddedPolicy, scene: Sample) -> None:
    view = View.of((0, 0, 100, 80), 96)
    wanted = np.full((view.height // 4, view.width // 4), 0.02, np.float32)
    wanted[3:15, 3:11] = 0.98
    mask = np.zeros((80, 100), bool)
    mask[10:70, 70:90] = True
    clicks = choose_clicks(mask, wanted, view, (), least=0.04, count=4)
    assert 2 <= len(clicks) <= 4 and clicks[0] == choose_clicks(mask, wanted, view, (), least=0.04)[0]
    assert all(isinstance(c, Click) and mask[c.pixel(80, 100)] != c.positive for c in clicks)
    assert {c.positive for c in clicks} == {True, False}
    places = np.array([(c.x, c.y) for c in clicks])
    assert all(np.hypot(*(a - b)) > 4 for i, a in enumerate(places) for b in places[:i])
    seen = Observation(scene.image, np.zeros_like(scene.mask), "cat", (20, 10, 80, 60))
    ((first, *_),) = tiny_policy.propose([seen], 3)
    assert first == tiny_policy.act([seen])[0]


def test_context_is_read_in_place() -> None:
    """What the locator sees at a place of the image is handed over at the same place of the view."""
    whole, view = View.of((0, 0, 200, 100), 128), View.of((50, 20, 110, 80), 96)
    cells = 128 // 8
    columns = torch.arange(cells)[None].expand(cells, -1).float()
    x_of_image = (columns + 0.5) * 8 * 200 / whole.width
    context = torch.stack([x_of_image, (columns.T + 0.5) * 8 * 100 / whole.height])[None]
    read = sample_context(context, affine_of(view, whole, 96, 128)[None], 96 // 8)[0]
    places = (torch.arange(12) + 0.5) * 8
    np.testing.assert_allclose(read[0, 3], 50 + places * 60 / view.width, atol=0.1)
    np.testing.assert_allclose(read[1, :, 3], 20 + places * 60 / view.height, atol=0.1)
