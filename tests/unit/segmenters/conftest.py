"""Tiny random checkpoints of the real model classes, saved as the hub holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import transformers

SAM_KINDS = ("sam", "sam_hq", "sam2", "sam2_video", "sam3_tracker")
_PROMPTS = {"hidden_size": 32, "mask_input_channels": 16}
_DECODER = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}


def _sam(name: str, **decoder: int) -> Any:
    vision = {
        "hidden_size": 32, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
        "patch_size": 16, "window_size": 2, "global_attn_indexes": [1], "num_pos_feats": 16, "mlp_dim": 64,
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(
        vision_config=vision,
        prompt_encoder_config={**_PROMPTS, "image_size": 64, "patch_size": 16},
        mask_decoder_config={**_DECODER, **decoder},
    )
    return getattr(transformers, f"{name}Model")(config)


def _sam2(name: str, **more: Any) -> Any:
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [64, 64],
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 2, 2, 4], "window_size_per_stage": [8, 4, 4, 2],
        "global_attention_blocks": [3], "window_positional_embedding_background_size": [2, 2],
    }  # fmt: skip
    vision = {
        "model_type": "sam2_vision_model", "backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": 32,
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(
        vision_config=vision,
        prompt_encoder_config={**_PROMPTS, "image_size": 64, "patch_size": 16},
        mask_decoder_config=_DECODER,
        **more,
    )
    return getattr(transformers, f"{name}Model")(config)


def _sam2_video() -> Any:
    return _sam2(
        "Sam2Video", image_size=64, memory_attention_hidden_size=32, memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32, memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=32, memory_encoder_output_channels=16, mask_downsampler_embed_dim=32,
        memory_fuser_embed_dim=32, memory_fuser_intermediate_dim=32, memory_fuser_num_layers=1,
    )  # fmt: skip


def _sam3_tracker() -> Any:
    backbone = {
        "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 56, "pretrain_image_size": 28, "patch_size": 14, "window_size": 2,
        "global_attn_indexes": [1],
    }  # fmt: skip
    vision = {
        "model_type": "sam3_vision_model", "backbone_config": backbone, "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    }  # fmt: skip
    config = transformers.Sam3TrackerConfig(
        vision_config=vision,
        prompt_encoder_config={**_PROMPTS, "image_size": 56, "patch_size": 14},
        mask_decoder_config=_DECODER,
    )
    return transformers.Sam3TrackerModel(config)


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights large enough for every prompt to be felt; some of these classes start out as almost zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.state_dict().items()):
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim < 2:
            tensor.copy_(0.2 * noise + (1 if "norm" in name and "weight" in name else 0))
        elif "embed" in name or "token" in name:
            tensor.copy_(noise)
        else:
            tensor.copy_(noise * (tensor[0].numel() ** -0.5 * 1.5))


@pytest.fixture(scope="session")
def tiny_sams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each kind of `SAM_KINDS`, with config.json and model.safetensors."""
    make = {
        "sam": lambda: _sam("Sam"),
        "sam_hq": lambda: _sam("SamHQ", vit_dim=32),
        "sam2": lambda: _sam2("Sam2"),
        "sam2_video": _sam2_video,
        "sam3_tracker": _sam3_tracker,
    }
    folders = {}
    for kind in SAM_KINDS:
        model = make[kind]()
        randomize(model)
        folders[kind] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folders[kind])
    return folders


@pytest.fixture(scope="session")
def disc_image() -> np.ndarray:
    """A disc on noise, uint8 (48, 80, 3)."""
    pixels = np.random.default_rng(0).integers(0, 80, (48, 80, 3)).astype(np.uint8)
    return cv2.circle(pixels, (30, 20), 12, (220, 180, 40), -1)
