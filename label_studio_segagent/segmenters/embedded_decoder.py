"""The decoder of the embedded segmenter: from what the encoder saw, and prompts, to a mask; run for every click.

Prompts enter here only (late fusion), at strides 4, 8 and 16: maps of the distance to the clicks, the previous mask,
the box, and the similarity of every place's embedding to those at the clicks and inside the previous mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AttentionBlock", "ClickDecoder", "NetConfig", "Prompt", "ResidualBlock"]

_FAR = 1e4  # a distance that means "no such click"


@dataclass(frozen=True, slots=True)
class NetConfig:
    """The sizes of a `SegmenterNet`.

    Attributes:
        backbone: "lite0", "lite1" or "lite2".
        channels: Channels at strides 4, 8 and 16.
        embedding: Length of the embeddings that are compared with those at the clicks.
        context_blocks: Global blocks at stride 16.
        radius: Radius of the narrow click disks, in pixels of the crop.
        reach: Decay length of the wide click maps, in pixels of the crop.
    """

    backbone: str = "lite2"
    channels: tuple[int, int, int] = (32, 64, 128)
    embedding: int = 32
    context_blocks: int = 3
    radius: float = 6.0
    reach: float = 32.0


@dataclass(slots=True)
class Prompt:
    """What the user said about N targets, in pixels of the crop.

    Attributes:
        points: float (N, K, 2), x and y of the clicks, oldest first.
        labels: float (N, K), +1 positive, -1 negative, 0 none (padding); padding follows the clicks.
        prior: float (N, 1, H / 4, W / 4), the previous mask's probability; anything where `has_prior` is 0.
        has_prior: float (N,), 0 or 1.
        box: float (N, 4), x0 y0 x1 y1; all zero means no box.
    """

    points: Tensor
    labels: Tensor
    prior: Tensor
    has_prior: Tensor
    box: Tensor

    def with_mirrored(self, width: int) -> Prompt:
        """These prompts and then the same for the crop, `width` pixels wide, mirrored left to right."""
        points, box = self.points.clone(), self.box.clone()
        points[..., 0] = width - 1 - points[..., 0]
        known = self.box[:, 2] > self.box[:, 0]
        box[known, 0], box[known, 2] = width - self.box[known, 2], width - self.box[known, 0]
        return Prompt(
            torch.cat([self.points, points]),
            torch.cat([self.labels, self.labels]),
            torch.cat([self.prior, self.prior.flip(3)]),
            torch.cat([self.has_prior, self.has_prior]),
            torch.cat([self.box, box]),
        )


class AttentionBlock(nn.Module):
    """A convolution, global self-attention and a perceptron, each residual.

    Args:
        channels: Of input and output.
        heads: Of the attention.
    """

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.local = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_attention, self.norm_mlp = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, h, w) -> the same shape."""
        n, c, h, w = x.shape
        x = x + F.relu(self.local(x))
        tokens: Tensor = x.permute(0, 2, 3, 1).reshape(n, h * w, c)
        qkv = self.qkv(self.norm_attention(tokens)).view(n, h * w, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed: Tensor = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, c)
        tokens = tokens + self.out(mixed)
        tokens = tokens + self.mlp(self.norm_mlp(tokens))
        return tokens.view(n, h, w, c).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two convolutions with a shortcut; the identity (after ReLU) before training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, h, w) -> the same shape."""
        y: Tensor = x + self.second(F.relu(self.first(x)))
        return F.relu(y)


class ClickDecoder(nn.Module):
    """From an encoder's maps and prompts to masks.

    Args:
        config: Sizes.
    """

    SIMILARITIES = 4
    PROMPTS = 8

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        c4, c8, c16 = config.channels
        self.sharpness = nn.Parameter(torch.tensor([4.0, 4.0]))
        extra = self.PROMPTS + self.SIMILARITIES
        self.prompt16 = nn.Conv2d(extra, c16, 3, padding=1)
        self.prompt8 = nn.Conv2d(extra, c8, 3, padding=1)
        self.prompt4 = nn.Conv2d(self.PROMPTS, c4, 3, padding=1)
        self.context = nn.ModuleList(AttentionBlock(c16) for _ in range(config.context_blocks))
        self.up16, self.up8 = nn.Conv2d(c16, c8, 1), nn.Conv2d(c8, c4, 1)
        self.refine8 = nn.Sequential(ResidualBlock(c8), ResidualBlock(c8))
        self.refine4 = ResidualBlock(c4)
        self.head = nn.Conv2d(c4, 4, 3, padding=1)

    def draw(self, features: Sequence[Tensor], prompt: Prompt) -> tuple[Tensor, Tensor, Tensor]:
        """Segment N targets.

        Args:
            features: From `SegmenterNet.encode`, with the crop of each target picked: batch N.
            prompt: Of the N targets.

        Returns:
            Logits (N, 1, H / 2, W / 2), and the decoder's features at strides 16 and 8.
        """
        f4, f8, f16, e8, e16 = features
        maps4 = self._maps(prompt, f4)
        maps8 = F.avg_pool2d(maps4, 2)
        maps16 = F.avg_pool2d(maps8, 2)
        s8 = self._similarity(e8, prompt, maps8, 8) * self.sharpness[0]
        s16 = self._similarity(e16, prompt, maps16, 16) * self.sharpness[1]
        x16 = F.relu(f16 + self.prompt16(torch.cat([maps16, s16], 1)))
        for block in self.context:
            x16 = block(x16)
        up = F.interpolate(self.up16(x16), scale_factor=2.0, mode="bilinear")
        x8 = self.refine8(F.relu(f8 + up + self.prompt8(torch.cat([maps8, s8], 1))))
        up = F.interpolate(self.up8(x8), scale_factor=2.0, mode="bilinear")
        x4 = self.refine4(F.relu(f4 + up + self.prompt4(maps4)))
        logits = F.pixel_shuffle(self.head(x4), 2)
        return logits, x16, x8

    def _maps(self, prompt: Prompt, like: Tensor) -> Tensor:
        """Prompt maps at stride 4: (N, PROMPTS, H / 4, W / 4)."""
        n, _, h, w = like.shape
        xs = torch.arange(w, dtype=torch.float32) * 4 + 1.5
        ys = torch.arange(h, dtype=torch.float32) * 4 + 1.5
        dx = (xs[None, None] - prompt.points[..., :1]) ** 2  # (N, K, w)
        dy = (ys[None, None] - prompt.points[..., 1:]) ** 2  # (N, K, h)
        distance = (dy[..., None] + dx[:, :, None]).sqrt_()  # (N, K, h, w)
        channels: list[Tensor] = []
        for sign in (1.0, -1.0):
            other = torch.where(prompt.labels == sign, 0.0, _FAR)
            nearest = (distance + other[..., None, None]).amin(1)
            channels.append((1.5 - nearest / self.config.radius).clamp(0, 1))
            channels.append(torch.exp(nearest / -self.config.reach))
        last = (prompt.labels != 0).sum(1).clamp(min=1) - 1
        rows = torch.arange(n)
        newest = torch.exp(distance[rows, last] / -self.config.reach)
        channels.append(newest * prompt.labels[rows, last][:, None, None])
        known = prompt.has_prior[:, None, None]
        channels.append((2 * prompt.prior[:, 0] - 1) * known)
        channels.append(known.expand(n, h, w))
        x0, y0, x1, y1 = (prompt.box[:, i, None] for i in range(4))
        columns = (torch.minimum(xs[None] - x0, x1 - xs[None]) / 4 + 0.5).clamp(0, 1)
        rows_ = (torch.minimum(ys[None] - y0, y1 - ys[None]) / 4 + 0.5).clamp(0, 1)
        has_box = (x1 > x0).float()[..., None]
        channels.append((2 * rows_[:, :, None] * columns[:, None] - 1) * has_box)
        return torch.stack(channels, 1).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def _similarity(embedding: Tensor, prompt: Prompt, maps: Tensor, stride: int) -> Tensor:
        """Cosine similarity to the clicked places and to both sides of the prior: (N, SIMILARITIES, h, w)."""
        n, c, h, w = embedding.shape
        size = torch.tensor([w * stride, h * stride], dtype=torch.float32)
        grid = (2 * prompt.points + 1) / size - 1
        at_clicks = F.grid_sample(embedding, grid[:, :, None], "bilinear", "border", align_corners=False)[..., 0]
        flat = embedding.reshape(n, c, h * w)
        # (N, K, h*w) -> the most similar click of each sign
        to_clicks = torch.bmm(at_clicks.transpose(1, 2), flat)
        channels: list[Tensor] = []
        for sign in (1.0, -1.0):
            absent = torch.where(prompt.labels == sign, 0.0, -_FAR)
            best = (to_clicks + absent[..., None]).amax(1)
            channels.append(torch.where(best > -2, best, 0.0))
        prior = maps[:, 5].reshape(n, 1, h * w)
        for weight in (prior.clamp(min=0), (-prior).clamp(min=0)):
            prototype = (flat * weight).sum(2) / (weight.sum(2) + 1e-3)
            channels.append(torch.bmm(prototype[:, None], flat)[:, 0])
        return torch.stack(channels, 1).view(n, 4, h, w)
