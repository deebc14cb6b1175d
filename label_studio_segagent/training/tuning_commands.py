"""`segagent train` and `segagent star`: fine-tune a model on trajectories, and let it improve on its own attempts."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..defaults import ANSWERS_IN_A_STEP, FIT_MINUTES, MAX_CLICKS, STAR_ROUNDS
from ..opening import ExifOption, SegmenterOption
from ..terminal import console, errors, reporting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..datasets import Record
    from ..errors import InputError
    from ..hlmat.trajectory import Sample
    from .star import Round
    from .trainer import FitSettings

__all__ = ["app", "rounds_table"]

app = typer.Typer()

PolicyArgument = Annotated[
    str, typer.Argument(help="Policy to start from: embedded, hf:<model>, or hf:<model>+<adapter>.")
]
OutOption = Annotated[Path, typer.Option(help="Folder for the result, checkpoints and curves.")]
MinutesOption = Annotated[float, typer.Option(help="Time budget of a training.", min=0)]
EpochsOption = Annotated[
    float | None, typer.Option(help="Passes over the trajectories, at most; by default what suits the kind of model.")
]
RateOption = Annotated[float | None, typer.Option(help="Learning rate; by default the one for the kind of model.")]
FullOption = Annotated[bool, typer.Option("--full", help="Train all weights of a language model, not a LoRA adapter.")]
VisionOption = Annotated[bool, typer.Option("--vision", help="Train a language model's image encoder, too.")]
BatchOption = Annotated[int, typer.Option(help="Answers that make an optimizer step.", min=1)]
SeedOption = Annotated[int, typer.Option(help="Of everything random.")]


@app.command()
def train(
    policy: PolicyArgument,
    trajectories: Annotated[list[Path], typer.Option(help="JSONL file of trajectories; may be given several times.")],
    out: OutOption,
    segmenter: Annotated[
        bool, typer.Option("--segmenter", help="Train a segmentation tool, not a policy: embedded, embedded:<weights>.")
    ] = False,
    minutes: MinutesOption = FIT_MINUTES,
    epochs: EpochsOption = None,
    rate: RateOption = None,
    full: FullOption = False,
    vision: VisionOption = False,
    batch: BatchOption = ANSWERS_IN_A_STEP,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    seed: SeedOption = 0,
) -> None:
    """Fine-tune a policy, or with [b]--segmenter[/b] the embedded segmenter, on trajectories (supervised).

    A language model gets a LoRA adapter; [b]accelerate launch -m label_studio_segagent.cli train …[/b] uses several
    GPUs. Use the result as SEGAGENT_POLICY or SEGAGENT_SEGMENTER.
    """
    from ..hlmat.trajectory import read_trajectories
    from .trainer import load_segmenter_trainer, load_trainer

    with reporting() as tell:
        lessons = [trajectory for file in trajectories for trajectory in read_trajectories(file)]
        settings = _settings(policy, minutes, epochs, rate, seed, full, vision, batch)
        trainer = load_segmenter_trainer(policy) if segmenter else load_trainer(policy)
        done = trainer.fit(lessons, out, settings, resume=resume, progress=tell)
        console.print(f"{done.steps} steps in {done.seconds:.0f} s, loss {done.loss:.4f}", highlight=False)
        name = "SEGAGENT_SEGMENTER" if segmenter else "SEGAGENT_POLICY"
        console.print(f"{name}={escape(done.model)}", highlight=False, soft_wrap=True)


@app.command()
def star(
    policy: PolicyArgument,
    data: Annotated[str, typer.Option(help="What to learn on: a data set as [b]segagent trajectories[/b] takes it.")],
    out: OutOption,
    split: Annotated[str | None, typer.Option(help="Part of it to learn on, for example train.")] = None,
    held_out: Annotated[str | None, typer.Option(help="Part of it to measure on, for example val.")] = None,
    segmenter: SegmenterOption = None,
    trajectories: Annotated[
        list[Path] | None, typer.Option(help="Original trajectories (JSONL); by default F_sim's on --data.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rollout and training, so many times.", min=0)] = STAR_ROUNDS,
    clicks: Annotated[int, typer.Option(help="Clicks of a rollout.", min=1)] = MAX_CLICKS,
    limit: Annotated[int, typer.Option(help="Objects to learn on, at most; a tenth of that is measured on.")] = 1000,
    minutes: MinutesOption = FIT_MINUTES,
    epochs: EpochsOption = None,
    rate: RateOption = None,
    full: FullOption = False,
    vision: VisionOption = False,
    batch: BatchOption = ANSWERS_IN_A_STEP,
    seed: SeedOption = 0,
    exif: ExifOption = None,
) -> None:
    """Improve a policy by its own attempts (StaR+): keep the clicks that helped, correct the others, train anew.

    Every round starts from POLICY again. What is done already in --out is not repeated, so an interrupted run goes on.
    """
    from ..datasets import load_dataset
    from ..datasets.image_file import as_exif
    from ..errors import InputError
    from ..hlmat.trajectory import read_trajectories
    from ..policies import load_policy
    from ..segmenters import load_segmenter
    from ..server.settings import load_settings
    from .attempts import StarSettings
    from .star import star as improve
    from .trainer import load_trainer

    with reporting() as tell:
        tool = load_segmenter(load_settings(segmenter=segmenter).segmenter)
        samples = _samples(load_dataset(data, split=split, exif=as_exif(exif)), limit)
        if not samples:
            raise InputError(f"no object of {data} can be used")
        unseen = [] if held_out is None else load_dataset(data, split=held_out, exif=as_exif(exif))
        exam = _samples(unseen, max(1, limit // 10))
        original = None if not trajectories else [t for file in trajectories for t in read_trajectories(file)]
        settings = StarSettings(rounds, clicks, fit=_settings(policy, minutes, epochs, rate, seed, full, vision, batch))
        done = improve(
            load_trainer(policy, tool), lambda name: load_policy(name, tool), tool, samples, out, settings,
            original=original, held_out=exam, progress=tell,
        )  # fmt: skip
        console.print(rounds_table(done))
        console.print(f"SEGAGENT_POLICY={escape(done[-1].model)}", highlight=False, soft_wrap=True)


def _samples(records: Iterable[Record], limit: int) -> list[Sample]:
    """The first samples of a data set; those that cannot be read are named, and the others go on."""
    from ..datasets import load_samples

    def failed(record: Record, error: InputError) -> None:
        errors.print(f"[yellow]{escape(record.id)}:[/] {escape(str(error))}", highlight=False, soft_wrap=True)

    return list(load_samples(islice(records, limit), failed))


def rounds_table(rounds: list[Round]) -> Table:
    """The report of StaR+ for people."""
    table = Table(title="StaR+")
    for column in ("round", "learned from", "actions kept", "replaced", "unreadable", "loss", "mIoU train", "mIoU"):
        table.add_column(column, justify="right")
    table.add_column("minutes", justify="right")
    for one in rounds:
        tally = one.tally
        actions = tally.kept + tally.replaced
        share = f" ({tally.kept / actions:.0%})" if actions else ""
        numbers = [str(one.number), str(one.learned_from), f"{tally.kept}{share}", str(tally.replaced)]
        numbers += [str(tally.unreadable), f"{one.loss:.3f}", f"{one.train_miou:.3f}"]
        table.add_row(*numbers, "" if one.miou is None else f"{one.miou:.3f}", f"{one.seconds / 60:.1f}")
    return table


def _settings(
    policy: str,
    minutes: float,
    epochs: float | None,
    rate: float | None,
    seed: int,
    full: bool,
    vision: bool,
    batch: int,
) -> FitSettings:
    from .trainer import FitSettings

    settings = FitSettings(seconds=minutes * 60, epochs=epochs, rate=rate, seed=seed)
    if not policy.startswith("hf:"):
        return settings
    from .mllm_trainer import MllmSettings

    return MllmSettings(**asdict(settings), full=full, vision=vision, batch=batch)
