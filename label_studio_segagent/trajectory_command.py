"""`segagent trajectories`: masks in, trajectories of the simulated annotator out."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from .defaults import ANNOTATOR_STOP_IOU, MAX_CLICKS, SPOILED_STARTS
from .errors import InputError, SegAgentError
from .opening import DATA_HELP, ExifOption, SegmenterOption, opened
from .terminal import console, errors, fail, show_failures

if TYPE_CHECKING:
    from .datasets import Record
    from .training.generation import Generated
    from .training.trajectories import TrajectorySettings
    from .training.trajectory_report import TrajectoryStatistics

__all__ = ["trajectories"]

_LABELS_SHOWN = 12


def trajectories(
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help=DATA_HELP),
    ],
    out: Annotated[Path, typer.Option(help="The JSONL file; what is in it already is kept and not made again.")],
    segmenter: SegmenterOption = None,
    split: Annotated[str | None, typer.Option(help="Part of the data: train, val, testA, testB, test, …")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images, if it is not the usual one.")] = None,
    label: Annotated[str | None, typer.Option(help="What objects are called that have no label of their own.")] = None,
    exif: ExifOption = None,
    tau_stop: Annotated[float, typer.Option(help="A trajectory ends at this IoU.")] = ANNOTATOR_STOP_IOU,
    tau_diff: Annotated[float, typer.Option(help="... and at a click that does not raise the IoU by more.")] = 0.0,
    max_clicks: Annotated[int, typer.Option(help="... and after so many clicks (T).", min=0)] = MAX_CLICKS,
    box_starts: Annotated[int, typer.Option(help="Trajectories from a box, for each object.", min=0)] = 0,
    refine_starts: Annotated[
        int, typer.Option(help="Trajectories from a corrupted mask, each.", min=0)
    ] = SPOILED_STARTS,
    auxiliary: Annotated[
        int, typer.Option(help="Single steps, each: a corrupted mask, and the centre of its largest error.", min=0)
    ] = SPOILED_STARTS,
    jobs: Annotated[int, typer.Option(help="Processes; each loads the segmenter.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of everything random.", min=0)] = 0,
    limit: Annotated[int | None, typer.Option(help="Only the first so many objects.", min=1)] = None,
    pictures: Annotated[int, typer.Option(help="Trajectories drawn on the picture sheet.", min=0)] = 8,
    segagent_json: Annotated[
        Path | None, typer.Option(help="Also write those from nothing in the layout of the released SegAgent data.")
    ] = None,
    recorded: Annotated[
        bool, typer.Option("--recorded", help="Take over the clicks that a SegAgent file holds; make none.")
    ] = False,
) -> None:
    """Make click trajectories out of masks: what the policies learn from.

    For each object a simulated annotator clicks on the segmenter, always in the middle of the largest error, as long as
    that helps: from nothing, from corrupted masks (--refine-starts), from boxes (--box-starts). Every step holds the
    mask, the click, and the answer as text, which rates the mask that was shown ("Current IOU: 74").

    Stop it at any time; the same command goes on. Statistics are written beside OUT as .stats.json, a picture sheet as
    .png: look at it first. Objects that cannot be read are named and the others go on; the exit code is then 2.

    [b]segagent trajectories data/coco --split train --out runs/train.jsonl --jobs 4[/b]
    """
    from .server.settings import load_settings
    from .training.trajectories import TrajectorySettings
    from .training.trajectory_report import draw_trajectories, summarise

    try:
        rules = TrajectorySettings(
            tau_stop, tau_diff, max_clicks, box=box_starts, refine=refine_starts, auxiliary=auxiliary, seed=seed
        )
        made = None
        failures: list[tuple[str, str]] = []
        if recorded:
            failures = _take_over(Path(data), out, images, label)
        else:
            tool = segmenter or load_settings().segmenter
            pictures_of = out.with_suffix(".images")
            with opened(data, pictures_of, split, images, label, failures, exif) as records:
                made = _make(_first(records, limit), tool, out, rules, jobs)
            failures += made.failures
            if not made.objects and not failures:
                raise InputError(f"{data} has no objects")
        found = summarise(out, pictures)
        drawn = draw_trajectories(found.examples, out.with_suffix(".png"))
        _write_statistics(out.with_suffix(".stats.json"), data, rules, found, made, failures)
        exported = None if segagent_json is None else _export(out, segagent_json)
    except (SegAgentError, OSError) as error:
        fail(error)
    except KeyboardInterrupt:
        errors.print("Stopped; the same command goes on.")
        raise typer.Exit(130) from None
    _show(found, made)
    _show_written(out, drawn, segagent_json, exported)
    show_failures(failures, ".stats.json")


def _first(records: Iterable[Record], limit: int | None) -> Iterable[Record]:
    return records[:limit] if isinstance(records, Sequence) else itertools.islice(records, limit)


def _make(records: Iterable[Record], segmenter: str, out: Path, rules: TrajectorySettings, jobs: int) -> Generated:
    from .training.generation import generate

    columns = (SpinnerColumn(), TextColumn("objects"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors) as progress:
        bar = progress.add_task("", total=len(records) if isinstance(records, Sequence) else None)
        return generate(records, segmenter, out, rules, jobs=jobs, progress=lambda n: progress.advance(bar, n))


def _take_over(path: Path, out: Path, images: Path | None, label: str | None) -> list[tuple[str, str]]:
    from .datasets.segagent_json import read_segagent_json
    from .hlmat.trajectory import write_trajectories

    if out.exists():
        raise InputError(f"{out} is there already; --recorded writes a file of its own")
    failures: list[tuple[str, str]] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    found = read_segagent_json(
        path, images, label, failed=lambda record, error: failures.append((record.id, str(error)))
    )
    write_trajectories(out, found)
    return failures


def _export(out: Path, path: Path) -> int:
    from .datasets.segagent_json import write_segagent_json
    from .hlmat.trajectory import read_trajectories

    folders = {os.path.dirname(trajectory.image) for trajectory in read_trajectories(out)}
    return write_segagent_json(path, read_trajectories(out), Path(os.path.commonpath(folders)) if folders else None)


def _write_statistics(
    path: Path, data: str, rules: TrajectorySettings, found: TrajectoryStatistics, made: Generated | None,
    failures: Sequence[tuple[str, str]],
) -> None:  # fmt: skip
    content: dict[str, Any] = {"data": data, **found.to_json(), "failures": dict(failures)}
    if made is not None:
        run = {name: getattr(made, name) for name in ("objects", "made", "known", "empty", "seconds")}
        content |= {"settings": rules.rules, "run": run}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), "utf-8", "backslashreplace")


def _show(found: TrajectoryStatistics, made: Generated | None) -> None:
    table = Table("start", "trajectories", "clicks", "positive", "IoU after 0, 1, 2, … clicks", "stopped")
    for kind, numbers in found.kinds.items():
        clicks = numbers["clicks"] / max(numbers["trajectories"], 1)
        positive = "-" if numbers["positive"] is None else f"{numbers['positive']:.0%}"
        ious = " ".join(f"{value:.2f}" for value in numbers["iou_by_click"])
        stopped = ", ".join(f"{escape(reason)} {count}" for reason, count in numbers["stopped"].items())
        table.add_row(kind, str(numbers["trajectories"]), f"{clicks:.2f}", positive, ious, stopped)
    console.print(table)
    _show_labels(found.labels)
    if made is not None:
        new = made.objects - made.known
        console.print(
            f"{made.made} trajectories of {new} objects in {made.seconds:.0f} s "
            f"({new / max(made.seconds, 1e-9):.2f} objects/s); {made.known} objects had theirs already, "
            f"{made.empty} have an empty mask.",
            highlight=False,
        )


def _show_labels(labels: Mapping[str, Mapping[str, Any]]) -> None:
    table = Table("label", "objects", "clicks", "last IoU")
    for label, numbers in list(labels.items())[:_LABELS_SHOWN]:
        means = [f"{numbers[name]:.2f}" if name in numbers else "-" for name in ("clicks", "iou")]
        table.add_row(escape(label), str(numbers["objects"]), *means)
    if len(labels) > _LABELS_SHOWN:
        table.add_row(f"… {len(labels) - _LABELS_SHOWN} more", "", "", "")
    console.print(table)


def _show_written(out: Path, drawn: int, segagent_json: Path | None, exported: int | None) -> None:
    console.print(f"Written to [b]{escape(str(out.resolve()))}[/], and beside it:", highlight=False, soft_wrap=True)
    if drawn:
        console.print(
            f"  {escape(out.with_suffix('.png').name)}: {drawn} trajectories, click by click: look here first"
        )
    console.print(f"  {escape(out.with_suffix('.stats.json').name)}: these numbers and all labels")
    if segagent_json is not None:
        console.print(f"{exported} trajectories in the SegAgent layout in {escape(str(segagent_json))}", soft_wrap=True)
