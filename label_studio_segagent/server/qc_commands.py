"""`segagent qc`: quality control of submitted annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..defaults import SCORE_KEPT
from ..terminal import console, reporting

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Check submitted annotations: a score (expected IoU) and named issues for every region. Never edits an "
    "annotator's work.",
)
ProjectOption = Annotated[int, typer.Option(help="Label Studio project id.")]


@app.command()
def run(
    project: ProjectOption,
    add_control: Annotated[
        bool,
        typer.Option(
            "--add-control",
            help='Add <RectangleLabels name="qc_issue"> to the labelling config, so that issues show as boxes.',
        ),
    ] = False,
    score_column: Annotated[
        bool,
        typer.Option(
            "--use-score-column",
            help="Show scores in Label Studio's own score column, too. The project then pre-labels with QC's boxes.",
        ),
    ] = False,
) -> None:
    """Inspect all annotations and write scores and issues to Label Studio.

    Tasks get the columns [b]qc_score[/] and [b]qc_issues[/], the project the Data Manager tab [b]QC queue[/], worst
    first. What has not changed since the last run is not inspected again; an interrupted run goes on.
    """
    from .checking import check_project
    from .settings import load_settings

    with reporting() as tell:
        settings = load_settings()
        done = check_project(settings, project, tell, control=add_control, score_column=score_column)
    table = Table("task", "annotation", "score", "issues", title="Worst first")
    for finding in sorted(done.findings, key=lambda f: f.score)[:15]:
        issues = ", ".join(f"{i['name']} ({i['label']})" for i in finding.issues)
        table.add_row(str(finding.task), str(finding.annotation), f"{finding.score:.2f}", escape(issues))
    console.print(table)
    flagged = sum(bool(f.issues) for f in done.findings)
    console.print(f"{len(done.findings)} annotations, {done.fresh} inspected now, {flagged} with issues.")
    for task, reason in done.failures:
        console.print(f"[yellow]task {task}:[/] {escape(reason)}", highlight=False, soft_wrap=True)
    if flagged and not done.boxes:
        console.print("Add --add-control to see the places as boxes in the labelling page.")
    if not done.calibration.count:
        console.print("Scores are not yet calibrated on this project: [b]segagent qc calibrate[/].")
    url = f"{settings.label_studio_url.rstrip('/')}/projects/{project}/data?tab={done.view}"
    console.print(f"QC queue: {url}", highlight=False, soft_wrap=True)


@app.command()
def calibrate(
    project: ProjectOption,
    picture: Annotated[Path, typer.Option(help="Where to draw the calibration curve.")] = Path("calibration.png"),
) -> None:
    """Make scores mean the expected IoU on this project's images.

    Trusts ground-truth annotations (or, without any, those that scored well), corrupts copies of their masks, and
    learns what the scores of those are worth.
    """
    from PIL import Image as PilImage

    from ..quality.report import calibration_curve
    from .calibrating import calibrate_project
    from .settings import load_settings

    with reporting() as tell:
        calibration, cloud = calibrate_project(load_settings(), project, tell)
        PilImage.fromarray(calibration_curve(cloud, calibration)).save(picture)
    before, after = (abs(values - cloud[:, 1]).mean() for values in (cloud[:, 0], calibration(cloud[:, 0])))
    console.print(
        f"{calibration.count} masks: mean error of the expected IoU {before:.3f} -> {after:.3f}. Curve: {picture}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


@app.command()
def export(
    project: ProjectOption,
    out: Annotated[Path, typer.Option(help="Folder for the data set and the report.")],
    min_score: Annotated[float, typer.Option(help="Regions below are left out.", min=0, max=1)] = SCORE_KEPT,
    format: Annotated[str, typer.Option(help="coco, labelstudio or masks.")] = "coco",  # noqa: A002
) -> None:
    """Write the regions that are good enough as a data set, the reasons for the others, and a report in HTML."""
    from .checking import export_project
    from .settings import load_settings

    with reporting() as tell:
        kept, left = export_project(load_settings(), project, out, format, min_score, tell)
    console.print(f"{kept} regions kept, {left} left out. Written to {out.resolve()}:", highlight=False, soft_wrap=True)
    console.print(
        "  rejected.csv   which regions were left out, and why\n  report.html    scores, worst regions, annotators"
    )


@app.command()
def annotators(
    project: ProjectOption,
    out: Annotated[
        Path | None, typer.Option(help="Folder for consensus.json: the objects that most annotators of a picture drew.")
    ] = None,
    consensus: Annotated[
        str,
        typer.Option(help="What makes one mask of several: majority, or staple (needs the extra \\[staple])."),
    ] = "majority",
) -> None:
    """Show how well annotators agree with each other, and with ground-truth annotations (honeypots)."""
    from .annotators import compare_annotators
    from .settings import load_settings

    with reporting():
        scores, several, agreed = compare_annotators(load_settings(), project, out, consensus)
    table = Table("user id", "pictures", "shared", "agreement with others", "with ground truth", "accuracy")
    for name, row in sorted(scores.items(), key=lambda item: item[1]["agreement"] or 0.0):
        shown = [row["pictures"], row["shared"], row["agreement"], row["checked"], row["accuracy"]]
        cells = ["" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in shown]
        table.add_row(str(name), *cells)
    console.print(table)
    console.print(f"{several} pictures were drawn on by several people, who agree on {agreed} objects.")
    if out is not None:
        console.print(f"Written: {out.resolve() / 'consensus.json'}", highlight=False, soft_wrap=True)


@app.command()
def clear(project: ProjectOption) -> None:
    """Remove every trace of quality control from the project: columns, tab, boxes, control, findings."""
    from .checking import clear_project
    from .settings import load_settings

    with reporting():
        count = clear_project(load_settings(), project)
    console.print(f"Cleared {count} tasks.")
