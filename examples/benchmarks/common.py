"""Shared by the benchmarks: arguments, photographs, medians, tables, plots.

Every benchmark is a script that answers one question. It prints a table; ``--json`` prints the figures as JSON instead,
and ``--plot FILE.png`` draws them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

SYNTHESIZED = 600


@dataclass
class Row:
    """One line of a table.

    Attributes:
        name: what was measured.
        values: one figure per round, in the unit of the table.
        extra: further columns, by heading.
        note: why there is no figure, or a remark about it.
    """

    name: str
    values: list[float] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def median(self) -> float:
        """The median over the rounds; NaN without values."""
        return statistics.median(self.values) if self.values else float("nan")


def parser(doc: str | None, *, rounds: int, seconds: float | None = None) -> argparse.ArgumentParser:
    """Returns a parser with the options that all benchmarks have."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds, help="how many times each is measured, in turn")
    if seconds is not None:
        made.add_argument("--seconds", type=float, default=seconds, help="length of one measurement")
    made.add_argument("--json", action="store_true", help="print the figures as JSON")
    made.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the figures (needs matplotlib)")
    return made


def add_loader_arguments(made: argparse.ArgumentParser) -> None:
    """Adds the options for the size of the work: workers, batch size, data."""
    made.add_argument("--workers", type=int, default=2, help="worker processes, or threads for peers that use threads")
    made.add_argument("--batch-size", type=int, default=64, help="samples in a batch")
    made.add_argument("--data", type=Path, help="a folder of JPEG files in class folders (default: synthetic ones)")


def photographs(data: Path | None, count: int = SYNTHESIZED) -> Path:
    """Returns ``data``, or a folder with ``count`` synthetic pictures, which are made once and kept."""
    if data is not None:
        return data
    made = Path(tempfile.gettempdir()) / f"mploader-benchmark-{count}"
    if not made.exists():
        from mploader.cli.synthetic_data import synthesize

        synthesize(made, count=count)
    return made


class Photographs:
    """The files of a folder as samples ``(encoded bytes, label)``.

    The files are repeated so that an epoch is long: pauses between epochs are measured by epoch_boundary.py.
    """

    def __init__(self, folder: Path, samples: int) -> None:
        files = sorted(str(path) for path in folder.rglob("*.jp*g"))
        classes = sorted({os.path.dirname(file) for file in files})
        self.paths = [files[number % len(files)] for number in range(samples)]
        self.labels = [classes.index(os.path.dirname(path)) for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        with open(self.paths[index], "rb") as file:
            return file.read(), self.labels[index]


def report(args: argparse.Namespace, title: str, unit: str, rows: Sequence[Row], *, to: str | None = None,
           decimals: int = 1, notes: Iterable[str] = ()) -> None:  # fmt: skip
    """Prints the table of a benchmark, or its JSON, and draws the plot.

    Args:
        args: the parsed options.
        title: title of the table.
        unit: unit of the figures.
        rows: the measurements.
        to: name of the row that ratios refer to; None: no ratios.
        decimals: digits after the decimal point.
        notes: lines below the table.
    """
    about = [machine(), *notes]
    if args.json:
        print(json.dumps({"title": title, "unit": unit, "about": about,
                          "rows": [asdict(row) | {"median": row.median} for row in rows]}))  # fmt: skip
    else:
        console = Console(width=max(118, Console().width))
        console.print(_table(title, unit, rows, to, decimals))
        for line in about:
            console.print(line, highlight=False)
    if args.plot:
        _plot(args.plot, title, unit, rows)


def _table(title: str, unit: str, rows: Sequence[Row], to: str | None, decimals: int) -> Table:
    table = Table(title=title, title_justify="left")
    extras = list(dict.fromkeys(heading for row in rows for heading in row.extra))
    several = any(len(row.values) > 1 for row in rows)
    table.add_column("")
    table.add_column(f"{unit}, median" if several else unit, justify="right")
    if several:
        table.add_column("lowest - highest", justify="right")
    reference = next((row for row in rows if row.name == to and row.values), None)
    if reference is not None:
        table.add_column(f"of {to}", justify="right")
    for heading in extras:
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in rows:
        cells = [row.name, f"{row.median:,.{decimals}f}" if row.values else "-"]
        if several:
            cells.append(f"{min(row.values):,.{decimals}f} - {max(row.values):,.{decimals}f}" if row.values else "")
        if reference is not None:
            cells.append(f"{ratio(row, reference):.2f}" if row.values else "")
        table.add_row(*cells, *(row.extra.get(heading, "") for heading in extras), row.note)
    return table


def ratio(row: Row, reference: Row) -> float:
    """The median of the ratios of each round. A busy machine disturbs it less than the ratio of the medians."""
    return statistics.median(
        value / other for value, other in zip(row.values, reference.values, strict=False) if other
    )


def machine() -> str:
    """The machine and the versions that the figures depend on."""
    model = platform.machine()
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    versions = ", ".join(
        f"{name} {_version(name)}" for name in ("numpy", "tensorflow", "simplejpeg", "opencv-python-headless")
    )
    return f"{len(os.sched_getaffinity(0))} cores of {model}, Python {platform.python_version()}, {versions}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # or it is installed under another name, such as opencv-python
        return "not installed"


def _plot(path: Path, title: str, unit: str, rows: Sequence[Row]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row.values][::-1]
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.4 * len(shown)), layout="constrained")
    medians = np.array([row.median for row in shown])
    lows = medians - [min(row.values) for row in shown]
    highs = np.array([max(row.values) for row in shown]) - medians
    axes.barh([row.name for row in shown], medians, xerr=[lows, highs], color="#4878a8", ecolor="#303030", capsize=3)
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left", fontsize=10)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def timed(function: Any) -> tuple[float, Any]:
    """Calls ``function`` and returns the seconds it took, and its result."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result
