"""SimpleClick's network (arXiv 2210.11006): a plain ViT that gets the clicks as an image, a pyramid, an MLP head.

Written after the paper and the names and shapes of the published state dicts; all sizes are read from the state dict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

__all__ = ["SIDE", "SimpleClickNet"]

SIDE = 448
"""Pixels of the square that the published models were trained on."""
_WINDOW = 224
"""Pixels of the windows that most blocks attend within."""
_HEADS = {768: 12, 1024: 16, 1280: 16}
"""Heads of the published ViTs by width; no tensor tells them."""
_UNUSED = ("backbone.cls_token", "backbone.head.", "backbone.fc_norm.", "head.up_conv")
"""Published tensors that play no part: of the classifier that the ViT came from, and of a finer head than is used."""


class SimpleClickNet(nn.Module):
    """Logits from an image, an earlier mask and clicks.

    Args:
        state: A state dict with the published names.
        heads: Attention heads; by default as published for the ViT's width.

    Raises:
        KeyError: A tensor is missing.
        RuntimeError: Shapes do not fit together.
        ValueError: Nor do the heads.
    """

    def __init__(self, state: Mapping[str, Tensor], heads: int | None = None) -> None:
        super().__init__()
        width, _, patch, _ = state["backbone.patch_embed.proj.weight"].shape
        self.patch_embed_coords = _PatchEmbed(3, width, patch)
        self.heads = heads or _HEADS.get(width, max(1, width // 64))
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"{self.heads} attention heads do not share {width} channels evenly")
        self.backbone = _Backbone(state, width, patch, self.heads)
        self.neck = _Pyramid(state)
        self.head = _Head(state)
        own = self.state_dict()
        wanted = {name: tensor for name, tensor in state.items() if name in own or not name.startswith(_UNUSED)}
        wanted["backbone.pos_embed"] = _resize_positions(wanted["backbone.pos_embed"], SIDE // patch)
        self.load_state_dict(wanted)

    @override
    def forward(self, image: Tensor, hints: Tensor) -> Tensor:
        """Float32 logits (B, SIDE, SIDE).

        Args:
            image: float32 (B, 3, SIDE, SIDE), normalised.
            hints: float32 (B, 3, SIDE, SIDE): the probability of the earlier mask, discs of radius 5 at the positive
                clicks, and at the negative ones.
        """
        maps = self.neck(self.backbone(image, self.patch_embed_coords(hints)))
        # Corners on corners, as in the training of the published weights.
        logits = F.interpolate(self.head(maps), (SIDE, SIDE), mode="bilinear", align_corners=True)
        return logits[:, 0]


def _resize_positions(table: Tensor, grid: int) -> Tensor:
    """Position embeddings (1, 1 + n * n, c), the class token's first, for a grid of another size."""
    side = round((table.shape[1] - 1) ** 0.5)
    if side == grid:
        return table
    maps = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(maps, (grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)], 1)


class _PatchEmbed(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    @override
    def forward(self, pixels: Tensor) -> Tensor:
        """(B, h, w, c), one token a patch."""
        tokens: Tensor = self.proj(pixels).permute(0, 2, 3, 1)
        return tokens


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    @override
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    @override
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width, hidden)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(B, n, c) tokens."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class _Backbone(nn.Module):
    """The ViT: blocks attend within windows, and every sixth (of 12 or 24) or eighth (of 32) to everything."""

    def __init__(self, state: Mapping[str, Tensor], width: int, patch: int, heads: int) -> None:
        super().__init__()
        depth = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("backbone.blocks."))
        hidden = state["backbone.blocks.0.mlp.fc1.weight"].shape[0]
        self.patch_embed = _PatchEmbed(3, width, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (SIDE // patch) ** 2, width))
        self.blocks = nn.ModuleList(_Block(width, heads, hidden) for _ in range(depth))
        self._whole_every = 6 if depth == 12 else max(1, depth // 4)
        self._window = _WINDOW // patch

    @override
    def forward(self, image: Tensor, hints: Tensor) -> Tensor:
        """(B, c, h, w) at the stride of a patch; `hints` (B, h, w, c) is added to the embedded image."""
        x = self.patch_embed(image) + hints
        batch, height, width, channels = x.shape
        x = x + self.pos_embed[:, 1:].reshape(1, height, width, channels)
        side = self._window
        for number, block in enumerate(self.blocks, 1):
            if number % self._whole_every:
                windows = x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)
                windows = block(windows.reshape(-1, side * side, channels))
                windows = windows.reshape(batch, height // side, width // side, side, side, channels)
                x = windows.transpose(2, 3).reshape(batch, height, width, channels)
            else:
                x = block(x.flatten(1, 2)).reshape(batch, height, width, channels)
        out: Tensor = x.permute(0, 3, 1, 2)
        return out


def _up(state: Mapping[str, Tensor], name: str) -> nn.ConvTranspose2d:
    incoming, outgoing = state[f"{name}.weight"].shape[:2]
    return nn.ConvTranspose2d(incoming, outgoing, 2, 2)


def _conv(state: Mapping[str, Tensor], name: str) -> nn.Conv2d:
    """A 1x1 convolution, or one of 2x2 that halves the map."""
    outgoing, incoming, size, _ = state[f"{name}.weight"].shape
    return nn.Conv2d(incoming, outgoing, size, size)


def _norm(state: Mapping[str, Tensor], name: str) -> nn.GroupNorm:
    return nn.GroupNorm(1, state[f"{name}.weight"].shape[0])


def _stage(state: Mapping[str, Tensor], name: str, kinds: str) -> nn.Sequential:
    """Layers by kind; their places in the sequence are their published names."""
    make: dict[str, Callable[[Mapping[str, Tensor], str], nn.Module]] = {
        "up": _up, "conv": _conv, "norm": _norm, "gelu": lambda *_: nn.GELU()
    }  # fmt: skip
    return nn.Sequential(*(make[kind](state, f"{name}.{i}") for i, kind in enumerate(kinds.split())))


class _Pyramid(nn.Module):
    """Maps at strides of about 4, 8, 16 and 32 from the last one of the ViT."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()

        self.down_4 = _stage(state, "neck.down_4", "up norm gelu up norm conv norm gelu")
        self.down_8 = _stage(state, "neck.down_8", "up norm conv norm gelu")
        self.down_16 = _stage(state, "neck.down_16", "conv norm gelu")
        self.down_32 = _stage(state, "neck.down_32", "conv norm conv norm gelu")

    @override
    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.down_4(x), self.down_8(x), self.down_16(x), self.down_32(x)]


class _Projection(nn.Module):
    """A 1x1 convolution and a ReLU, under the published name."""

    def __init__(self, state: Mapping[str, Tensor], name: str) -> None:
        super().__init__()
        self.conv = _conv(state, f"{name}.conv")

    @override
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class _Head(nn.Module):
    """All maps at one number of channels and the first one's size, fused, then classified."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_Projection(state, f"head.convs.{i}") for i in range(4))
        self.fusion_conv = _Projection(state, "head.fusion_conv")
        self.conv_seg = _conv(state, "head.conv_seg")
        # The channels of the classifier tell how often the map is enlarged before it.
        ratio = self.fusion_conv.conv.out_channels // self.conv_seg.in_channels
        finer = "up norm conv norm gelu"
        self.up_conv1 = _stage(state, "head.up_conv1", finer) if ratio >= 2 else nn.Identity()
        self.up_conv2 = _stage(state, "head.up_conv2", finer) if ratio >= 4 else nn.Identity()

    @override
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size = maps[0].shape[2:]
        equal = [
            F.interpolate(conv(level), size, mode="bilinear", align_corners=False)
            for conv, level in zip(self.convs, maps, strict=True)
        ]
        fused = self.fusion_conv(torch.cat(equal, 1))
        out: Tensor = self.conv_seg(self.up_conv2(self.up_conv1(fused)))
        return out
