"""Tiny random models of several families with their real processors, as far as those work without torchvision."""

from __future__ import annotations

import re
from typing import Any

import tiny_mllm
import torch
import transformers

Made = tuple[Any, Any]
"""Model and processor."""


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
    }
    return {"vocab_size": len(tokenizer), **sizes, **ids, **more}


_VISION = {"hidden_size": 32, "intermediate_size": 64}
_SMALL = {**_VISION, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}


def qwen(version: str) -> Made:
    """Qwen2.5-VL ("2_5") or Qwen3-VL ("3"), whose processors only come without their video half."""
    tokenizer = tiny_mllm.make_tokenizer()
    marks = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    marks |= {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(mark) for name, mark in marks.items()}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}
    vision: dict[str, Any] = {**_VISION, "depth": 2, "num_heads": 2, "out_hidden_size": 64}
    if version == "3":
        rope["mrope_interleaved"] = True
        vision |= {"patch_size": 16, "deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    else:
        vision |= {"patch_size": 14, "fullatt_block_indexes": [1], "window_size": 56}
    name = f"Qwen{version}VL" if version == "3" else f"Qwen{version}_VL"
    config = getattr(transformers, f"{name}Config")(
        text_config=_text(tokenizer, rope_parameters=rope), vision_config=vision, **ids
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    kind = getattr(transformers, f"{name}Processor")
    processor = kind.__new__(kind)
    processor.image_processor = transformers.Qwen2VLImageProcessorPil(patch_size=vision["patch_size"], max_pixels=2**23)
    processor.tokenizer = tokenizer
    processor.chat_template = tiny_mllm.TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    for mark, text in marks.items():
        setattr(processor, f"{mark}_token", text)
        setattr(processor, f"{mark}_token_id", ids[f"{mark}_token_id"])
    return model, processor


def idefics3() -> Made:
    """The architecture of SmolVLM: an image is cut into tiles."""
    tokenizer = tiny_mllm.make_tokenizer()
    marks = ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]
    marks += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", *marks]})
    config = transformers.Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        vision_config=_SMALL,
        text_config=_text(tokenizer, model_type="llama"),
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    images = transformers.Idefics3ImageProcessorPil(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    processor = transformers.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=tiny_mllm.TEMPLATE)
    return transformers.Idefics3ForConditionalGeneration(config).eval(), processor


def gemma3() -> Made:
    """Gemma 3, whose template writes the beginning-of-text token itself."""
    tokenizer = tiny_mllm.make_tokenizer()
    marks = {"image": "<image_soft_token>", "boi": "<start_of_image>", "eoi": "<end_of_image>"}
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks.values())})
    for name, mark in marks.items():
        setattr(tokenizer, f"{name}_token", mark)
        setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(mark))
    config = transformers.Gemma3Config(
        text_config=_text(tokenizer, sliding_window=512),
        vision_config=_SMALL,
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    torch.manual_seed(0)
    images = transformers.Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    template = "<s>" + tiny_mllm.TEMPLATE.replace("<image>", "<start_of_image>")
    processor = transformers.Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4)
    return transformers.Gemma3ForConditionalGeneration(config).eval(), processor


def llava_onevision() -> Made:
    """LLaVA-OneVision, which cuts an image into a grid that fits its shape; without its video half."""
    tokenizer = tiny_mllm.make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    image, video = (tokenizer.convert_tokens_to_ids(mark) for mark in ("<image>", "<video>"))
    grid = [[56, 56], [56, 112], [112, 56], [112, 112]]
    config = transformers.LlavaOnevisionConfig(
        vision_config={**_SMALL, "model_type": "siglip_vision_model", "vision_use_head": False},
        text_config=_text(tokenizer, model_type="qwen2"),
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=grid,
    )
    torch.manual_seed(0)
    model = transformers.LlavaOnevisionForConditionalGeneration(config).eval()
    kind = transformers.LlavaOnevisionProcessor
    processor: Any = kind.__new__(kind)
    size = {"height": 56, "width": 56}
    processor.image_processor = transformers.LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=grid)
    processor.tokenizer, processor.chat_template = tokenizer, tiny_mllm.TEMPLATE
    processor.num_image_tokens, processor.vision_aspect_ratio = 16, "anyres_max_9"
    processor.vision_feature_select_strategy = "full"
    processor.image_token, processor.image_token_id = "<image>", image
    processor.video_token, processor.video_token_id = "<video>", video
    return model, processor


def internvl() -> Made:
    """InternVL, which cuts an image into tiles and adds the whole; without its video half."""
    tokenizer: Any = tiny_mllm.make_tokenizer()
    marks = {"start_image": "<img>", "end_image": "</img>", "context_image": "<IMG_CONTEXT>", "video": "<video>"}
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks.values())})
    for name, mark in marks.items():
        setattr(tokenizer, f"{name}_token", mark)
        setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(mark))
    config = transformers.InternVLConfig(
        vision_config={**_SMALL, "image_size": [56, 56], "patch_size": [14, 14]},
        text_config=_text(tokenizer, model_type="qwen2"),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )
    torch.manual_seed(0)
    model = transformers.InternVLForConditionalGeneration(config).eval()
    kind = transformers.InternVLProcessor
    processor: Any = kind.__new__(kind)
    processor.image_processor = transformers.GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=4
    )
    processor.tokenizer, processor.image_seq_length = tokenizer, 4
    processor.chat_template = tiny_mllm.TEMPLATE.replace("<image>", "<IMG_CONTEXT>")
    for ours, theirs in (("start_image", "start_image"), ("end_image", "end_image"), ("image", "context_image")):
        setattr(processor, f"{ours}_token", marks[theirs])
        setattr(processor, f"{ours}_token_id", getattr(tokenizer, f"{theirs}_token_id"))
    processor.video_token = "<video>"
    processor.multimodal_pattern = re.compile("(?P<image><IMG_CONTEXT>)|(?P<video><video>)")
    return model, processor


FAMILIES = {
    "qwen2_5_vl": (lambda: qwen("2_5"), "pixels"),
    "qwen3_vl": (lambda: qwen("3"), "per-mille"),
    "idefics3": (idefics3, "per-mille"),
    "gemma3": (gemma3, "row-column"),
    "internvl": (internvl, "per-mille"),
    "llava_onevision": (llava_onevision, "per-mille"),
}
"""Model type -> (model and processor, preset)."""
