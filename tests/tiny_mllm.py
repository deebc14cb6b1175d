"""A tiny LLaVA: random weights of the real classes, saved as a real checkpoint, and taught one answer in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from label_studio_segagent.policies import prompts

SIDE = 56
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Trained on the prompts, so that they are short."""
    special = [
        "<pad>",
        "<s>",
        "</s>",
        "<image>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([Path(prompts.__file__).read_text("utf-8")], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=special[3:],
    )


def make_llava(folder: Path) -> Path:
    """Save a LLaVA with random weights."""
    tokenizer = make_tokenizer()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        **ids,
    )
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token, image_seq_length=16)
    )
    # As hub checkpoints have it: settings that would change answers unless the policy takes care.
    model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.8, repetition_penalty=1.5)
    model.save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def teach(model: Any, processor: Any, questions: Sequence[str], answers: Sequence[str], steps: int) -> float:
    """Train what needs gradients to answer each question by one of the answers, at random; the mean loss at the end."""
    random = np.random.default_rng(0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    processor.tokenizer.padding_side = "left"
    model.train()
    losses = []
    for _ in range(steps):
        lessons = [(question, answers[random.integers(len(answers))]) for question in questions]
        images = [Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in lessons]
        chats = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
            for question, _ in lessons
        ]
        asked = processor.apply_chat_template(chats, add_generation_prompt=True)
        texts = [text + answer + "</s>" for text, (_, answer) in zip(asked, lessons, strict=True)]
        inputs = processor(text=texts, images=[[image] for image in images], padding=True, return_tensors="pt")
        labels = torch.full_like(inputs["input_ids"], -100)
        for row, (_, answer) in enumerate(lessons):
            length = len(processor.tokenizer(answer + "</s>").input_ids)
            labels[row, -length:] = inputs["input_ids"][row, -length:]
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    model.eval()
    return float(np.mean(losses[-10:]))


def load(folder: Path) -> tuple[Any, Any]:
    """Model and processor of a checkpoint."""
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32), AutoProcessor.from_pretrained(
        folder
    )
