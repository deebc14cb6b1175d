"""`segagent evaluate`: how good an agent is on masks that are known."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from .errors import InputError, SegAgentError
from .opening import DATA_HELP, ExifOption, PolicyOption, SegmenterOption, opened
from .terminal import console, errors, fail, show_failures

if TYPE_CHECKING:
    from .datasets import Record
    from .evaluation.running import Evaluated

__all__ = ["evaluate"]

_LABELS_SHOWN = 12


def evaluate(
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    out: Annotated[Path, typer.Option(help="Folder for the results; what is in it already is not measured again.")],
    policy: PolicyOption = None,
    segmenter: SegmenterOption = None,
    candidates: Annotated[
        int | None, typer.Option(help="Clicks tried at every step (K). Default: SEGAGENT_CANDIDATES.")
    ] = None,
    max_clicks: Annotated[
        int | None, typer.Option(help="Clicks for an object (T). Default: SEGAGENT_MAX_CLICKS.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Part of the data: train, val, testA, testB, test, …")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images, if it is not the usual one.")] = None,
    label: Annotated[str | None, typer.Option(help="What objects are called that have no label of their own.")] = None,
    exif: ExifOption = None,
    refine_from: Annotated[
        str | None,
        typer.Option(
            help="Start from masks: [b]corrupted[/b] ones, or those of a JSONL file with lines "
            '{"id": …, "mask": COCO RLE}.'
        ),
    ] = None,
    blind: Annotated[
        bool, typer.Option("--blind", help="Also click without looking at the ratings (twice the time).")
    ] = False,
    noc: Annotated[
        bool,
        typer.Option("--noc", help="Also NoC and NoF: twice 20 simulated clicks at most on the segmenter (slow)."),
    ] = False,
    jobs: Annotated[int, typer.Option(help="Processes; each loads the models.", min=1)] = 1,
    limit: Annotated[
        int | None, typer.Option(help="Only so many pictures, drawn at random, with all their objects.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of --limit and of corruptions.", min=0)] = 0,
) -> None:
    """Measure policy and segmenter on objects whose masks are known.

    mIoU, cIoU, boundary IoU, clicks, seconds, mIoU by clicks with and without the policy's ratings, and how far its
    predicted IoU is off, with 95 % intervals. Writes report.html (with the best and worst rollouts as pictures: look at
    it first), results.json and objects.csv.

    Stop it at any time; the same command goes on. Objects that cannot be used are named and the others go on; the exit
    code is then 2.

    [b]segagent evaluate data/coco --split val --limit 200 --out runs/val --jobs 2[/b]
    """
    failures: list[tuple[str, str]] = []
    try:
        with opened(data, out / "images", split, images, label, failures, exif) as records:
            models = {"policy": policy, "segmenter": segmenter, "candidates": candidates, "max_clicks": max_clicks}
            done = _run(records, out, models, (refine_from, blind, noc, seed), jobs, limit)
        done.failures[:0] = failures
        if not done.rows:
            raise InputError(f"no object of {data} could be measured{_why(done)}")
        results = _write(data if split is None else f"{data} ({split})", out, done)
    except (SegAgentError, OSError) as error:
        fail(error)
    except KeyboardInterrupt:
        errors.print("Stopped; the same command goes on.")
        raise typer.Exit(130) from None
    _show(results, done)
    _show_written(out)
    show_failures(done.failures, "results.json")


def _run(
    records: Iterable[Record], out: Path, models: dict[str, Any], asked: tuple[str | None, bool, bool, int], jobs: int,
    limit: int | None,
) -> Evaluated:  # fmt: skip
    from .evaluation.measuring import Protocol
    from .evaluation.running import chosen, evaluate, read_starts
    from .server.models import build_agent
    from .server.settings import load_settings

    start, blind, noc, seed = asked
    starts = None if start in (None, "corrupted") else read_starts(Path(str(start)))
    protocol = Protocol(blind, noc, "masks" if starts is not None else start or "", seed)
    settings = load_settings(**models)
    objects = chosen(records, limit, seed)
    columns = (SpinnerColumn(), TextColumn("objects"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors) as progress:
        bar = progress.add_task("", total=len(objects))
        return evaluate(
            objects, partial(build_agent, settings), out, protocol, starts=starts, jobs=jobs,
            progress=lambda count: progress.advance(bar, count),
        )  # fmt: skip


def _why(done: Evaluated) -> str:
    if done.failures:
        name, reason = done.failures[0]
        return f"; the first, {name}: {reason}"
    return ": all masks are empty" if done.empty else ": there are none"


def _write(data: str, out: Path, done: Evaluated) -> dict[str, Any]:
    from .evaluation.report import write_csv, write_report
    from .evaluation.statistics import summarise

    clicks = int(done.settings["max_clicks"])
    results = {
        "data": data, "settings": done.settings, **summarise(done.rows, clicks), "empty": done.empty,
        "failures": dict(done.failures),
    }  # fmt: skip
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    (out / "results.json").write_text(text, "utf-8", "backslashreplace")
    write_csv(done.rows, out / "objects.csv", clicks)
    write_report(results, done.rows, out / "trajectories.jsonl", out / "report.html")
    return results


def _show(results: dict[str, Any], done: Evaluated) -> None:
    from .evaluation.report import METRICS, number

    table = Table("", "", title=f"{results['objects']} objects on {results['images']} images")
    for name, title in METRICS.items():
        if results["settings"]["start"] or name not in ("start_miou", "gain"):
            table.add_row(title, number(results["metrics"][name]))
    table.add_row("seconds per object", number(results["seconds"]))
    for name, words in (("noc", "segmenter"), ("noc_jittered", "segmenter, clicks a little off")):
        for threshold, found in results.get(name, {}).items():
            table.add_row(f"NoC@{threshold} ({words})", f"{number(found['noc'], 2)}, NoF {found['nof']}")
    for name, title in (("final", "results"), ("all", "all rated masks")):
        rating = results["rating"][name]
        for measure, words in (("mae", "MAE"), ("mse", "MSE"), ("pearson", "Pearson"), ("spearman", "Spearman")):
            if measure in rating:
                table.add_row(f"predicted IoU of {title}, {words}", number(rating[measure]))
    console.print(table)
    lines = results["per_click"]
    kinds = {"last": "last mask", "rated": "best rated (PRM)", "blind": "blind"}
    table = Table("clicks", *(title for kind, title in kinds.items() if kind in lines[0]), title="mIoU by clicks")
    for line in lines:
        table.add_row(str(line["clicks"]), *(number(line[kind]) for kind in kinds if kind in line))
    console.print(table)
    table = Table("label", "objects", "mIoU", "clicks")
    for name, found in list(results["labels"].items())[:_LABELS_SHOWN]:
        table.add_row(escape(name), str(found["objects"]), f"{found['miou']:.3f}", f"{found['clicks']:.2f}")
    if len(results["labels"]) > _LABELS_SHOWN:
        table.add_row(f"… {len(results['labels']) - _LABELS_SHOWN} more", "", "", "")
    console.print(table)
    console.print(
        f"{len(done.rows) - done.known} objects measured in {done.seconds:.0f} s; {done.known} had been measured "
        f"already, {done.empty} have an empty mask.",
        highlight=False,
    )


def _show_written(out: Path) -> None:
    console.print(f"Written to [b]{escape(str(out.resolve()))}[/]:", highlight=False, soft_wrap=True)
    for name, what in (
        ("report.html", "numbers, plots, the best and worst rollouts: look here first"),
        ("results.json", "all numbers, with 95 % intervals"),
        ("objects.csv", "one line for each object"),
        ("trajectories.jsonl", "what the agent did, click by click"),
    ):
        console.print(f"  {name:20} {what}", highlight=False)
