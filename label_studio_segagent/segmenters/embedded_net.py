"""The network of the embedded segmenter: an encoder that runs once per crop and a decoder that runs per click.

Everything of the decoder that depends on the image alone is computed once, by `SegmenterNet.encode`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .embedded_decoder import ClickDecoder, NetConfig, Prompt
from .embedded_encoder import EfficientNetLite, FeaturePyramid, ScaledConv

__all__ = ["NetConfig", "SegmenterNet"]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class SegmenterNet(ClickDecoder):
    """Click segmentation: `encode` a crop once, `decode` any number of prompts on it.

    Args:
        config: Sizes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: NetConfig | None = None) -> None:
        super().__init__(config or NetConfig())
        c4, c8, c16 = self.config.channels
        self.encoder = EfficientNetLite(self.config.backbone)
        self.pyramid = FeaturePyramid(self.encoder.channels, (c4, c8, c16))
        self.image_parts = nn.ModuleList([nn.Conv2d(c4, c4, 1), nn.Conv2d(c8, c8, 1), nn.Conv2d(c16, c16, 1)])
        self.embed = nn.ModuleList([nn.Conv2d(c8, self.config.embedding, 1), nn.Conv2d(c16, self.config.embedding, 1)])
        self.quality = nn.Sequential(nn.Linear(c16 + c8 + 3, 64), nn.ReLU(), nn.Linear(64, 1))
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1) * 255, persistent=False)

    def fold(self) -> None:
        """Fold the encoder's scales into its weights, for shipping."""
        for module in self.modules():
            if isinstance(module, ScaledConv):
                module.fold()

    def decoding(self) -> list[nn.Parameter]:
        """The weights that `decode` alone uses: whatever becomes of them, `encode` says what it said."""
        seen = [self.encoder, self.pyramid, self.image_parts, self.embed]
        others = {id(p) for part in seen for p in part.parameters()}
        return [p for p in self.parameters() if id(p) not in others]

    def encode(self, images: Tensor, frozen: int = 0) -> list[Tensor]:
        """The image's part of everything the decoder does.

        Args:
            images: (B, 3, H, W), RGB in 0..255; H and W divisible by 32.
            frozen: Blocks of the encoder that get no gradient.

        Returns:
            Features at strides 4, 8, 16 and embeddings at strides 8 and 16, to hand to `decode`.
        """
        images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        fused = self.pyramid(self.encoder(images, frozen))
        embeddings = [F.normalize(layer(f), dim=1) for layer, f in zip(self.embed, fused[1:], strict=True)]
        return [part(f) for part, f in zip(self.image_parts, fused, strict=True)] + embeddings

    def decode(self, features: Sequence[Tensor], prompt: Prompt) -> tuple[Tensor, Tensor]:
        """Segment N targets.

        Args:
            features: From `encode`, with the crop of each target picked: batch N.
            prompt: Of the N targets.

        Returns:
            Logits (N, 1, H / 2, W / 2) and the predicted IoU's logit (N,).
        """
        logits, x16, x8 = self.draw(features, prompt)
        return logits, self._quality(x16, x8, logits)

    def _quality(self, x16: Tensor, x8: Tensor, logits: Tensor) -> Tensor:
        inside = torch.sigmoid(F.avg_pool2d(logits.detach(), 4))
        area = inside.mean((1, 2, 3))
        object_ = (x8 * inside).mean((2, 3)) / (area[:, None] + 1e-3)
        certain = (2 * torch.sigmoid(logits.detach()) - 1).abs()
        weight = torch.sigmoid(logits.detach())
        sure = (certain * weight).sum((1, 2, 3)) / (weight.sum((1, 2, 3)) + 1e-3)
        facts = torch.stack([area, sure, certain.mean((1, 2, 3))], 1)
        result: Tensor = self.quality(torch.cat([x16.mean((2, 3)), object_, facts], 1)).squeeze(1)
        return result
