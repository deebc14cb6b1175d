"""The SAM family through transformers: SAM, SAM-HQ, SAM 2, the tracker of SAM 3, EdgeTAM; from the hub or a folder.

Images are prepared here, as the published processors do it, since those need torchvision from SAM 2 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskGeneration
from transformers.image_processing_base import ImageProcessingMixin
from typing_extensions import override

from ..devices import best_device, place
from ..errors import ConfigError
from ..weights import hash_weights
from .sam_family import Looks, Maps, Prompts, SamFamily
from .sam_frame import IMAGENET

__all__ = ["HfSamSegmenter"]

_PADDED = ("sam", "sam_hq")
"""Model types whose square is padded, and whose answers go back in unchanged; the others fill it and clamp."""
_FILLED = ("sam2", "sam2_video", "sam3_tracker", "sam3_video", "edgetam", "edgetam_video")
"""A video checkpoint holds the image model, which is what is loaded from it."""
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and deviation of R, G and B, where 255 is 1."""
_CLAMP = 32.0
"""As in SAM 2's published image predictor."""


class HfSamSegmenter(SamFamily):
    """A promptable segmenter of transformers, for example `hf:facebook/sam2.1-hiera-tiny`.

    Weights are read from safetensors only, and no code from the hub is run.

    Args:
        name: Of a model on the hub, or a folder.
        device: The best one by default.

    Raises:
        ConfigError: There is no such model, it is of another kind, or a package that it needs is missing.
    """

    def __init__(self, name: str = "", device: torch.device | None = None) -> None:
        kind = _kind(name)
        self.model = _load(name)
        device = device or best_device()
        looks = _looks(name, kind, self.model)
        digest = hash_weights(self.model, kind, looks, device.type)
        place(self.model, device, f"'hf:{name}'")
        super().__init__(looks, device, f"{kind}-{digest}")

    @override
    def _encode(self, pixels: Tensor) -> Maps:
        maps = self.model.get_image_embeddings(pixels)
        if isinstance(maps, tuple):  # SAM-HQ: the embedding, and the maps of all global layers, of which it uses one
            return maps[0], maps[1][0]
        return (maps,) if isinstance(maps, Tensor) else tuple(maps)

    @override
    def _decode(self, images: Sequence[Maps], prompts: Prompts) -> tuple[Tensor, Tensor]:
        maps = [torch.cat(level) for level in zip(*images, strict=True)]
        embeddings: dict[str, Any] = {"image_embeddings": maps if len(maps) > 2 else maps[0]}
        if len(maps) == 2:
            embeddings["intermediate_embeddings"] = [maps[1]]
        out = self.model(
            **embeddings,
            # The second axis is for several objects of one image; here each has a row of its own.
            input_points=None if prompts.points is None else prompts.points[:, None],
            input_labels=None if prompts.labels is None else prompts.labels[:, None],
            input_boxes=None if prompts.boxes is None else prompts.boxes[:, None],
            input_masks=prompts.masks,
            multimask_output=prompts.multimask,
        )
        return out.pred_masks[:, 0], out.iou_scores[:, 0]


def _kind(name: str) -> str:
    """The model type in a model's config."""
    if not name:
        raise ConfigError("'hf' needs the name of a model or a folder, for example 'hf:facebook/sam2.1-hiera-tiny'")
    try:
        kind = str(AutoConfig.from_pretrained(name, trust_remote_code=False).model_type)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"'hf:{name}' cannot be loaded as a segmenter: {_first_line(error)}") from error
    if kind not in _PADDED + _FILLED:
        known = ", ".join(_PADDED + _FILLED)
        raise ConfigError(f"'hf:{name}' is a {kind!r}, which is no promptable segmenter; known types: {known}")
    return kind


def _load(name: str) -> Any:
    try:
        model, report = AutoModelForMaskGeneration.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    except ImportError as error:
        raise ConfigError(
            f"'hf:{name}' needs a package that is not installed: {_first_line(error)} "
            "(EdgeTAM: pip install timm torchvision, of the same index as torch)"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"'hf:{name}' cannot be loaded as a segmenter: {_first_line(error)}; it must hold safetensors"
        ) from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ConfigError(f"'hf:{name}' lacks weights of a {type(model).__name__}: {', '.join(missing[:3])}, …")
    return model


def _looks(name: str, kind: str, model: Any) -> Looks:
    """How the model wants images: sizes from the model, normalisation from its processor's file, where there is one."""
    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        processor = {}
    mean, std = _HALF if kind.startswith("sam3") else IMAGENET
    padded = kind in _PADDED
    return Looks(
        side=int(model.prompt_encoder.input_image_size),
        cells=4 * int(model.prompt_encoder.image_embedding_size[0]),
        padded=padded,
        mean=tuple(processor.get("image_mean") or mean),
        std=tuple(processor.get("image_std") or std),
        clamp=None if padded else _CLAMP,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0][:300]
