"""The policy's architecture: a LLaVA of six million parameters with a tokenizer of its own.

Everything is the real thing, only small: CLIP's vision tower, a projector, Llama, a processor with a chat template, and
a checkpoint that `load_policy("hf:<folder>")` loads like any other. Numbers are single tokens, and so are the phrases
that never change, because on a CPU the length of a text is what it costs.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from label_studio_segagent.policies.prompts import BOX_HINT, PRESETS, REJECTED_HINT

from .scenes import COLOURS, KINDS, RELATIONS, SIDE, SIZES

__all__ = ["POINT", "make_model", "make_processor", "save"]

PATCH = 8
POINT = "Rate how well the green tint covers the target, then point at the middle of the target: "
"""The question of the base model's training, followed by the description as in the question of the policy."""
_ASK, _REF = PRESETS["segagent"].act.partition("<ref>")[:2]
_SPECIAL = ["<pad>", "<unk>", "</s>", "<image>"]
_TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nAnswer: ' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words of the expressions, numbers, fixed phrases; single characters for anything else."""
    hints = [hint.partition("$")[0] for hint in (BOX_HINT, REJECTED_HINT)]
    phrases = [POINT, _ASK, _REF, "</ref>", "\nAnswer: ", "Current IOU: ", "Positive point: (", "Negative point: (",
               "Finish", "\nPositive point: (", "\nNegative point: (", "\nFinish", ", ", *hints]  # fmt: skip
    vocabulary = sorted({w for text in ("the", "shape", *KINDS, *SIZES, *COLOURS, *RELATIONS) for w in text.split()})
    tokens = [*_SPECIAL, *phrases, *(str(n) for n in range(1001)), *vocabulary, *(f" {w}" for w in vocabulary)]
    tokens += [c for c in string.printable if c not in tokens]
    by_length = sorted(phrases, key=len, reverse=True)
    pieces = "|".join("".join(f"\\{c}" if not c.isalnum() and c != " " and c != "\n" else c for c in p)
                      for p in by_length)  # fmt: skip
    piece = models.WordPiece(
        {token: number for number, token in enumerate(tokens)},
        unk_token="<unk>",
        continuing_subword_prefix="",
        max_input_chars_per_word=1000,
    )
    tokenizer = Tokenizer(piece)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{pieces}| ?[A-Za-z]+|[0-9]+|[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        clean_up_tokenization_spaces=False,
    )


def make_processor() -> Any:
    """Tokenizer, image processor and chat template."""
    side = {"height": SIDE, "width": SIDE}
    return LlavaProcessor(
        CLIPImageProcessorPil(
            size=side, do_center_crop=False, image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25]
        ),
        make_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=_TEMPLATE,
        num_additional_image_tokens=1,
    )


def make_model(tokenizer: Any, seed: int = 0) -> Any:
    """A model with random weights, float32."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=6,
        image_size=SIDE,
        patch_size=PATCH,
        initializer_factor=1.0,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        rope_theta=1000.0,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=(SIDE // PATCH) ** 2,
            vision_feature_layer=-1,
            tie_word_embeddings=True,
        )
    ).float()
    _know_space_and_numbers(model, tokenizer)
    return model


@torch.no_grad()
def _know_space_and_numbers(model: Any, tokenizer: Any) -> None:
    """Start with waves for the places of patches and for the numbers: what is near is alike from the beginning."""
    cells = SIDE // PATCH
    places = model.get_parameter("model.vision_tower.embeddings.position_embedding.weight")
    rows, columns = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
    width = places.shape[1] // 2
    for part, axis in enumerate((rows, columns)):
        places[1:, part * width : (part + 1) * width] = 0.3 * _waves(axis.flatten() / cells, width, 0.1)
    numbers = tokenizer.convert_tokens_to_ids([str(n) for n in range(1001)])
    words = model.get_input_embeddings().weight
    half = words.shape[1] // 2
    words[numbers, :half] = 0.03 * _waves(torch.arange(1001) / 1000, half, 0.02)


def _waves(x: Any, count: int, shortest: float) -> Any:
    """Sines and cosines (len(x), count) of x in [0, 1], the periods from 2 down to `shortest`."""
    periods = 2 * (shortest / 2) ** (torch.arange(count // 2) / (count // 2 - 1))
    angles = 2 * torch.pi * x[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], 1)


def save(model: Any, processor: Any, folder: Path) -> None:
    """Write a checkpoint as `load_policy("hf:<folder>")` reads it."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
