"""Training the base model from scratch: it learns to see, to rate a mask, and to point at the middle of what is meant.

It is not taught to annotate: that is what fine-tuning on trajectories is for. All questions about one image share one
sequence, each sees the image and itself alone, as if it had been asked alone: the image is what costs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PilImage
from typing_extensions import override

from label_studio_segagent.hlmat.actions import GRAMMARS, Answer, Click
from label_studio_segagent.hlmat.annotator import SimulatedAnnotator
from label_studio_segagent.hlmat.arrays import Mask
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.hlmat.overlay import overlay
from label_studio_segagent.policies.resizing import Resize, resized
from label_studio_segagent.training.running import append_row, rate_factor

from .annotator import snapped
from .model import PATCH, POINT, make_model, make_processor, save
from .scenes import COLOURS, KINDS, SIDE, SIZES, Scene, choose, expressions, make_scene
from .wand import WandSegmenter

__all__ = ["BaseSettings", "Lesson", "collate", "lesson", "train_base"]

_RESIZE = Resize(2**20)
"""As a policy with the preset segagent resizes images."""
_CELLS = SIDE // PATCH
_LOOKS = (("</ref>", 2), ("Current IOU: ", 3), ("\nPositive point: (", 3))
"""Tokens that have to know, at a depth of so many layers, where in the image that is which they are about."""
_COLUMNS = ("step", "minutes", "loss", "loss_patches", "loss_places", "rating_right", "point_error", "rate")
_FACETS = (len(KINDS) + 1, len(COLOURS) + 1, len(SIZES) + 1)


@dataclass(frozen=True)
class BaseSettings:
    """How the base model is trained.

    Attributes:
        minutes: Time budget, all resumed runs together.
        images: In a batch.
        questions: For each image.
        rate: Highest learning rate.
        workers: Processes that draw scenes.
        seed: Of weights and scenes.
    """

    minutes: float = 45.0
    images: int = 6
    questions: int = 8
    rate: float = 8e-4
    workers: int = 1
    seed: int = 0


def train_base(out: Path, settings: BaseSettings) -> Path:
    """Train, or go on from the checkpoint in `out`; the folder of the finished model."""
    processor = make_processor()
    model = make_model(processor.tokenizer, settings.seed)
    helpers = _Helpers()
    parameters = [*model.parameters(), *helpers.parameters()]
    decayed = [p for p in parameters if p.ndim > 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}],
        lr=settings.rate, weight_decay=0.03, betas=(0.9, 0.98),
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, step, spent = out / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        helpers.load_state_dict(state["helpers"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["seconds"]
    began, saved = time.monotonic() - spent, time.monotonic()
    sums, count = np.zeros(5), 0
    dataset = _Lessons(processor, settings, step)
    batches = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=settings.workers, prefetch_factor=4 if settings.workers else None
    )
    model.train()
    for batch in batches:
        spent = time.monotonic() - began
        if spent >= settings.minutes * 60:
            break
        rate = settings.rate * rate_factor(step, 300, spent / (settings.minutes * 60), 0.4)
        for group in optimizer.param_groups:
            group["lr"] = rate
        text_loss, patch_loss, place_loss, right, error = _losses(model, helpers, batch)
        weight = max(0.2, 1 - spent / (settings.minutes * 60))
        optimizer.zero_grad()
        (text_loss + weight * (patch_loss + place_loss)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        sums += (text_loss.item(), patch_loss.item(), place_loss.item(), right, error)
        count += 1
        if step % 50 == 0:
            means = sums / count
            append_row(out / "curves.csv", _COLUMNS, [step, round(spent / 60, 2), *means.round(4), round(rate, 6)])
            shown = zip(_COLUMNS[2:], means, strict=False)
            print(f"step {step} {spent / 60:.1f} min", *(f"{n}={v:.3f}" for n, v in shown), flush=True)
            sums, count = np.zeros(5), 0
        if time.monotonic() - saved > 180:
            _checkpoint(checkpoint, model, helpers, optimizer, step, spent)
            saved = time.monotonic()
    _checkpoint(checkpoint, model, helpers, optimizer, step, spent)
    model.eval()
    save(model, processor, out / "model")
    return out / "model"


def _checkpoint(path: Path, model: Any, helpers: Any, optimizer: Any, step: int, seconds: float) -> None:
    state = {"model": model.state_dict(), "helpers": helpers.state_dict(), "optimizer": optimizer.state_dict(),
             "step": step, "seconds": seconds}  # fmt: skip
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


class _Helpers(torch.nn.Module):
    """Heads that are thrown away after training; what they ask for is what the model needs to know anyway.

    `patches` reads from what the language model gets of each patch which shape it shows. `asked` and `place` compare
    the end of a description, half way through the language model, with every patch: is it a part of what is meant?
    """

    def __init__(self) -> None:
        super().__init__()
        self.patches = torch.nn.Linear(256, sum(_FACETS) + 1)
        self.asked = torch.nn.ModuleList(torch.nn.Linear(256, 64) for _ in _LOOKS)
        self.place = torch.nn.ModuleList(torch.nn.Linear(256, 64) for _ in _LOOKS)


def _losses(model: Any, helpers: Any, batch: dict[str, Any]) -> tuple[Any, Any, Any, float, float]:
    """Losses of answers, patches and places; share of ratings within 10 points; pixels between points."""
    cells = _CELLS**2
    answers = batch["labels"].shape[1] - cells
    output = model(
        input_ids=batch["input_ids"],
        pixel_values=batch["pixel_values"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        use_cache=False,
        logits_to_keep=answers,
        output_hidden_states=True,
    )
    labels = batch["labels"][:, -answers:]
    logits, labels = output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    text_loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100)
    seen = output.image_hidden_states
    if not isinstance(seen, torch.Tensor):  # one for each image, since transformers 5.24
        seen = torch.cat(tuple(seen))
    facets = helpers.patches(seen.reshape(-1, 256)).split([*_FACETS, 1], 1)
    shown = batch["patches"].reshape(-1, len(_FACETS) + 1)
    losses = [torch.nn.functional.cross_entropy(f, shown[:, i].long()) for i, f in enumerate(facets[:-1])]
    losses.append(torch.nn.functional.binary_cross_entropy_with_logits(facets[-1][:, 0], shown[:, -1]))
    place_loss = torch.zeros(())
    for (_, depth), ends, asked, place in zip(_LOOKS, batch["looks"], helpers.asked, helpers.place, strict=True):
        hidden = output.hidden_states[depth]
        tokens = hidden.gather(1, ends[..., None].expand(-1, -1, 256))
        places = asked(tokens) @ place(hidden[:, :cells]).transpose(1, 2) / 8
        place_loss = place_loss + torch.nn.functional.cross_entropy(
            places.flatten(0, 1), batch["places"].flatten(0, 1)
        ) / len(_LOOKS)
    with torch.no_grad():
        right, error = _accuracy(logits, labels, batch["numbers"])
    return text_loss, sum(losses), place_loss, right, error


def _accuracy(logits: Any, labels: Any, numbers: Any) -> tuple[float, float]:
    """Numbers come in threes: rating, row, column, each right given those before it."""
    values = torch.full((logits.shape[1],), -1000)
    values[numbers] = torch.arange(len(numbers))
    asked = values[labels.clamp(min=0)] * (labels >= 0) - 1000 * (labels < 0) >= 0
    told, said = values[labels[asked]].reshape(-1, 3), values[logits[asked].argmax(1)].reshape(-1, 3)
    error = (told - said).clamp(-1000, 1000)[:, 1:].float().norm(dim=1).median() / 1000 * SIDE
    return float(((told - said)[:, 0].abs() <= 10).float().mean()), float(error)


class _Lessons(torch.utils.data.IterableDataset[dict[str, Any]]):
    """Batches without end, drawn anew; which ones depends on the seed and on the step the run starts from."""

    def __init__(self, processor: Any, settings: BaseSettings, step: int) -> None:
        self.processor, self.settings, self.step = processor, settings, step

    @override
    def __iter__(self) -> Iterator[dict[str, Any]]:
        torch.set_num_threads(1)
        rng = np.random.default_rng([self.settings.seed, self.step, 17])
        numbers = self.processor.tokenizer.convert_tokens_to_ids([str(n) for n in range(1001)])
        while True:
            rows = [lesson(rng, self.settings.questions) for _ in range(self.settings.images)]
            yield collate(self.processor, rows) | {"numbers": torch.tensor(numbers)}


@dataclass(frozen=True)
class Lesson:
    """An image, and questions about it with their answers.

    Attributes:
        image: RGB uint8 (SIDE, SIDE, 3), tinted.
        dialogue: Questions and answers.
        patches: What each patch shows, float32 (cells, cells, facets).
        places: For each question the share of what is meant that lies in each patch, float32 (questions, cells²).
    """

    image: Any
    dialogue: tuple[tuple[str, str], ...]
    patches: Any
    places: Any


def lesson(rng: np.random.Generator, questions: int) -> Lesson:
    """A random scene with a random tint, and questions about its shapes."""
    grammar, wand, size = GRAMMARS["segagent"](), WandSegmenter(), (SIDE, SIDE)
    while True:
        scene = make_scene(rng.integers(2**31, size=2).tolist())
        texts = expressions(scene)
        if sum(map(bool, texts)) >= 2:
            break
    tint = random_tint(scene, wand, rng)
    dialogue, places = [], []
    order = [i for i in rng.permutation(len(texts)) if texts[i]]
    for number in range(questions):
        shape, text = scene.shapes[order[number % len(order)]], choose(texts[order[number % len(order)]], rng, 0.35)
        middle = SimulatedAnnotator().next_action(np.zeros(size, bool), shape.mask)
        assert isinstance(middle, Click)
        answer = grammar.format(Answer(snapped(middle, shape.mask), iou(tint, shape.mask)), size)
        dialogue.append((f"{POINT}<ref>{text}</ref>", answer))
        share = _shares(shape.mask).ravel()
        places.append(share / share.sum())
    return Lesson(overlay(scene.image, tint), tuple(dialogue), _patches(scene, tint), np.array(places, np.float32))


def random_tint(scene: Scene, wand: WandSegmenter, rng: np.random.Generator) -> Mask:
    """What the tool makes of a few random clicks in one shape and sometimes one anywhere; often nothing."""
    if rng.random() < 0.25:
        return np.zeros((SIDE, SIDE), bool)
    shape = scene.shapes[int(rng.integers(len(scene.shapes)))]
    rows, columns = np.nonzero(shape.mask)
    picks = rng.integers(len(rows), size=int(rng.integers(1, 6)))
    clicks = [Click(float(columns[i]), float(rows[i])) for i in picks]
    if rng.random() < 0.25:
        clicks.append(Click(*map(float, rng.integers(SIDE, size=2)), bool(rng.random() < 0.7)))
    return wand.predict(wand.set_image(scene.image), clicks).mask


def _patches(scene: Scene, tint: Mask) -> Any:
    """For each patch kind, colour and size of the shape that fills most of it (0 for none), and the share of tint."""
    found = np.zeros((_CELLS, _CELLS, len(_FACETS) + 1), np.float32)
    most = np.full((_CELLS, _CELLS), 0.15)
    for shape in scene.shapes:
        share = _shares(shape.mask)
        here = share > most
        most[here] = share[here]
        found[here, :3] = [
            list(names).index(name) + 1
            for names, name in ((KINDS, shape.kind), (COLOURS, shape.colour), (SIZES, shape.size))
        ]
    found[..., -1] = _shares(tint)
    return found


def _shares(mask: Mask) -> Any:
    return mask.reshape(_CELLS, PATCH, _CELLS, PATCH).mean((1, 3))


def collate(processor: Any, rows: list[Lesson]) -> dict[str, Any]:
    """A batch in which every question sees the image, itself and its answer, and is counted from the image on."""
    tokenizer, cells = processor.tokenizer, _CELLS**2
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    packed, ends = [], []
    looks = [tokenizer.convert_tokens_to_ids(token) for token, _ in _LOOKS]
    for row in rows:
        ids, labels, positions, parts = [image_token] * cells, [-100] * cells, list(range(cells)), [0] * cells
        for number, (question, answer) in enumerate(row.dialogue, 1):
            asked = tokenizer(question + "\nAnswer: ").input_ids
            told = [*tokenizer(answer).input_ids, tokenizer.eos_token_id]
            ids += asked + told
            labels += [-100] * len(asked) + told
            positions += range(cells, cells + len(asked) + len(told))
            parts += [number] * (len(asked) + len(told))
        packed.append((ids, labels, positions, parts))
        ends.append([[i for i, token in enumerate(ids) if token == look] for look in looks])
    length = max(len(ids) for ids, *_ in packed)
    filled = [
        torch.tensor([[*row[column], *[filler] * (length - len(row[column]))] for row in packed])
        for column, filler in enumerate((tokenizer.pad_token_id, -100, 0, -1))
    ]
    parts = filled[3]
    sees = (parts[:, :, None] == parts[:, None]) | (parts == 0)[:, None]
    sees &= torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(sees.shape).masked_fill_(~sees, torch.finfo(torch.float32).min)
    shown = [PilImage.fromarray(resized(row.image, _RESIZE((SIDE, SIDE)))) for row in rows]
    return {
        "input_ids": filled[0],
        "labels": filled[1],
        "position_ids": filled[2],
        "attention_mask": mask[:, None],
        "pixel_values": processor.image_processor(shown, return_tensors="pt")["pixel_values"],
        "patches": torch.from_numpy(np.stack([row.patches for row in rows])),
        "looks": torch.tensor(ends).transpose(0, 1),
        "places": torch.from_numpy(np.stack([row.places for row in rows])),
    }


if __name__ == "__main__":
    import sys

    train_base(Path(sys.argv[1]), BaseSettings(minutes=float(sys.argv[2])))
