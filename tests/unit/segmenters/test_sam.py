from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from label_studio_segagent.errors import ConfigError
from label_studio_segagent.hlmat.actions import Click
from label_studio_segagent.segmenters import Query, load_segmenter
from label_studio_segagent.segmenters.sam import SamSegmenter

from .conftest import randomize

pytestmark = pytest.mark.skipif(
    find_spec("segment_anything") is None, reason="no segment-anything; `make unit` installs it"
)


def _stand_in() -> dict[str, ModuleType]:
    """The four functions that segment-anything wants of torchvision, which has no build for this CPU's torch."""
    names = ["", ".ops", ".ops.boxes", ".transforms", ".transforms.functional"]
    modules = {f"torchvision{name}": ModuleType(f"torchvision{name}") for name in names}
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None)
        module.__path__ = []
    functional: Any = modules["torchvision.transforms.functional"]
    functional.to_pil_image = PIL.Image.fromarray
    functional.resize = lambda image, size: image.resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR)
    boxes: Any = modules["torchvision.ops.boxes"]
    boxes.batched_nms = boxes.box_area = None  # only its mask generator calls them
    return modules


@pytest.fixture(scope="module")
def package() -> Iterator[Any]:
    """`segment_anything`, which is gone again afterwards, as is the stand-in."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("torchvision") is None:
            for name, module in _stand_in().items():
                patch.setitem(sys.modules, name, module)
        import segment_anything

        yield segment_anything
        for name in set(sys.modules) - before:
            if name.startswith("segment_anything"):
                del sys.modules[name]


@pytest.fixture(scope="module")
def checkpoint(package: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A random checkpoint of the real class; "vit_b" is as small as the package allows while this fixture lives."""
    build = sys.modules["segment_anything.build_sam"]

    def tiny(checkpoint: None = None) -> Any:
        return build._build_sam(  # type: ignore[attr-defined]
            encoder_embed_dim=16, encoder_depth=1, encoder_num_heads=1, encoder_global_attn_indexes=[]
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(package.sam_model_registry, "vit_b", tiny)
        model = tiny()
        randomize(model)
        path = tmp_path_factory.mktemp("sam") / "tiny.pth"
        torch.save(model.state_dict(), path)
        yield path


@pytest.fixture(scope="module")
def segmenter(checkpoint: Path) -> SamSegmenter:
    return load_segmenter(f"sam:vit_b:{checkpoint}")


@pytest.mark.parametrize("size", [(48, 80), (90, 35)])
def test_answers_equal_those_of_sam_predictor(package: Any, segmenter: SamSegmenter, size: tuple[int, int]) -> None:
    image = np.random.default_rng(2).integers(0, 255, (*size, 3)).astype(np.uint8)
    predictor = package.SamPredictor(segmenter.model)
    predictor.set_image(image)
    state = segmenter.set_image(image)
    torch.testing.assert_close(state.features.maps[0], predictor.features)
    clicks = [Click(20, 30), Click(5, 7, False), Click(30, 11)]
    coords, labels = np.array([(c.x, c.y) for c in clicks]), np.array([int(c.positive) for c in clicks])

    first = segmenter.predict(state, clicks[:1])
    masks, scores, logits = predictor.predict(coords[:1], labels[:1], multimask_output=True)
    best = int(scores.argmax())
    assert (first.mask != masks[best]).mean() < 0.001  # where the logit is a rounding error away from 0
    np.testing.assert_allclose(first.logits, logits[best], atol=1e-4)
    assert first.score == pytest.approx(np.clip(scores[best], 0, 1), abs=1e-5)

    second = segmenter.predict(state, clicks, box=(2, 3, 30, 40), prior=first.logits)
    masks, scores, logits = predictor.predict(
        coords, labels, np.array([2, 3, 30, 40]), logits[best][None], multimask_output=False
    )
    assert (second.mask != masks[0]).mean() < 0.001
    np.testing.assert_allclose(second.logits, logits[0], atol=1e-4)
    assert second.mask.shape == size


def test_a_batch_over_two_images_answers_like_single_calls(segmenter: SamSegmenter, disc_image: np.ndarray) -> None:
    states = [segmenter.set_image(disc_image), segmenter.set_image(disc_image[:, :40].copy())]
    mask = np.zeros((48, 80), bool)
    mask[10:30, 20:50] = True
    queries = [Query(states[i % 2], [Click(5.0 + 9 * i, 20, i != 1)]) for i in range(4)]
    queries += [Query(states[0], [], (5, 5, 30, 30)), Query(states[0], [], None, mask), Query(states[1])]
    answers = segmenter.predict_batch(queries)
    for query, answer in zip(queries, answers, strict=True):
        single = segmenter.predict(query.state, query.clicks, box=query.box, prior=query.prior)
        assert (answer.mask != single.mask).mean() < 0.005 and answer.mask.shape == query.state.size
        np.testing.assert_allclose(answer.logits, single.logits, atol=1e-3 * np.abs(single.logits).max())
    shown = [answer.logits for answer in answers]
    assert all(np.abs(a - b).max() > 1e-4 for i, a in enumerate(shown) for b in shown[:i])


def test_the_embedding_survives_packing(segmenter: SamSegmenter, disc_image: np.ndarray) -> None:
    state = segmenter.set_image(disc_image)
    again = segmenter.unpack(disc_image, segmenter.pack(state))
    np.testing.assert_array_equal(
        segmenter.predict(again, [Click(3, 3)]).logits, segmenter.predict(state, [Click(3, 3)]).logits
    )


def test_the_version_follows_the_weights(checkpoint: Path, segmenter: SamSegmenter, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state, tmp_path / "same.pth")
    assert load_segmenter(f"sam:vit_b:{tmp_path / 'same.pth'}").version == segmenter.version
    state["mask_decoder.iou_token.weight"] += 1
    torch.save(state, tmp_path / "other.pth")
    assert load_segmenter(f"sam:vit_b:{tmp_path / 'other.pth'}").version != segmenter.version


@pytest.mark.parametrize("argument", ["", ":vit_b", ":vit_x:file.pth", ":/some/file.pth"])
def test_size_and_file_are_needed(argument: str) -> None:
    with pytest.raises(ConfigError, match="must be 'sam:<size>:<checkpoint>' with a size of vit_b, vit_l, vit_h"):
        load_segmenter("sam" + argument)


@pytest.mark.usefixtures("checkpoint")
def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no checkpoint"):
        load_segmenter(f"sam:vit_b:{tmp_path / 'missing.pth'}")
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save({"x": Path("/")}, tmp_path / "code.pth")
    (tmp_path / "empty.pth").touch()
    for name in ("text", "other", "list", "code", "empty"):
        with pytest.raises(ConfigError, match="is no SAM checkpoint of size vit_b: ."):
            load_segmenter(f"sam:vit_b:{tmp_path / name}.pth")


def test_without_torchvision_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith(("segment_anything", "torchvision")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ConfigError, match=r"pip install 'label-studio-segagent\[sam\]'"):
        load_segmenter("sam:vit_b:x.pth")
