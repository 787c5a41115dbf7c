"""The live view of a stress test in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from stress.chaos import Incident
from stress.checker import Tally
from stress.sampling import Progress, Sample

_BARS = "▁▂▃▄▅▆▇█"
_BARS_SHOWN, _FEWEST_BARS = 60, 5
_FRAME_LINES, _FRAME_COLUMNS = 2, 4
_GAP = 2
LONG_S = 0.5
"""Shorter waits are not shown."""


@dataclass(frozen=True)
class View:
    """The content of the terminal: the most important lines, then as many rows of measurements as there is room for.

    Attributes:
        title: title of the frame.
        lines: the most important lines.
        rows: name, value and recent values of each measurement.
    """

    title: str
    lines: Sequence[Text]
    rows: Sequence[tuple[str, str, Sequence[float]]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Renders as much as fits into the terminal."""
        width = options.max_width - _FRAME_COLUMNS
        room = console.size.height - _FRAME_LINES - sum(len(line.wrap(console, width)) for line in self.lines)
        rows = self.rows[: max(0, room)]
        bars = width - sum(max((len(row[column]) for row in rows), default=0) + _GAP for column in (0, 1))
        table = Table.grid(padding=(0, _GAP, 0, 0))
        table.add_column(justify="right", style="bold", no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        for name, text, values in rows:
            table.add_row(name, text, Text(sparkline(values, min(bars, _BARS_SHOWN)), style="cyan"))
        yield Panel(Group(*self.lines, table), title=self.title)


def view(
    title: str,
    left_s: float,
    samples: Sequence[Sample],
    tally: Tally,
    incidents: Sequence[Incident],
    progress: Progress,
    restarts: int,
) -> View:
    """Returns the current view. It runs in the thread of the live view, so it calls nothing that may hang."""
    rows: list[tuple[str, str, Sequence[float]]] = []
    if samples:
        now = samples[-1]
        rows = [
            ("batches/s", f"{now.batches_per_s:,.1f}", [sample.batches_per_s for sample in samples]),
            ("longest wait", f"{now.pause_s:.2f} s, ever {progress.longest_pause_s:.2f} s",
             [sample.pause_s for sample in samples]),
            ("trainer RSS", _size(now.trainer_rss), [sample.trainer_rss for sample in samples]),
            ("trainer PSS", _size(now.trainer_pss), [sample.trainer_pss for sample in samples]),
            ("workers PSS", f"{_size(now.workers_pss)} in {now.workers}", [sample.workers_pss for sample in samples]),
            ("shared", _size(now.shared), [sample.shared for sample in samples]),
            ("CPU", f"trainer {now.trainer_cpu:.2f}, workers {now.workers_cpu:.2f}",
             [sample.trainer_cpu + sample.workers_cpu for sample in samples]),
            ("descriptors", f"{now.descriptors}, threads {now.threads}", [sample.descriptors for sample in samples]),
        ]  # fmt: skip
    checked = Text(
        f"{tally.batches:,} batches, {tally.samples:,} samples checked: {tally.lost} lost, "
        f"{tally.duplicated} duplicated, {tally.corrupted} corrupted; {tally.bad:,} bad left out",
        style="red" if tally.faults else "green",
    )
    kinds = [incident.kind for incident in incidents]
    done = Text(
        f"{kinds.count('kill')} kills, {kinds.count('stall')} stalls, {restarts} workers replaced; {left_s:,.0f} s left"
    )
    awaited, waited_s = progress.awaited, progress.waited_s
    waits = Text(f"waiting {waited_s:.1f} s for {awaited}" if waited_s >= LONG_S else "", style="yellow")
    return View(title, [checked, done, waits], rows)


def sparkline(values: Sequence[float], width: int) -> str:
    """Draws the last ``width`` values as a line of bars from zero; "" where there is room for few."""
    shown = values[-width:] if width >= _FEWEST_BARS else []
    top = max(shown, default=0) or 1
    return "".join(_BARS[min(7, int(8 * value / top))] for value in shown)


def _size(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
