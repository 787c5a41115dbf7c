"""The results of a stress test: its checks, a JSON file, and an HTML page with plots that loads nothing else."""

from __future__ import annotations

import dataclasses
import html
import json
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stress.chaos import Incident
from stress.sampling import Sample

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 860, 200, 64, 24, 12
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1")
_CLASSES = {True: "ok", False: "bad", None: "untested"}

REPORTS = ("report.json", "report.html")
FEWEST_VALUES = 8
"""Growth cannot be measured with fewer values."""


@dataclass(frozen=True)
class Check:
    """One check of the test.

    Attributes:
        name: the condition.
        ok: whether it holds; None: the test was too short to know.
        detail: the numbers.
    """

    name: str
    ok: bool | None
    detail: str

    @property
    def state(self) -> str:
        """The outcome in words."""
        return "not tested" if self.ok is None else "passed" if self.ok else "FAILED"


@dataclass(frozen=True)
class Report:
    """All results of a stress test.

    Attributes:
        options: as given on the command line.
        seconds: how long it took.
        checks: the checks.
        samples: the measurements, oldest first.
        incidents: the faults that were done to workers.
        statistics: statistics of the loader, as text.
        diagnosis: the loader's diagnosis, as text.
        stacks: stacks of the threads when the test was given up; "" if it was not.
    """

    options: dict[str, Any]
    seconds: float
    checks: Sequence[Check]
    samples: Sequence[Sample]
    incidents: Sequence[Incident]
    statistics: str
    diagnosis: str
    stacks: str = ""

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.ok is not False for check in self.checks)

    def write(self, folder: pathlib.Path) -> None:
        """Writes ``report.json`` and ``report.html``."""
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"ok": self.ok, **dataclasses.asdict(self)}
        (folder / "report.json").write_text(json.dumps(facts, indent=1))
        (folder / "report.html").write_text(_page(self))


def growth(values: Sequence[float]) -> float:
    """How much a quantity grew after the start: the median of the last quarter minus that of the second.

    Args:
        values: at least ``FEWEST_VALUES``.
    """
    quarter = len(values) // 4
    return _median(values[-quarter:]) - _median(values[quarter : 2 * quarter])


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _page(report: Report) -> str:
    charts = [
        _chart("Batches a second", report, {"batches/s": lambda sample: sample.batches_per_s}),
        _chart("Longest wait for a batch, in seconds", report, {"wait": lambda sample: sample.pause_s}),
        _chart("Memory, in MiB", report, {
            "trainer RSS": lambda sample: sample.trainer_rss / 2**20,
            "trainer PSS": lambda sample: sample.trainer_pss / 2**20,
            "workers PSS": lambda sample: sample.workers_pss / 2**20,
            "shared": lambda sample: sample.shared / 2**20,
        }),
        _chart("Processors in use", report, {
            "workers": lambda sample: sample.workers_cpu, "trainer": lambda sample: sample.trainer_cpu,
        }),
        _chart("Descriptors and threads of the trainer, workers alive", report, {
            "descriptors": lambda sample: sample.descriptors, "threads": lambda sample: sample.threads,
            "workers": lambda sample: sample.workers,
        }),
    ]  # fmt: skip
    checks = "".join(
        f'<tr><td class="{_CLASSES[check.ok]}">{check.state}</td>'
        f"<td>{html.escape(check.name)}</td><td>{html.escape(check.detail)}</td></tr>"
        for check in report.checks
    )
    options = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in report.options.items()
    )
    state = "ok" if report.ok else "bad"
    untested = sum(check.ok is None for check in report.checks)
    words = "all checks passed" if report.ok else "some checks FAILED"
    words += f", {untested} not tested" if untested else ""
    return _FORM.format(
        state=state, words=words, seconds=report.seconds, checks=checks, charts="".join(charts), options=options,
        stacks=f"<h2>Stacks</h2><pre>{html.escape(report.stacks)}</pre>" if report.stacks else "",
        statistics=html.escape(report.statistics), diagnosis=html.escape(report.diagnosis),
        kills=sum(incident.kind == "kill" for incident in report.incidents),
        stalls=sum(incident.kind == "stall" for incident in report.incidents),
    )  # fmt: skip


def _chart(title: str, report: Report, lines: dict[str, Callable[[Sample], float]]) -> str:
    """A line chart over time, with a mark for each incident."""
    end_s = max([report.seconds, *(sample.at_s for sample in report.samples)])
    series = {name: [(sample.at_s, value(sample)) for sample in report.samples] for name, value in lines.items()}
    top = _round_up(max((value for points in series.values() for _, value in points), default=1))

    def across(at_s: float) -> float:
        return LEFT + (WIDTH - LEFT - 10) * at_s / end_s

    def up(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top)

    parts = []
    for step in range(5):
        value = top * step / 4
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 10}" y1="{up(value):.1f}" y2="{up(value):.1f}"/>'
            f'<text x="{LEFT - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{value:,.4g}</text>'
        )
    for step in range(7):
        at_s = end_s * step / 6
        anchor = "end" if step == 6 else "middle"
        parts.append(f'<text x="{across(at_s):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{at_s:,.0f} s</text>')
    for incident in report.incidents:
        x = across(min(incident.at_s, end_s))
        parts.append(
            f'<line class="{incident.kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
            f"<title>{incident.kind} of {incident.pid} at {incident.at_s:.1f} s</title></line>"
        )
    legend = []
    for (name, points), colour in zip(series.items(), COLOURS, strict=False):
        path = " ".join(f"{across(at_s):.1f},{up(value):.1f}" for at_s, value in points)
        parts.append(f'<polyline points="{path}" stroke="{colour}"/>')
        legend.append(f'<span><i style="background:{colour}"></i>{html.escape(name)}</span>')
    return (
        f"<figure><figcaption>{html.escape(title)} {''.join(legend)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
        "</figure>"
    )


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 5 or 10 times a power of ten."""
    power = 1e-3
    while power * 10 < value:
        power *= 10
    return next((factor * power for factor in (1, 2, 4, 5, 10) if factor * power >= value), 1.0)


_FORM = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>mploader stress test</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 920px; margin: 2em auto; padding: 0 1em; color: #1a202c;
       background: #fff }}
h1 {{ font-size: 1.5em }} h2 {{ font-size: 1.1em; margin-top: 2em }}
table {{ border-collapse: collapse }} td, th {{ padding: .2em .8em .2em 0; text-align: left; vertical-align: top }}
td {{ white-space: pre-line }}
.ok {{ color: #2f855a }} .bad {{ color: #c53030; font-weight: bold }}
.untested {{ color: #b7791f }}
figure {{ margin: 1.4em 0 }} figcaption {{ font-weight: 600 }} figcaption span {{ font-weight: 400; margin-left: 1em }}
figcaption i {{ display: inline-block; width: .8em; height: .8em; margin-right: .3em }}
svg {{ width: 100%; height: auto }} svg text {{ font-size: 11px; fill: #4a5568 }}
svg polyline {{ fill: none; stroke-width: 1.6 }} .grid {{ stroke: #e2e8f0 }}
.kill {{ stroke: #e53e3e; stroke-width: .8; opacity: .5 }}
.stall {{ stroke: #d69e2e; stroke-width: 1.6; opacity: .7 }}
pre {{ background: #f7fafc; padding: .8em; white-space: pre-wrap; font-size: 12px }}
</style></head><body>
<h1>mploader stress test: <span class="{state}">{words}</span></h1>
<p>{seconds:,.0f} seconds; {kills} workers killed (red lines), {stalls} stopped (yellow lines).</p>
<h2>Checks</h2><table>{checks}</table>
{stacks}
<h2>Measurements</h2>{charts}
<h2>Diagnosis</h2><pre>{diagnosis}</pre>
<h2>Statistics of the loader</h2><pre>{statistics}</pre>
<h2>Options</h2><table>{options}</table>
</body></html>
"""
