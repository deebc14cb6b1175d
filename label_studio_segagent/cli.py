"""`segagent`: the command line."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from . import __version__
from .errors import InputError, SegAgentError
from .evaluation_command import evaluate
from .opening import PolicyOption, SegmenterOption
from .server.commands import jobs, models, rank, refine, worker
from .server.qc_commands import app as qc_app
from .terminal import console, errors, fail
from .training.commands import app as train_app
from .training.tuning_commands import app as tuning_app
from .trajectory_command import trajectories

if TYPE_CHECKING:
    from .agent.agent import SegAgent

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Segments like a human annotator: clicks on a segmentation tool, one by one, in Label Studio or on files.",
)
app.add_typer(train_app, name="train-embedded")
app.add_typer(models, name="models")
app.add_typer(qc_app, name="qc")
app.command()(jobs)
app.command()(rank)
app.command()(refine)
app.command()(worker)
app.command()(trajectories)
app.command()(evaluate)
app.add_typer(tuning_app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"label-studio-segagent {__version__}")
        raise typer.Exit


ClicksOption = Annotated[int | None, typer.Option(help="Clicks for an object. Default: SEGAGENT_MAX_CLICKS.")]


def _agent(policy: str | None, segmenter: str | None, max_clicks: int | None) -> SegAgent:
    from .server.models import build_agent
    from .server.settings import load_settings

    return build_agent(load_settings(policy=policy, segmenter=segmenter, max_clicks=max_clicks))


def _progress() -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: SEGAGENT_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. Default: SEGAGENT_PORT.")] = None,
    policy: PolicyOption = None,
    segmenter: SegmenterOption = None,
) -> None:
    """Start the ML backend for Label Studio.

    Set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY first, then connect http://<this machine>:9090 under
    Settings > Model in the project. If that fails, [b]segagent doctor[/b] says why. A worker for background jobs is
    started beside it; the same address, in a browser, is the status page.
    """
    from .server.serve import run
    from .server.settings import load_settings

    try:
        settings = load_settings(host=host, port=port, policy=policy, segmenter=segmenter)
        if not settings.label_studio_url:
            errors.print("[yellow]LABEL_STUDIO_URL is not set: images uploaded to Label Studio cannot be fetched.[/]")
        run(settings)
    except SegAgentError as error:
        fail(error)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and files.")] = Path("demo-output"),
    label_studio: Annotated[
        bool, typer.Option("--label-studio", help="Also start a real Label Studio with a ready project (1 GB install).")
    ] = False,
    policy: PolicyOption = None,
    segmenter: SegmenterOption = None,
) -> None:
    """Pre-annotate the photographs that come with the package and show how good it was.

    With [b]--label-studio[/b] a real Label Studio is installed (own virtual environment beside the output), started and
    filled: photographs imported, this backend connected, predictions retrieved. Stop it with Ctrl+C.
    """
    from .demo import demo_photos, run_demo

    try:
        agent = _agent(policy, segmenter, None)
        photos = demo_photos()
        with _progress() as progress:
            bar = progress.add_task(f"{len(photos)} photographs", total=len(photos))
            rows = run_demo(agent, photos, out, lambda _: progress.advance(bar))
    except (SegAgentError, OSError) as error:
        fail(error)
    table = Table("photograph", "label", "true IoU", "predicted IoU", title="Agreement with hand-drawn masks")
    for name, label, true, predicted in rows:
        table.add_row(name, label, f"{true:.2f}", f"{predicted:.2f}")
    console.print(table)
    mean = sum(row[2] for row in rows) / len(rows)
    console.print(f"Mean IoU [b]{mean:.3f}[/] over {len(rows)} objects with {agent.version}.")
    _print_written(out)
    console.print(
        "Next: [b]segagent demo --label-studio[/] shows it in a real Label Studio, "
        "[b]segagent predict photo.jpg --label cat[/] takes your own images, and [b]segagent serve[/] is the backend "
        "for your own Label Studio."
    )
    if label_studio:
        from .live_demo import run_live_demo
        from .server.settings import load_settings

        try:
            run_live_demo(out, console, load_settings(policy=policy, segmenter=segmenter))
        except SegAgentError as error:
            fail(error)
        except KeyboardInterrupt:
            console.print("Stopped.")


def _print_written(out: Path) -> None:
    console.print(f"Written to [b]{escape(str(out.resolve()))}[/]:", highlight=False, soft_wrap=True)
    for name, what in (
        ("sheet.png", "all results at a glance"),
        ("strips/", "every rollout click by click: look here first"),
        ("masks/", "the masks as PNG"),
        ("label_studio.json", "tasks with predictions, and label_config.xml for their project"),
        ("coco.json", "the same in COCO format, with the pictures in images/"),
        ("trajectories.jsonl", "the trajectories, for training"),
    ):
        console.print(f"  {name:20} {what}", highlight=False)


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.", exists=True, dir_okay=False)],
    label: Annotated[list[str], typer.Option(help="What to segment; may be given several times.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("segagent-output"),
    policy: PolicyOption = None,
    segmenter: SegmenterOption = None,
    max_clicks: ClicksOption = None,
) -> None:
    """Segment every instance of the labels in image files.

    Writes click-by-click pictures, masks, Label Studio predictions and a COCO file. A file that cannot be read is
    reported and the others go on; the exit code is then 2.
    """
    from .datasets.image_file import decode_image
    from .demo import Photo, write_results
    from .server.settings import load_settings

    images, label = list(dict.fromkeys(images)), list(dict.fromkeys(label))
    found, failed = [], 0
    try:
        if not all(name.strip() for name in label):
            raise InputError("a --label is empty; say what to segment")
        agent = _agent(policy, segmenter, max_clicks)
        limit = load_settings().max_pixels
        with _progress() as progress:
            bar = progress.add_task(f"{len(images)} images", total=len(images))
            for path in images:
                try:
                    photo = Photo(path, decode_image(path.read_bytes(), limit), {name: [] for name in label})
                    results = agent.segment_all_batch([(photo.image, name) for name in label])
                    found += [(photo, name, rollouts) for name, rollouts in zip(label, results, strict=True)]
                except (SegAgentError, OSError) as error:
                    failed += 1
                    errors.print(
                        f"[yellow]{escape(str(path))}:[/] {escape(str(error))}", highlight=False, soft_wrap=True
                    )
                progress.advance(bar)
        if found:
            write_results(out, found, agent.version)
    except (SegAgentError, OSError) as error:
        fail(error)
    table = Table("image", "label", "objects", "predicted IoU")
    # What the folders have in common says nothing, and would not fit.
    shared = os.path.commonpath([photo.path.absolute().parent for photo, *_ in found]) if found else ""
    for photo, name, rollouts in found:
        ratings = ", ".join(f"{r.predicted_iou:.2f}" for r in rollouts)
        table.add_row(escape(os.path.relpath(photo.path, shared)), escape(name), str(len(rollouts)), ratings)
    console.print(table)
    if found:
        _print_written(out)
    if failed:
        raise typer.Exit(2)


@app.command()
def config(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """List every setting: its environment variable, its value now, and what it is for. Secrets are not shown."""
    from .server.settings import Settings, load_settings

    try:
        settings = load_settings()
    except SegAgentError as error:
        fail(error)
    shown = settings.model_dump(mode="json")
    if as_json:
        typer.echo(json.dumps({Settings.variable(name): value for name, value in shown.items()}, indent=2))
        return
    table = Table("variable", "value", "what it is for", title="Settings (environment variables or .env)")
    for name, field in Settings.model_fields.items():
        value = shown[name]
        text = ", ".join(value) if isinstance(value, list) else str(value)
        table.add_row(Settings.variable(name), escape(text), field.description)
    console.print(table)


@app.command()
def doctor(
    project: Annotated[int | None, typer.Option(help="Look at this project only.")] = None,
    backend_url: Annotated[str | None, typer.Option(help="Where this backend answers. Default: this machine.")] = None,
) -> None:
    """Check everything between Label Studio and this backend, and say what to do about what is wrong.

    Run it with the environment of the server. The exit code is 1 when there is a problem.
    """
    from .server.doctor import examine
    from .server.settings import load_settings

    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "problem": "[bold red]problem[/]"}
    worst = False
    try:
        for check in examine(load_settings(), project, backend_url):
            console.print(
                f"{marks[check.status]:>8}  [b]{escape(check.name)}[/]: {escape(check.detail)}",
                highlight=False,
                soft_wrap=True,
            )
            if check.remedy and check.status != "ok":
                console.print(f"          -> {escape(check.remedy)}", highlight=False, soft_wrap=True)
            worst = worst or check.status == "problem"
    except SegAgentError as error:
        fail(error)
    if worst:
        raise typer.Exit(1)


@app.callback()
def _main(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what happens.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )


if __name__ == "__main__":
    app()
