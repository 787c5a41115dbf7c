"""How commands print: with rich in a terminal, as plain lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(highlight=False)
"""The standard output. It is looked up for each line, so it can be redirected later."""


class Advance(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, note: str = "") -> None:
        """Shows how many are done, and a short note beside them."""


@contextlib.contextmanager
def progress_bar(title: str, total: int) -> Iterator[Advance]:
    """Shows a progress bar inside the block and removes it afterwards. Prints nothing outside a terminal."""
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


def count_text(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun, as "1 shard" and "2,000 shards"; ``plural`` defaults to the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def size_text(size: int) -> str:
    """A number of bytes for people, in units of 1000."""
    amount = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if amount >= 100 or unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"
