"""`segagent train-embedded`: train the small models that ship with this package, from COCO-format data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..defaults import POLICY_MINUTES, SEGMENTER_MINUTES, TRAJECTORY_MINUTES
from ..errors import SegAgentError
from ..opening import ExifOption
from ..terminal import console, fail

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Train the embedded models, the segmenter first: a policy belongs to the segmenter it was trained with. "
    "Needs pip install 'label-studio-segagent\\[train]'. Ctrl+C stops a run and loses nothing; --resume goes on.",
)

DataOption = Annotated[
    list[Path],
    typer.Option(
        help="COCO file, or folder with one: train.json and images/, or as Label Studio, CVAT or Roboflow lay it out. "
        "May be given several times."
    ),
]
OutOption = Annotated[Path, typer.Option(help="Folder for weights, checkpoints, curves and the model card.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")]
SeedOption = Annotated[int, typer.Option(help="Of everything random.")]


@app.command()
def segmenter(
    data: DataOption,
    out: OutOption,
    minutes: Annotated[float, typer.Option(help="Time budget, all resumed runs together.", min=0)] = SEGMENTER_MINUTES,
    weight: Annotated[
        list[float] | None, typer.Option(help="How often each --data is drawn; by default by the root of its size.")
    ] = None,
    resume: ResumeOption = False,
    seed: SeedOption = 0,
    exif: ExifOption = None,
) -> None:
    """Train the click segmenter; three hours on two CPU cores gave the weights that ship.

    Use the result as SEGAGENT_SEGMENTER=embedded:OUT/segmenter.safetensors.
    """
    from ..datasets.image_file import as_exif
    from .segmenter import TrainSettings, train

    if weight and len(weight) != len(data):
        raise typer.BadParameter(f"{len(weight)} --weight for {len(data)} --data; give one for each, or none")
    try:
        _check(data)
        settings = TrainSettings(minutes=minutes, seed=seed)
        done = train(data, out, settings, weights=weight, resume=resume, exif=as_exif(exif))
    except (SegAgentError, OSError) as error:
        fail(error)
    _print_written(out, done)


@app.command()
def policy(
    data: DataOption,
    out: OutOption,
    minutes: Annotated[float, typer.Option(help="Time budget, all resumed runs together.", min=0)] = POLICY_MINUTES,
    trajectory_minutes: Annotated[
        float, typer.Option(help="Time to make click trajectories, at most; objects that have one are skipped.", min=0)
    ] = TRAJECTORY_MINUTES,
    segmenter: Annotated[
        Path | None, typer.Option(help="Weights of the segmenter to work with; by default those that ship.")
    ] = None,
    resume: ResumeOption = False,
    seed: SeedOption = 0,
    exif: ExifOption = None,
) -> None:
    """Train the click policy: where labels are, then trajectories with the segmenter, then how to judge and click.

    Use the result as SEGAGENT_POLICY=embedded:OUT/policy.safetensors.
    """
    from ..datasets.image_file import as_exif
    from .policy import PolicySettings, train_policy

    try:
        _check(data)
        settings = PolicySettings(minutes=minutes, trajectory_minutes=trajectory_minutes, seed=seed)
        done = train_policy(data, out, settings, segmenter=segmenter, resume=resume, exif=as_exif(exif))
    except (SegAgentError, OSError) as error:
        fail(error)
    _print_written(out, done)


def _check(data: list[Path]) -> None:
    from ..datasets.loading import coco_file

    for folder in data:
        coco_file(folder, "train")  # says what is missing before anything else is done


def _print_written(out: Path, weights: Path) -> None:
    console.print(f"Written to [b]{escape(str(out.resolve()))}[/]:", highlight=False, soft_wrap=True)
    for name, what in (
        (weights.name, "the weights"),
        ("MODEL_CARD.md", "what they are and what they were trained on"),
        ("*.png, *.csv", "how training went, as curves and numbers"),
        ("checkpoint.pt", "where --resume goes on"),
    ):
        console.print(f"  {name:22} {what}", highlight=False)
