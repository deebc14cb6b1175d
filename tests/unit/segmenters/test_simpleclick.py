"""SimpleClick on random state dicts with the published names and shapes, written down here once more."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from label_studio_segagent.errors import ConfigError, InputError
from label_studio_segagent.hlmat.actions import Click
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.segmenters import ImageState, Query, load_segmenter
from label_studio_segagent.segmenters.simpleclick import SimpleClickSegmenter
from label_studio_segagent.segmenters.simpleclick_net import SIDE, SimpleClickNet

Shapes = dict[str, tuple[int, ...]]
Neck = tuple[int, int, int, int]


def published_shapes(width: int, depth: int, patch: int, neck: Neck, channels: int, finer: int = 1) -> Shapes:
    """Names and shapes of a published state dict; `channels` of the classifier, at a stride of 4 / `finer`."""
    shapes: Shapes = {"backbone.cls_token": (1, 1, width), "backbone.pos_embed": (1, (448 // patch) ** 2 + 1, width)}

    def layer(name: str, *shape: int, transposed: bool = False) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = (shape[1 if transposed else 0],)

    layer("patch_embed_coords.proj", width, 3, patch, patch)
    layer("backbone.patch_embed.proj", width, 3, patch, patch)
    for i in range(depth):
        block = f"backbone.blocks.{i}"
        layer(f"{block}.norm1", width)
        layer(f"{block}.norm2", width)
        layer(f"{block}.attn.qkv", 3 * width, width)
        layer(f"{block}.attn.proj", width, width)
        layer(f"{block}.mlp.fc1", 4 * width, width)
        layer(f"{block}.mlp.fc2", width, 4 * width)
    layer("backbone.fc_norm", width)
    layer("backbone.head", 1000, width)
    c4, c8, c32 = max(2 * neck[0], width // 2), max(neck[1], width // 2), max(neck[3], 2 * width)
    layer("neck.down_4.0", width, c4, 2, 2, transposed=True)
    layer("neck.down_4.1", c4)
    layer("neck.down_4.3", c4, c4 // 2, 2, 2, transposed=True)
    layer("neck.down_4.4", c4 // 2)
    layer("neck.down_4.5", neck[0], c4 // 2, 1, 1)
    layer("neck.down_4.6", neck[0])
    layer("neck.down_8.0", width, c8, 2, 2, transposed=True)
    layer("neck.down_8.1", c8)
    layer("neck.down_8.2", neck[1], c8, 1, 1)
    layer("neck.down_8.3", neck[1])
    layer("neck.down_16.0", neck[2], width, 1, 1)
    layer("neck.down_16.1", neck[2])
    layer("neck.down_32.0", c32, width, 2, 2)
    layer("neck.down_32.1", c32)
    layer("neck.down_32.2", neck[3], c32, 1, 1)
    layer("neck.down_32.3", neck[3])
    out = channels * finer
    for i in range(4):
        layer(f"head.convs.{i}.conv", out, neck[i], 1, 1)
    layer("head.fusion_conv.conv", out, 4 * out, 1, 1)
    layer("head.conv_seg", 1, channels, 1, 1)
    for i, wide in ((1, out), (2, out // 2)):
        layer(f"head.up_conv{i}.0", wide, wide // 2, 2, 2, transposed=True)
        layer(f"head.up_conv{i}.1", wide // 2)
        layer(f"head.up_conv{i}.2", wide // 2, wide // 2, 1, 1)
        layer(f"head.up_conv{i}.3", wide // 2)
    return shapes


TINY = published_shapes(32, 4, 16, (8, 16, 32, 64), 16)


def random_state(shapes: Shapes = TINY, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            state[name] = 0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            state[name] = noise * noise[0].numel() ** -0.5 * 1.5
    state["patch_embed_coords.proj.weight"] *= 4  # clicks are to be felt
    return state


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simpleclick") / "tiny.pth"
    config = {"class": "x", "params": {"backbone_params": {"type": "builtin", "value": {"num_heads": 2}}}}
    torch.save({"state_dict": random_state(), "config": config}, path)
    return path


@pytest.fixture(scope="module")
def segmenter(checkpoint: Path) -> SimpleClickSegmenter:
    return load_segmenter(f"simpleclick:{checkpoint}")


# The network


@pytest.mark.parametrize(
    ("shapes", "window", "heads"),
    [
        (published_shapes(768, 12, 16, (128, 256, 512, 1024), 256), 14, 12),
        (published_shapes(1024, 24, 16, (192, 384, 768, 1536), 256), 14, 16),
        (published_shapes(1280, 32, 14, (240, 480, 960, 1920), 256), 16, 16),
    ],
    ids=["base", "large", "huge"],
)
def test_the_published_sizes_fit(shapes: Shapes, window: int, heads: int) -> None:
    with torch.device("meta"):
        net = SimpleClickNet({name: torch.empty(shape) for name, shape in shapes.items()})
    assert net.heads == heads
    own = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    unused = ("backbone.cls_token", "backbone.fc_norm.", "backbone.head.", "head.up_conv")
    assert own == {name: shape for name, shape in shapes.items() if not name.startswith(unused)}
    seen: list[int] = []
    for block in net.backbone.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    side = SIDE // net.backbone.patch_embed.proj.stride[0]
    with torch.device("meta"):
        assert net(torch.empty(2, 3, SIDE, SIDE), torch.empty(2, 3, SIDE, SIDE)).shape == (2, SIDE, SIDE)
    every = {12: 6, 24: 6, 32: 8}[len(seen)]
    assert [n == side**2 for n in seen] == [i % every == 0 for i in range(1, len(seen) + 1)]
    assert set(seen) == {side**2, window**2}


def reference(state: dict[str, Tensor], image: Tensor, hints: Tensor, heads: int, every: int) -> Tensor:
    """The published forward pass, the slow way: one image, windows one by one, attention by its formula."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride)

    def up(x: Tensor, name: str) -> Tensor:
        return F.conv_transpose2d(x, state[f"{name}.weight"], state[f"{name}.bias"], 2)

    def group(x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 1, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def block(x: Tensor, name: str) -> Tensor:
        qkv = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv")
        q, k, v = (part.reshape(len(x), heads, -1).transpose(0, 1) for part in qkv.chunk(3, -1))
        weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1)
        x = x + linear((weights @ v).transpose(0, 1).reshape(x.shape), f"{name}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        return x + linear(hidden, f"{name}.mlp.fc2")

    patch = state["patch_embed_coords.proj.weight"].shape[-1]
    side, window = 448 // patch, 224 // patch
    x = conv(image, "backbone.patch_embed.proj", patch) + conv(hints, "patch_embed_coords.proj", patch)
    x = x[0].permute(1, 2, 0) + state["backbone.pos_embed"][0, 1:].reshape(side, side, -1)
    depth = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("backbone.blocks"))
    for i in range(depth):
        if (i + 1) % every == 0:
            x = block(x.reshape(side * side, -1), f"backbone.blocks.{i}").reshape(x.shape)
            continue
        x = x.clone()
        for top in range(0, side, window):
            for left in range(0, side, window):
                part = x[top : top + window, left : left + window]
                done = block(part.reshape(window * window, -1), f"backbone.blocks.{i}")
                x[top : top + window, left : left + window] = done.reshape(part.shape)
    x = x.permute(2, 0, 1)[None]
    n = "neck.down_4."
    x4 = up(F.gelu(group(up(x, n + "0"), n + "1")), n + "3")
    x4 = F.gelu(group(conv(group(x4, n + "4"), n + "5"), n + "6"))
    n = "neck.down_8."
    x8 = F.gelu(group(conv(group(up(x, n + "0"), n + "1"), n + "2"), n + "3"))
    x16 = F.gelu(group(conv(x, "neck.down_16.0"), "neck.down_16.1"))
    n = "neck.down_32."
    x32 = F.gelu(group(conv(group(conv(x, n + "0", 2), n + "1"), n + "2"), n + "3"))
    maps = [
        F.interpolate(F.relu(conv(level, f"head.convs.{i}.conv")), x4.shape[2:], mode="bilinear")
        for i, level in enumerate((x4, x8, x16, x32))
    ]
    out = F.relu(conv(torch.cat(maps, 1), "head.fusion_conv.conv"))
    ratio = out.shape[1] // state["head.conv_seg.weight"].shape[1]
    for i in range(1, {1: 1, 2: 2, 4: 3}[ratio]):
        n = f"head.up_conv{i}."
        out = F.gelu(group(conv(group(up(out, n + "0"), n + "1"), n + "2"), n + "3"))
    return F.interpolate(conv(out, "head.conv_seg"), (448, 448), mode="bilinear", align_corners=True)[0, 0]


@pytest.mark.parametrize(
    ("shapes", "every"),
    [
        (published_shapes(32, 12, 16, (8, 16, 32, 64), 16), 6),
        (published_shapes(32, 8, 14, (8, 16, 32, 64), 8, finer=2), 2),
        (published_shapes(32, 8, 28, (8, 16, 32, 64), 4, finer=4), 2),
    ],
    ids=["base", "huge, twice as fine", "four times as fine"],
)
def test_the_network_computes_what_was_published(shapes: Shapes, every: int) -> None:
    state = random_state(shapes)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, 448, 448, generator=generator)
    hints = (torch.rand(2, 3, 448, 448, generator=generator) > 0.9).float()
    with torch.no_grad():
        out = SimpleClickNet(state, heads=4)(image, hints)
        expected = reference(state, image[1:], hints[1:], 4, every)
    assert out.shape == (2, 448, 448)
    torch.testing.assert_close(out[1], expected, atol=1e-3, rtol=1e-3)


def test_positions_of_another_grid_are_resized() -> None:
    state = random_state()
    ramp = torch.linspace(0, 1, 14)[None, :, None].expand(14, 14, 32)
    state["backbone.pos_embed"] = torch.cat([torch.zeros(1, 1, 32), ramp.reshape(1, 196, 32)], 1)
    table = SimpleClickNet(state).backbone.pos_embed[0, 1:].reshape(28, 28, 32)
    assert torch.equal(table[0], table[20]) and (table[0].diff(dim=0) > 0).all()


# The segmenter


@pytest.mark.parametrize("size", [(48, 80), (90, 30), (1, 1), (3, 500)])
def test_answers_have_the_size_of_the_image(segmenter: SimpleClickSegmenter, size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 255, (*size, 3)).astype(np.uint8)
    state = segmenter.set_image(image)
    out = segmenter.predict(state, [Click(size[1] // 2, size[0] // 2)])
    assert out.mask.shape == size and out.mask.dtype == np.bool_
    assert out.logits.shape == (SIDE, SIDE) and out.logits.dtype == np.float32
    assert 0 <= out.score <= 1
    assert segmenter.predict(state, [Click(0, 0)], prior=out.logits).mask.shape == size


def test_a_batch_and_a_fresh_state_answer_the_same(segmenter: SimpleClickSegmenter, disc_image: np.ndarray) -> None:
    states = [segmenter.set_image(disc_image), segmenter.set_image(disc_image[:, :40].copy())]
    queries = [Query(states[i % 2], [Click(5.0 * i, 20, i != 3)]) for i in range(9)]
    queries += [Query(states[0]), Query(states[1], [Click(1, 1), Click(30, 30, False)], (2, 2, 20, 20))]
    for query, answer in zip(queries, segmenter.predict_batch(queries), strict=True):
        fresh = segmenter.set_image(query.state.image.copy())
        single = segmenter.predict(fresh, query.clicks, box=query.box, prior=query.prior)
        np.testing.assert_allclose(answer.logits, single.logits, atol=1e-4)
        assert (answer.mask != single.mask).mean() < 0.01
        assert answer.score == pytest.approx(single.score, abs=1e-4)


def test_every_kind_of_prompt_counts(segmenter: SimpleClickSegmenter, disc_image: np.ndarray) -> None:
    state = segmenter.set_image(disc_image)
    mask = np.zeros((48, 80), bool)
    mask[10:30, 20:50] = True
    click = Click(30, 20)
    answers = [
        segmenter.predict(state, [click]).logits,
        segmenter.predict(state, [Click(30, 20, False)]).logits,
        segmenter.predict(state, [click, Click(60, 40, False)]).logits,
        segmenter.predict(state, [click], prior=mask).logits,
        segmenter.predict(state, [], prior=mask).logits,
        segmenter.predict(state, [], box=(10, 5, 45, 35)).logits,
        segmenter.predict(state, [click], box=(10, 5, 45, 35)).logits,
    ]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(answers) for b in answers[:i])


@pytest.fixture
def asked(segmenter: SimpleClickSegmenter, monkeypatch: pytest.MonkeyPatch) -> Callable[..., np.ndarray]:
    """`asked(query)`: the three maps that the network is given."""
    seen: list[Tensor] = []

    def net(images: Tensor, hints: Tensor) -> Tensor:
        seen.append(hints)
        return torch.zeros(len(hints), SIDE, SIDE)

    def ask(query: Query) -> np.ndarray:
        monkeypatch.setattr(segmenter.net, "forward", net)
        segmenter.predict_batch([query])
        return seen[-1][0].numpy()

    return ask


def test_the_maps_beside_the_image(segmenter: SimpleClickSegmenter, asked: Callable[..., np.ndarray]) -> None:
    state = segmenter.set_image(np.zeros((112, 224, 3), np.uint8))
    hints = asked(Query(state, [Click(50, 30), Click(100, 90, False)]))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    assert not hints[0].any()
    np.testing.assert_array_equal(hints[1], np.hypot(rows - 120, columns - 100) <= 5)
    np.testing.assert_array_equal(hints[2], np.hypot(rows - 360, columns - 200) <= 5)
    mask = np.zeros((112, 224), bool)
    mask[20:40, 50:100] = True
    hints = asked(Query(state, [], None, mask))
    inside = (rows // 4 >= 20) & (rows // 4 < 40) & (columns // 2 >= 50) & (columns // 2 < 100)
    np.testing.assert_allclose(hints[0], np.where(inside, 0.999, 0.001), atol=1e-6)
    box = asked(Query(state, [], (50, 20, 100, 40)))
    np.testing.assert_array_equal(box[0], hints[0])
    assert box[1][int(29.5 * 4), int(74.5 * 2)] == 1 and not box[2].any()
    logits = np.full((SIDE, SIDE), 2.0, np.float32)
    np.testing.assert_allclose(asked(Query(state, [Click(1, 1)], None, logits))[0], 1 / (1 + np.exp(-2)), atol=1e-6)


def test_masks_lie_where_the_logits_are(segmenter: SimpleClickSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.full((1, SIDE, SIDE), -9.0)
    logits[:, 112:336, :224] = 9.0
    monkeypatch.setattr(segmenter.net, "forward", lambda images, hints: logits)
    out = segmenter.predict(segmenter.set_image(np.zeros((60, 100, 3), np.uint8)), [Click(5, 5)])
    expected = np.zeros((60, 100), bool)
    expected[15:45, :50] = True
    assert iou(out.mask, expected) == 1
    assert out.score == pytest.approx(1, abs=1e-3)


def test_the_score_is_the_expected_iou(segmenter: SimpleClickSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.full((1, SIDE, SIDE), float(np.log(0.25 / 0.75)))
    logits[:, :, :112] = float(np.log(3.0))  # a quarter of the square at 3/4, the rest at 1/4
    monkeypatch.setattr(segmenter.net, "forward", lambda images, hints: logits)
    out = segmenter.predict(segmenter.set_image(np.zeros((8, 8, 3), np.uint8)), [Click(1, 1)])
    assert out.score == pytest.approx(0.75 * 0.25 / (0.25 + 0.25 * 0.75), abs=1e-5)


def test_nothing_asked_nothing_found(segmenter: SimpleClickSegmenter, disc_image: np.ndarray) -> None:
    state = segmenter.set_image(disc_image)
    for prior in (None, np.zeros((48, 80), bool)):
        out = segmenter.predict(state, [], prior=prior)
        assert not out.mask.any() and out.score == 0 and (out.logits < 0).all()


def test_states_of_others_and_wrong_priors_are_refused(segmenter: SimpleClickSegmenter, disc_image: np.ndarray) -> None:
    with pytest.raises(InputError, match="another segmenter"):
        segmenter.predict(ImageState(disc_image), [Click(1, 1)])
    for prior in (np.zeros((3, 3), bool), np.zeros((48, 80), np.float32)):
        with pytest.raises(InputError, match="prior"):
            segmenter.predict(segmenter.set_image(disc_image), [Click(1, 1)], prior=prior)


# Loading


def test_heads_come_from_the_checkpoint(checkpoint: Path, segmenter: SimpleClickSegmenter, tmp_path: Path) -> None:
    assert segmenter.net.heads == 2
    torch.save(random_state(), tmp_path / "bare.pth")  # no config: the published rule
    bare = load_segmenter(f"simpleclick:{tmp_path / 'bare.pth'}")
    assert bare.net.heads == 1 and bare.version != segmenter.version
    assert load_segmenter(f"simpleclick:{checkpoint}").version == segmenter.version
    for heads in (7, -2):
        config = {"params": {"backbone_params": {"value": {"num_heads": heads}}}}
        torch.save({"state_dict": random_state(), "config": config}, tmp_path / "odd.pth")
        with pytest.raises(ConfigError, match=f"{heads} attention heads"):
            load_segmenter(f"simpleclick:{tmp_path / 'odd.pth'}")


def test_objects_of_the_training_code_are_not_needed(tmp_path: Path) -> None:
    """Published files hold a loss, of a class and with a function that only their own code has."""
    name = "isegm.model.modeling.transformer_helper.cross_entropy_loss"
    module = ModuleType(name)
    source = (
        "from torch import nn\n"
        "def cross_entropy(): pass\n"
        "class CrossEntropyLoss(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.cls_criterion = cross_entropy\n"
    )
    exec(source, module.__dict__)
    with pytest.MonkeyPatch.context() as patch:
        parts = name.split(".")
        for i in range(1, len(parts)):
            patch.setitem(sys.modules, ".".join(parts[:i]), ModuleType(".".join(parts[:i])))
        patch.setitem(sys.modules, name, module)
        head = {"type": "builtin", "value": {"loss_decode": module.CrossEntropyLoss()}}
        torch.save({"state_dict": random_state(), "config": {"params": {"head_params": head}}}, tmp_path / "x.pth")
    assert isinstance(load_segmenter(f"simpleclick:{tmp_path / 'x.pth'}").net, nn.Module)


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (os.environ["SIMPLECLICK_TEST_FOLDER"],)


def test_files_that_are_no_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="needs a checkpoint"):
        load_segmenter("simpleclick")
    with pytest.raises(ConfigError, match="there is no checkpoint"):
        load_segmenter(f"simpleclick:{tmp_path / 'missing.pth'}")
    monkeypatch.setenv("SIMPLECLICK_TEST_FOLDER", str(tmp_path / "made by the file"))
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").touch()
    torch.save({"state_dict": {"x": torch.zeros(1)}}, tmp_path / "other")
    torch.save([1, 2], tmp_path / "list")
    torch.save({**random_state(), "backbone.pos_embed": torch.zeros(1, 5, 7)}, tmp_path / "shapes")
    torch.save({**random_state(), "surplus.weight": torch.zeros(1)}, tmp_path / "surplus")
    torch.save({"state_dict": random_state(), "config": _Evil()}, tmp_path / "evil")
    for name in ("text", "empty", "other", "list", "shapes", "surplus", "evil"):
        with pytest.raises(ConfigError, match="is no SimpleClick checkpoint: ."):
            load_segmenter(f"simpleclick:{tmp_path / name}")
    assert not (tmp_path / "made by the file").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_bf16_on_cuda_is_close_to_the_cpu(checkpoint: Path, disc_image: np.ndarray) -> None:
    segmenters = [SimpleClickSegmenter(str(checkpoint), torch.device(name)) for name in ("cpu", "cuda")]
    outs = [s.predict(s.set_image(disc_image), [Click(30, 20)]) for s in segmenters]
    assert np.abs(outs[0].logits - outs[1].logits).max() < 0.1 * np.abs(outs[0].logits).max()
    assert segmenters[0].version != segmenters[1].version
