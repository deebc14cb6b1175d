"""Segment Anything (arXiv 2304.02643) from its original checkpoints, through the package `segment-anything`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from ..devices import best_device, place
from ..errors import ConfigError
from ..weights import UNREADABLE, hash_weights
from .sam_family import Looks, Maps, Prompts, SamFamily

__all__ = ["SamSegmenter"]

_SIZES = ("vit_b", "vit_l", "vit_h")


class SamSegmenter(SamFamily):
    """SAM from a checkpoint file: `sam:vit_b:sam_vit_b_01ec64.pth`. Answers equal those of its `SamPredictor`.

    A batch shares passes of the decoder among the queries on one image; the package's decoder takes no more.

    Args:
        argument: Size and file, as "vit_b:/path".
        device: The best one by default.

    Raises:
        ConfigError: The size is unknown, the file cannot be read or holds something else, or the package is missing.
    """

    def __init__(self, argument: str = "", device: torch.device | None = None) -> None:
        size, _, file = argument.partition(":")
        if size not in _SIZES or not file:
            raise ConfigError(
                f"'sam:{argument}' must be 'sam:<size>:<checkpoint>' with a size of {', '.join(_SIZES)}, "
                "for example 'sam:vit_b:/models/sam_vit_b_01ec64.pth'"
            )
        self.model = _load(size, Path(file))
        device = device or best_device()
        side = int(self.model.image_encoder.img_size)
        mean, std = (tuple((v.flatten() / 255).tolist()) for v in (self.model.pixel_mean, self.model.pixel_std))
        looks = Looks(side, int(self.model.prompt_encoder.mask_input_size[0]), True, mean, std)
        digest = hash_weights(self.model, looks, device.type)
        place(self.model, device, f"'sam:{argument}'")
        super().__init__(looks, device, f"sam-{size}-{digest}")

    @override
    def _encode(self, pixels: Tensor) -> Maps:
        return (self.model.image_encoder(pixels),)

    @override
    def _decode(self, images: Sequence[Maps], prompts: Prompts) -> tuple[Tensor, Tensor]:
        points = None if prompts.points is None else (prompts.points, prompts.labels)
        sparse, dense = self.model.prompt_encoder(points=points, boxes=prompts.boxes, masks=prompts.masks)
        rows: dict[int, list[int]] = defaultdict(list)
        for row, maps in enumerate(images):
            rows[id(maps[0])].append(row)
        parts = [
            self.model.mask_decoder(
                image_embeddings=images[group[0]][0],
                image_pe=self.model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse[group],
                dense_prompt_embeddings=dense[group],
                multimask_output=prompts.multimask,
            )
            for group in rows.values()
        ]
        order = torch.tensor([row for group in rows.values() for row in group]).argsort()
        logits, scores = (torch.cat(part)[order] for part in zip(*parts, strict=True))
        return logits, scores


def _load(size: str, path: Path) -> Any:
    try:
        from segment_anything import sam_model_registry
    except ImportError as error:
        raise ConfigError(
            f"'sam:…' needs the packages segment-anything and torchvision ({error}): "
            "pip install 'label-studio-segagent[sam]', with torch and torchvision from the same index"
        ) from error
    if not path.is_file():
        raise ConfigError(f"there is no checkpoint {path}; download the one of {size} from the SAM project")
    model = sam_model_registry[size]()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except UNREADABLE as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
        raise ConfigError(f"{path} is no SAM checkpoint of size {size}: {reason}") from error
    return model
