"""What all commands share: the consoles, how errors end a command, and a progress bar for long work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from .errors import SegAgentError

__all__ = ["console", "errors", "fail", "reporting", "show_failures"]

_FAILURES_SHOWN = 10

console = Console()
errors = Console(stderr=True)


def fail(error: SegAgentError | OSError) -> NoReturn:
    """End the command with an error's message and exit code 1."""
    errors.print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    raise typer.Exit(1) from error


def show_failures(failures: Sequence[tuple[str, str]], where: str) -> None:
    """Print what failed and why, not all of too many, and end the command with exit code 2 if there is anything.

    Args:
        failures: (name, reason) of each.
        where: The file that has all of them.

    Raises:
        typer.Exit: Something failed.
    """
    for name, reason in failures[:_FAILURES_SHOWN]:
        errors.print(f"[yellow]{escape(name)}:[/] {escape(reason)}", highlight=False, soft_wrap=True)
    if len(failures) > _FAILURES_SHOWN:
        errors.print(f"[yellow]… and {len(failures) - _FAILURES_SHOWN} more, all in {where}[/]")
    if failures:
        raise typer.Exit(2)


@contextmanager
def reporting() -> Iterator[Callable[[float, str], None]]:
    """A progress bar, told the share done and what is being done; errors made on purpose end the command."""
    try:
        with Progress(*Progress.get_default_columns(), console=console) as bar:
            line = bar.add_task("", total=1.0)
            yield lambda share, step: bar.update(line, completed=share, description=step)
    except (SegAgentError, OSError) as error:
        fail(error)
