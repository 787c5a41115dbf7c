"""How commands print: rich in a terminal, plain lines everywhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(highlight=False)
"""The standard output. It looks at it again with each line, so redirecting it later works."""


class Advance(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, note: str = "") -> None:
        """Shows how many are done now, and a few words on how it goes."""


@contextlib.contextmanager
def progress_bar(title: str, total: int) -> Iterator[Advance]:
    """A bar that is there while work is under way and gone afterwards; nothing where there is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total, note="")

        def advance(done: int, note: str = "") -> None:
            progress.update(task, completed=done, note=note)

        yield advance


def size_text(size: int) -> str:
    """A number of bytes for people, in units of 1000."""
    amount = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if amount >= 100 or unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"
