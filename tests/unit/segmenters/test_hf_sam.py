from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from absent import error_without
from safetensors.torch import load_file, save_file

from label_studio_segagent.errors import ConfigError, InputError
from label_studio_segagent.hlmat.actions import Click
from label_studio_segagent.segmenters import ImageState, Query, Segmentation, load_segmenter
from label_studio_segagent.segmenters.hf_sam import HfSamSegmenter

KINDS = ("sam", "sam_hq", "sam2", "sam2_video", "sam3_tracker")


@pytest.fixture(scope="module")
def loaded(tiny_sams: dict[str, Path]) -> dict[str, HfSamSegmenter]:
    return {kind: load_segmenter(f"hf:{folder}") for kind, folder in tiny_sams.items()}


@pytest.fixture(params=KINDS)
def segmenter(request: pytest.FixtureRequest, loaded: dict[str, HfSamSegmenter]) -> HfSamSegmenter:
    return loaded[request.param]


@pytest.fixture
def rectangle() -> np.ndarray:
    mask = np.zeros((48, 80), bool)
    mask[10:30, 20:50] = True
    return mask


def same(a: Segmentation, b: Segmentation, tolerance: float = 0.0) -> None:
    assert (a.mask != b.mask).mean() <= tolerance
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-3 * max(1.0, np.abs(b.logits).max()) if tolerance else 0)
    assert a.score == pytest.approx(b.score, abs=1e-4 if tolerance else 0)


@pytest.mark.parametrize("size", [(48, 80), (90, 30), (1, 1), (3, 200)])
def test_answers_have_the_size_of_the_image(segmenter: HfSamSegmenter, size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 255, (*size, 3)).astype(np.uint8)
    state = segmenter.set_image(image)
    out = segmenter.predict(state, [Click(size[1] // 2, size[0] // 2)])
    again = segmenter.predict(state, [Click(0, 0), Click(size[1] - 1, 0, False)], prior=out.logits)
    for answer in (out, again):
        assert answer.mask.shape == size and answer.mask.dtype == np.bool_
        assert answer.logits.shape == (16, 16) and answer.logits.dtype == np.float32
        assert 0 <= answer.score <= 1 and np.isfinite(answer.logits).all()


def test_a_cached_embedding_answers_like_a_fresh_one(segmenter: HfSamSegmenter, disc_image: np.ndarray) -> None:
    clicks = [Click(30, 20), Click(70, 40, False)]
    used = segmenter.set_image(disc_image)
    first = segmenter.predict(used, clicks)
    same(segmenter.predict(used, clicks), first)
    same(segmenter.predict(segmenter.set_image(disc_image.copy()), clicks), first)
    packed = segmenter.pack(used)
    same(segmenter.predict(segmenter.unpack(disc_image, packed), clicks), first)
    features = sum(array.nbytes for array in packed.values())
    assert segmenter.state_bytes(used) == disc_image.nbytes + features


def test_a_batch_answers_like_single_calls(
    segmenter: HfSamSegmenter, disc_image: np.ndarray, rectangle: np.ndarray
) -> None:
    states = [segmenter.set_image(disc_image), segmenter.set_image(disc_image[:, :40].copy())]
    before = segmenter.predict(states[0], [Click(30, 20)]).logits
    queries = [Query(states[i % 2], [Click(3.0 * i, 2.0 * i, i % 3 > 0)]) for i in range(20)]
    queries += [Query(states[i % 2], [Click(5, 5), Click(20 + i, 30, i % 2 > 0)]) for i in range(3)]
    queries += [Query(states[0], [Click(5, 5)], None, before), Query(states[0], [Click(9, 9)], None, rectangle)]
    queries += [Query(states[1], [], (1, 2, 20, 30)), Query(states[0], [Click(5, 5)], (1, 2, 20, 30)), Query(states[0])]
    answers = segmenter.predict_batch(queries)
    assert len(answers) == len(queries)
    for query, answer in zip(queries, answers, strict=True):
        assert answer.mask.shape == query.state.size
        same(answer, segmenter.predict(query.state, query.clicks, box=query.box, prior=query.prior), 0.01)


def test_every_kind_of_prompt_counts(segmenter: HfSamSegmenter, disc_image: np.ndarray, rectangle: np.ndarray) -> None:
    state = segmenter.set_image(disc_image)
    click, other = Click(30, 20), Click(60, 40, False)
    asked: list[dict[str, Any]] = [
        {"clicks": [click]},
        {"clicks": [Click(31, 20)]},
        {"clicks": [Click(30, 20, False)]},
        {"clicks": [click, other]},
        {"clicks": [click, Click(60, 40)]},
        {"clicks": [click], "box": (10, 5, 45, 35)},
        {"clicks": [], "box": (10, 5, 45, 35)},
        {"clicks": [click], "prior": rectangle},
        {"clicks": [click], "prior": ~rectangle},
        {"clicks": [], "prior": rectangle},
        {"clicks": [click], "prior": segmenter.predict(state, [click]).logits},
    ]
    answers = [segmenter.predict(state, **kwargs).logits for kwargs in asked]
    for i, one in enumerate(answers):
        for j in range(i):
            assert np.abs(one - answers[j]).max() > 1e-4, (asked[i], asked[j])


def test_nothing_asked_nothing_found(segmenter: HfSamSegmenter, disc_image: np.ndarray) -> None:
    state = segmenter.set_image(disc_image)
    for prior in (None, np.zeros((48, 80), bool)):
        out = segmenter.predict(state, [], prior=prior)
        assert not out.mask.any() and out.mask.shape == (48, 80) and out.score == 0 and (out.logits < 0).all()


def test_an_empty_prior_mask_says_nothing(segmenter: HfSamSegmenter, disc_image: np.ndarray) -> None:
    state = segmenter.set_image(disc_image)
    same(
        segmenter.predict(state, [Click(30, 20)], prior=np.zeros((48, 80), bool)),
        segmenter.predict(state, [Click(30, 20)]),
    )


def test_clicks_outside_move_to_the_border(segmenter: HfSamSegmenter, disc_image: np.ndarray) -> None:
    state = segmenter.set_image(disc_image)
    same(segmenter.predict(state, [Click(-9, 1e9)]), segmenter.predict(state, [Click(0, 47)]))


def test_threads_do_not_disturb_each_other(segmenter: HfSamSegmenter, disc_image: np.ndarray) -> None:
    clicks = [Click(8.0 * i, 20) for i in range(8)]
    alone = [segmenter.predict(segmenter.set_image(disc_image), [c]) for c in clicks]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda c: segmenter.predict(segmenter.set_image(disc_image), [c]), clicks))
    for a, b in zip(alone, together, strict=True):
        same(a, b)


def test_masks_lie_where_the_logits_are(segmenter: HfSamSegmenter, disc_image: np.ndarray) -> None:
    """The whole way out, from a decoder whose answer is known: the left half of the square."""
    state = segmenter.set_image(disc_image)
    half = torch.full((1, 1, 16, 16), -5.0)
    half[..., :8] = 5.0
    patch = pytest.MonkeyPatch()
    patch.setattr(segmenter, "_decode", lambda images, prompts: (half, torch.full((1, 1), 0.5)))
    out = segmenter.predict(state, [Click(3, 3)])
    patch.undo()
    # The image is 80 wide and fills the width of the square in every family.
    np.testing.assert_array_equal(out.mask, np.arange(80)[None].repeat(48, 0) < 40)


@pytest.mark.parametrize("kind", ["sam", "sam_hq"])
@pytest.mark.parametrize("size", [(48, 80), (70, 33)])
def test_answers_equal_those_of_transformers_own_processor(
    kind: str, size: tuple[int, int], loaded: dict[str, HfSamSegmenter]
) -> None:
    segmenter = loaded[kind]
    image = np.random.default_rng(2).integers(0, 255, (*size, 3)).astype(np.uint8)
    square = {"height": 64, "width": 64}
    processor = transformers.SamImageProcessorPil(
        size={"longest_edge": 64}, pad_size=square, mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )  # fmt: skip
    inputs = processor(images=image, return_tensors="pt")
    state = segmenter.set_image(image)
    pixels = state.features.frame.pixels(image, segmenter.looks.mean, segmenter.looks.std, torch.device("cpu"))
    torch.testing.assert_close(pixels, inputs["pixel_values"].float(), atol=1e-5, rtol=1e-5)

    scale = torch.tensor(inputs["reshaped_input_sizes"][0].tolist()) / torch.tensor(size)
    points = torch.tensor([[[[20.0, 30.0], [5.0, 7.0]]]]) * scale.flip(0)
    labels = torch.tensor([[[1, 0]]])
    ask = {"pixel_values": inputs["pixel_values"].float()}
    with torch.no_grad():
        single = segmenter.model(
            **ask, input_points=points[:, :, :1].float(), input_labels=labels[:, :, :1], multimask_output=True
        )
        double = segmenter.model(
            **ask, input_points=points.float(), input_labels=labels, multimask_output=False,
            input_boxes=torch.tensor([[[2.0, 3.0, 30.0, 40.0]]]) * scale.flip(0).repeat(2).float(),
        )  # fmt: skip
    outs = [
        segmenter.predict(state, [Click(20, 30)]),
        segmenter.predict(state, [Click(20, 30), Click(5, 7, False)], box=(2, 3, 30, 40)),
    ]
    for out, reference in zip(outs, (single, double), strict=True):
        best = int(reference.iou_scores[0, 0].argmax())
        [masks] = processor.post_process_masks(
            reference.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )
        assert (out.mask != masks[0, best].numpy()).mean() < 0.005
        np.testing.assert_allclose(out.logits, reference.pred_masks[0, 0, best], atol=1e-3)
        assert out.score == pytest.approx(float(reference.iou_scores[0, 0, best].clamp(0, 1)), abs=1e-4)


@pytest.mark.parametrize("kind", ["sam2", "sam2_video", "sam3_tracker"])
def test_a_single_click_gets_the_best_of_three(kind: str, loaded: dict[str, HfSamSegmenter]) -> None:
    """Against the model's own forward pass; the image has the size of the square, so nothing is resized."""
    segmenter = loaded[kind]
    side = segmenter.looks.side
    image = np.random.default_rng(3).integers(0, 255, (side, side, 3)).astype(np.uint8)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (segmenter.looks.mean, segmenter.looks.std))
    pixels = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - mean) / std
    with torch.no_grad():
        reference = segmenter.model(
            pixel_values=pixels, input_points=torch.tensor([[[[20.0, 30.0]]]]), input_labels=torch.tensor([[[1]]])
        )
    assert reference.iou_scores.shape == (1, 1, 3)
    best = int(reference.iou_scores[0, 0].argmax())
    out = segmenter.predict(segmenter.set_image(image), [Click(20, 30)])
    expected = reference.pred_masks[0, 0, best]
    np.testing.assert_allclose(out.logits, expected.clamp(-32, 32), atol=1e-2)
    whole = F.interpolate(expected[None, None], (side, side), mode="bilinear", align_corners=False)[0, 0] > 0
    assert (out.mask != whole.numpy()).mean() < 0.005


def test_logits_of_the_newer_models_are_clamped(loaded: dict[str, HfSamSegmenter], disc_image: np.ndarray) -> None:
    looks = {kind: segmenter.looks for kind, segmenter in loaded.items()}
    assert (
        {kind for kind in KINDS if looks[kind].clamp is None}
        == {"sam", "sam_hq"}
        == {kind for kind in KINDS if looks[kind].padded}
    )
    assert looks["sam3_tracker"].mean == (0.5, 0.5, 0.5) and looks["sam2"].mean[0] == 0.485


def test_a_video_checkpoint_gives_its_image_model(loaded: dict[str, HfSamSegmenter]) -> None:
    assert type(loaded["sam2_video"].model).__name__ == "Sam2Model"


def test_versions_follow_the_weights(tiny_sams: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sams["sam"], tmp_path / "copy")
    version = load_segmenter(f"hf:{tiny_sams['sam']}").version
    assert load_segmenter(f"hf:{folder}").version == version and version.startswith("sam-")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}))
    other = load_segmenter(f"hf:{folder}")
    assert other.looks.mean == (0, 0, 0) and other.version != version
    (folder / "preprocessor_config.json").unlink()
    weights = load_file(folder / "model.safetensors")
    weights["mask_decoder.iou_token.weight"] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert load_segmenter(f"hf:{folder}").version != version


def test_states_of_others_and_wrong_priors_are_refused(
    loaded: dict[str, HfSamSegmenter], disc_image: np.ndarray
) -> None:
    segmenter = loaded["sam"]
    state = segmenter.set_image(disc_image)
    for foreign in (ImageState(disc_image), loaded["sam2"].set_image(disc_image)):
        with pytest.raises(InputError, match="another segmenter"):
            segmenter.predict(foreign, [Click(1, 1)])
    for prior in (np.zeros((3, 3), bool), np.zeros((48, 80), np.float32)):
        with pytest.raises(InputError, match="prior"):
            segmenter.predict(state, [Click(1, 1)], prior=prior)
    with pytest.raises(InputError, match="RGB uint8"):
        segmenter.set_image(disc_image[..., 0])


# Loading


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No search on the hub for what is not there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    yield


def test_a_name_is_needed() -> None:
    with pytest.raises(ConfigError, match="needs the name"):
        load_segmenter("hf")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["nobody/nothing", "/no/such/folder"])
def test_a_missing_model(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'hf:{name}' cannot be loaded"):
        load_segmenter(f"hf:{name}")


def test_another_type_of_model(tmp_path: Path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a 'bert', which is no promptable segmenter; known types: sam,"):
        load_segmenter(f"hf:{tmp_path}")


def test_weights_that_are_missing(tiny_sams: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sams["sam2"], tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    del weights["mask_decoder.iou_token.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="lacks weights of a Sam2Model: mask_decoder.iou_token.weight"):
        load_segmenter(f"hf:{folder}")


def test_only_safetensors_are_read(tiny_sams: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sams["sam"], tmp_path / "copy")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="must hold safetensors"):
        load_segmenter(f"hf:{folder}")


def test_edgetam_without_its_packages(tmp_path: Path) -> None:
    transformers.EdgeTamConfig().save_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    error = error_without("timm", f"load_segmenter('hf:{tmp_path}')")
    assert re.search("needs a package that is not installed: .*timm", error, re.DOTALL)


def test_the_encoder_runs_in_bf16(segmenter: HfSamSegmenter, disc_image: np.ndarray) -> None:
    """On the CPU, what CUDA does: every map comes out, a little less exact."""
    state = segmenter.set_image(disc_image)
    pixels = state.features.frame.pixels(disc_image, segmenter.looks.mean, segmenter.looks.std, segmenter.device)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        maps = segmenter._encode(pixels)
    assert len(maps) == len(state.features.maps)
    for rough, exact in zip(maps, state.features.maps, strict=True):
        assert rough.shape == exact.shape
        assert 0 < (rough.float() - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_bf16_on_cuda_is_close_to_the_cpu(kind: str, tiny_sams: dict[str, Path], disc_image: np.ndarray) -> None:
    cpu = HfSamSegmenter(str(tiny_sams[kind]), torch.device("cpu"))
    cuda = HfSamSegmenter(str(tiny_sams[kind]), torch.device("cuda"))
    assert cuda.version != cpu.version
    outs = [s.predict(s.set_image(disc_image), [Click(30, 20), Click(70, 40, False)]) for s in (cpu, cuda)]
    assert outs[1].logits.dtype == np.float32
    assert np.abs(outs[0].logits - outs[1].logits).max() < 0.1 * np.abs(outs[0].logits).max()
    queries = [Query(cuda.set_image(disc_image), [Click(10, 10 + i)]) for i in range(3)]
    for query, answer in zip(queries, cuda.predict_batch(queries), strict=True):
        assert (answer.mask != cuda.predict(query.state, query.clicks).mask).mean() < 0.02
