"""Multimodal language models from Hugging Face, run in this process through transformers."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2
import torch
import transformers
from PIL import Image as PILImage
from typing_extensions import override

from ..defaults import MODEL_PIXELS
from ..errors import ConfigError
from .mllm import TEMPERATURE, MllmPolicy, Question, Reply
from .prompts import PRESETS, find_preset
from .resizing import Resize

__all__ = ["SMALLER", "HfPolicy"]

_ROWS = 16
"""Sequences generated at once."""
SMALLER = "use a smaller or a quantised model, or serve this one elsewhere (vLLM) and name it openai:<url>#<model>"


class HfPolicy(MllmPolicy):
    """A policy that runs an image-text-to-text model. The model is shared by all threads, one at a time.

    Args:
        model: As `AutoModelForImageTextToText` loads it, on its device.
        processor: As `AutoProcessor` loads it; its padding and cropping are changed.
        version: Content address of the weights.
        preset: A key of `prompts.PRESETS`; by default the one for the model's type.
        pixels: Larger images are shrunk to this many pixels.
        plain_image: Show the image without the mask's tint as well.

    Raises:
        ConfigError: The preset is unknown, or the processor cannot make chat messages with images.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        version: str,
        *,
        preset: str = "",
        pixels: int = MODEL_PIXELS,
        plain_image: bool = False,
    ) -> None:
        kind = str(getattr(model.config, "model_type", ""))
        self.images: Any = getattr(processor, "image_processor", None)
        self.tokenizer: Any = getattr(processor, "tokenizer", None)
        template = getattr(processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)
        if self.images is None or self.tokenizer is None or not template:
            raise ConfigError(
                f"the {kind} model has no processor with images and a chat template: use an instruct model"
            )
        preset = find_preset(kind, preset)
        super().__init__(
            preset,
            _resize(self.images, pixels, PRESETS[preset].factor),
            f"{version} {model.dtype}",
            plain_image=plain_image,
        )
        self.model, self.processor = model, processor
        processor.chat_template = template
        self._lock = threading.Lock()
        _see_everything(self.images)
        self.tokenizer.padding_side = "left"  # answers follow directly upon their questions
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # Only the tokens' numbers are taken over: penalties and the like would change answers and their likelihood.
        given = model.generation_config
        eos = self.tokenizer.eos_token_id if given.eos_token_id is None else given.eos_token_id
        self._ends = set(eos if isinstance(eos, list) else [eos])
        config: Any = transformers.GenerationConfig
        model.generation_config = config(
            bos_token_id=given.bos_token_id, eos_token_id=eos, pad_token_id=self.tokenizer.pad_token_id
        )

    @override
    def _ask(self, questions: Sequence[Question], *, tokens: int, samples: int = 0) -> list[list[Reply]]:
        rows = max(1, _ROWS // max(samples, 1))
        replies: list[list[Reply]] = []
        for start in range(0, len(questions), rows):
            replies += self._ask_at_once(questions[start : start + rows], tokens, samples)
        return replies

    def _ask_at_once(self, questions: Sequence[Question], tokens: int, samples: int) -> list[list[Reply]]:
        try:
            with self._lock, torch.inference_mode():
                return self._generate(questions, tokens, samples)
        except torch.OutOfMemoryError:
            if len(questions) == 1:
                raise ConfigError(
                    f"out of memory on {self.model.device} while answering; lower SEGAGENT_MODEL_PIXELS, or {SMALLER}"
                ) from None
        half = len(questions) // 2
        return [
            reply for part in (questions[:half], questions[half:]) for reply in self._ask_at_once(part, tokens, samples)
        ]

    def _generate(self, questions: Sequence[Question], tokens: int, samples: int) -> list[list[Reply]]:
        inputs = self._inputs(questions)
        start, each = inputs["input_ids"].shape[1], max(samples, 1)
        sizes = [question.size for question in questions for _ in range(each)]
        complete = _Complete(self, start, sizes)
        sampling = {"temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0} if samples else {}
        device = self.model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)  # the same question gets the same candidates
            out = self.model.generate(
                **inputs,
                **sampling,
                do_sample=samples > 0,
                num_return_sequences=each,
                max_new_tokens=tokens,
                stopping_criteria=transformers.StoppingCriteriaList([complete]),
                return_dict_in_generate=True,
                output_logits=all(sizes),  # as large as the vocabulary for every token
            )
        written = out.sequences[:, start:]
        ends = [self._end(row.tolist(), complete.ends.get(i)) for i, row in enumerate(written)]
        texts = self._decode([row[:end] for row, end in zip(written, ends, strict=True)])
        logprobs = [_logprob(out.logits, written, i, end) if all(sizes) else None for i, end in enumerate(ends)]
        replies = [Reply(text, logprob) for text, logprob in zip(texts, logprobs, strict=True)]
        return [replies[i : i + each] for i in range(0, len(replies), each)]

    def _inputs(self, questions: Sequence[Question]) -> Any:
        images = [[PILImage.fromarray(image) for image in question.images] for question in questions]
        chats = [
            [{"role": "user", "content": [*({"type": "image"} for _ in q.images), {"type": "text", "text": q.text}]}]
            for q in questions
        ]
        # Thinking would use up the few tokens of an answer.
        options = {"enable_thinking": False} if "enable_thinking" in str(self.processor.chat_template) else {}
        try:
            texts = self.processor.apply_chat_template(chats, add_generation_prompt=True, **options)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise ConfigError(f"the model's chat template cannot be used: {error}") from error
        bos = self.tokenizer.bos_token
        inputs = self.processor(
            text=texts,
            images=images,
            padding=True,
            return_tensors="pt",
            add_special_tokens=not (bos and texts[0].startswith(bos)),
        )
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def _end(self, tokens: list[int], complete: int | None) -> int:
        """Length of an answer in tokens, an end-of-text token included."""
        ends = [i + 1 for i, token in enumerate(tokens) if token in self._ends]
        return min([len(tokens), *ends[:1], *([] if complete is None else [complete])])

    def _decode(self, rows: Iterable[Any]) -> list[str]:
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]


class _Complete(transformers.StoppingCriteria):
    """Stops each answer that can be read.

    Attributes:
        ends: For each row that has been stopped, its length in tokens.
    """

    def __init__(self, policy: HfPolicy, start: int, sizes: Sequence[tuple[int, int] | None]) -> None:
        self.policy, self.start, self.sizes = policy, start, sizes
        self.ends: dict[int, int] = {}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        written = input_ids[:, self.start :]
        for row, (text, size) in enumerate(zip(self.policy._decode(written.tolist()), self.sizes, strict=True)):
            if size is not None and row not in self.ends and self.policy._readable(text, size):
                self.ends[row] = written.shape[1]
        return torch.tensor([row in self.ends for row in range(len(self.sizes))], device=input_ids.device)


def _resize(images: Any, pixels: int, factor: int) -> Resize:
    """The resizing that leaves a processor of Qwen's kind nothing to do; for others a sensible one."""
    merge, patch = getattr(images, "merge_size", None), getattr(images, "patch_size", None)
    size = getattr(images, "size", None) or {}
    most, least = size.get("longest_edge"), size.get("shortest_edge")
    if not (isinstance(merge, int) and isinstance(patch, int) and most and least):
        return Resize(pixels, factor)
    factor = merge * patch
    return Resize(max(min(pixels, most), factor**2), factor, least)


def _see_everything(images: Any) -> None:
    """Squeeze images into the model's square where its processor would cut off what sticks out (CLIP's does)."""
    if getattr(images, "do_center_crop", False):
        images.size = {"height": images.crop_size["height"], "width": images.crop_size["width"]}


def _logprob(logits: Sequence[torch.Tensor], written: torch.Tensor, row: int, end: int) -> float:
    """Sum of the log-probabilities of a row's first `end` tokens; `logits` holds (rows, vocabulary) for each token."""
    steps = torch.stack([step[row] for step in logits[:end]]).float().log_softmax(-1)
    return float(steps.gather(1, written[row, :end, None]).sum())
