"""The live view of a stress test in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from stress.chaos import Chaos
from stress.sampling import Sample
from stress.workload import Checker

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60


def view(
    title: str, left_s: float, samples: Sequence[Sample], checker: Checker, chaos: Chaos, restarts: int, pause_s: float
) -> RenderableType:
    """Returns what the terminal shows now."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="bold")
    table.add_column()
    table.add_column(no_wrap=True)
    if samples:
        now = samples[-1]
        for name, text, values in (
            ("batches/s", f"{now.batches_per_s:,.1f}", [sample.batches_per_s for sample in samples]),
            ("longest wait", f"{now.pause_s:.2f} s, ever {pause_s:.2f} s", [sample.pause_s for sample in samples]),
            ("trainer RSS", _size(now.trainer_rss), [sample.trainer_rss for sample in samples]),
            ("trainer PSS", _size(now.trainer_pss), [sample.trainer_pss for sample in samples]),
            ("workers PSS", f"{_size(now.workers_pss)} in {now.workers}", [sample.workers_pss for sample in samples]),
            ("shared", _size(now.shared), [sample.shared for sample in samples]),
            ("CPU", f"trainer {now.trainer_cpu:.2f}, workers {now.workers_cpu:.2f}",
             [sample.trainer_cpu + sample.workers_cpu for sample in samples]),
            ("descriptors", f"{now.descriptors}, threads {now.threads}", [sample.descriptors for sample in samples]),
        ):  # fmt: skip
            table.add_row(name, text, Text(sparkline(values), style="cyan"))
    faults = checker.lost + checker.duplicated + checker.corrupted
    checked = Text(
        f"{checker.batches:,} batches, {checker.samples:,} samples checked: {checker.lost} lost, "
        f"{checker.duplicated} duplicated, {checker.corrupted} corrupted; {checker.bad:,} bad ones left out",
        style="red" if faults else "green",
    )
    done = Text(
        f"{chaos.count('kill')} kills, {chaos.count('stall')} stalls, {restarts} workers replaced; {left_s:,.0f} s left"
    )
    return Panel(Group(table, checked, done), title=title)


def sparkline(values: Sequence[float]) -> str:
    """Draws the last values as a line of bars, from zero up."""
    shown = values[-_WIDTH:]
    top = max(shown, default=0) or 1
    return "".join(_BARS[min(7, int(8 * value / top))] for value in shown)


def _size(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
