"""Fine-tuning multimodal language models on trajectories: LoRA adapters (peft), or all weights of small models.

Training sees what inference asks: questions are the policy's own, through its own processor code. The loss counts the
answer alone. Works under `accelerate launch` on several GPUs.

Source: SegAgent (arXiv 2503.08625), section 4: cosine schedule, image encoder frozen, projector and language model
trained.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.trainer_utils import get_last_checkpoint
from typing_extensions import override

from ..defaults import ANSWERS_IN_A_STEP
from ..errors import ConfigError, InputError
from ..hlmat.trajectory import Trajectory
from ..policies.hf import HfPolicy
from ..policies.hf_load import load_hf, read_adapter, split_name
from .lessons import collate, lessons_of
from .mllm_report import Report
from .trainer import FitSettings, Fitted, ImageReader, Progress, Trainer, keep_back, open_image, start_run

__all__ = ["MllmSettings", "MllmTrainer"]

_VISION = re.compile(
    r"(^|.*\.)(vision_tower|vision_model|vision_encoder|image_encoder|visual|vision)\."
    r"(?!.*(merger|projector|connector))"
)
"""The image encoder of the families known to transformers; what joins it to the language model is not part of it."""
_EPOCHS = 2.0
_DONE = "fitted.json"
_LOOKS = 10
"""Evaluations in a run."""


@dataclass(frozen=True, slots=True)
class MllmSettings(FitSettings):
    """How a language model learns.

    Attributes:
        full: Train all weights, for small models; a LoRA adapter by default.
        vision: Train the image encoder as well.
        batch: Steps of trajectories that make an optimizer step, on all devices together.
        at_once: Of these, so many in memory at a time on one device.
        rank: Of the adapter.
    """

    full: bool = False
    vision: bool = False
    batch: int = ANSWERS_IN_A_STEP
    at_once: int = 4
    rank: int = 16


class MllmTrainer(Trainer):
    """Fine-tunes `hf:<model>` or, going on from an adapter, `hf:<model>+<adapter>`.

    The result is an adapter folder, used as `hf:<model>+<folder>`; with `MllmSettings.full` a model folder.
    """

    @override
    def fit(
        self,
        trajectories: Sequence[Trajectory],
        out: Path,
        settings: FitSettings | None = None,
        *,
        images: ImageReader | None = None,
        resume: bool = False,
        progress: Progress | None = None,
    ) -> Fitted:
        chosen = settings if isinstance(settings, MllmSettings) else MllmSettings(**asdict(settings or FitSettings()))
        _check_packages()
        start_run(out, resume)
        kept, learned = keep_back(trajectories, chosen.seed)
        lessons, exam = lessons_of(learned), lessons_of(kept)
        if not lessons:
            raise InputError("there is nothing to learn from: no trajectory has a step with an action")
        find: Any = get_last_checkpoint
        last = find(str(out))
        if last and (fitted := _finished(out, chosen)):
            return fitted
        arguments = _arguments(out, chosen, len(lessons), bool(exam))
        name, adapter = split_name(self.start.removeprefix("hf:"))
        policy = load_hf(name)
        model = _trainable(policy, adapter, chosen)
        read = images or open_image
        report = Report(out, chosen.seconds, progress)
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=lessons,
            eval_dataset=exam or None,
            data_collator=lambda rows: collate(policy, rows, read),
            callbacks=[report],
        )
        if exam:
            trainer.add_callback(transformers.EarlyStoppingCallback(early_stopping_patience=chosen.patience))
        trainer.remove_callback(transformers.ProgressCallback)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train(resume_from_checkpoint=last)
        model.eval()
        folder = out / ("model" if chosen.full else "adapter")
        if trainer.is_world_process_zero():
            if chosen.full:
                model.save_pretrained(folder)
                policy.processor.save_pretrained(folder)
            else:
                model.save_pretrained(folder, save_embedding_layers=False)
        trainer.accelerator.wait_for_everyone()
        found = f"hf:{folder}" if chosen.full else f"hf:{name}+{folder}"
        fitted = Fitted(found, trainer.state.global_step, report.loss(trainer.state), report.seconds)
        if trainer.is_world_process_zero():
            (out / _DONE).write_text(json.dumps({"settings": asdict(chosen), "fitted": asdict(fitted)}, indent=1))
        return fitted


class _Trainer(transformers.Trainer):
    """Counts the tokens of answers alone, each by the weight of its trajectory."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.model_accepts_loss_kwargs = False  # so that accumulated gradients are averaged
        self.can_return_loss = True

    @override
    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels, weights = inputs["labels"][:, 1:], inputs["weights"]
        outputs = model(**{k: v for k, v in inputs.items() if k not in ("labels", "weights")}, use_cache=False)
        told = labels != -100
        logits = outputs.logits[:, :-1][told].float()
        losses = torch.nn.functional.cross_entropy(logits, labels[told], reduction="none")
        weights = weights[:, None].expand(labels.shape)[told]
        loss = (losses * weights).sum() / weights.sum().clamp(min=1e-6)
        return (loss, {"loss": loss}) if return_outputs else loss

    @override
    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    @override
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Through the model's own loading: transformers 5.23 writes the names of the hub and would ignore them here."""
        model = self.model if model is None else model
        if hasattr(model, "peft_config"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            saved = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype)
            model.load_state_dict(saved.state_dict())

    @override
    def _load_best_model(self) -> None:
        if hasattr(self.model, "peft_config"):
            super()._load_best_model()
        elif self.state.best_model_checkpoint:
            self._load_from_checkpoint(self.state.best_model_checkpoint)


def _finished(out: Path, settings: MllmSettings) -> Fitted | None:
    """What a run with these settings came to, if it has ended: transformers would add a step to it."""
    try:
        done = json.loads((out / _DONE).read_text())
        return Fitted(**done["fitted"]) if done["settings"] == asdict(settings) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _check_packages() -> None:
    try:
        import accelerate  # noqa: F401
        import peft  # noqa: F401
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"fine-tuning a language model needs {error.name}: pip install 'label-studio-segagent[mllm]'"
        ) from error


def _arguments(out: Path, settings: MllmSettings, lessons: int, exam: bool) -> Any:
    """The arguments of transformers' Trainer."""
    world = transformers.TrainingArguments(output_dir=str(out), report_to=[]).world_size
    at_once = max(1, min(settings.at_once, settings.batch // world))
    accumulated = max(1, settings.batch // (at_once * world))
    steps = math.ceil(lessons / (at_once * accumulated * world) * (settings.epochs or _EPOCHS))
    every = max(1, math.ceil(steps / _LOOKS))
    cuda = torch.cuda.is_available()
    memory: dict[str, Any] = {}
    if cuda:
        memory = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    rate = settings.rate if settings.rate is not None else (3e-4 if settings.full else 1e-4)
    return transformers.TrainingArguments(
        output_dir=str(out),
        max_steps=max(1, steps),
        per_device_train_batch_size=at_once,
        per_device_eval_batch_size=at_once,
        gradient_accumulation_steps=accumulated,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.03 * steps)),
        max_grad_norm=1.0,
        logging_steps=max(1, every // 5),
        save_steps=every,
        save_total_limit=2,
        eval_strategy="steps" if exam else "no",
        eval_steps=every if exam else None,
        load_best_model_at_end=exam,
        metric_for_best_model="eval_loss" if exam else None,
        greater_is_better=False if exam else None,
        bf16=cuda and torch.cuda.is_bf16_supported(including_emulation=False),
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=0,
        dataloader_pin_memory=False,  # the processor's tensors are on the device already
        disable_tqdm=True,
        report_to=[],
        seed=settings.seed,
        **memory,
    )


def _trainable(policy: HfPolicy, adapter: str, settings: MllmSettings) -> Any:
    """The policy's model with gradients where it is to learn."""
    from peft import LoraConfig, get_peft_model

    model = policy.model
    if adapter and settings.full:
        model = read_adapter(model, Path(adapter)).merge_and_unload()
        policy.model = model
    if settings.full:
        model.float()
        for name, parameter in model.named_parameters():
            parameter.requires_grad = settings.vision or not _is_vision(name)
        return model
    if adapter:
        return read_adapter(model, Path(adapter), trainable=True)
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not model.get_output_embeddings()
        and (settings.vision or not _is_vision(name))
    ]
    torch.manual_seed(settings.seed)
    config = LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules=layers)
    return get_peft_model(model, config)


def _is_vision(name: str) -> bool:
    return _VISION.match(name) is not None
