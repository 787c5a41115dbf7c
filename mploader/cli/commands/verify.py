"""``mploader verify PATH``: reads and decodes every sample and lists the bad ones."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from mploader.cli.arguments import add_number

if TYPE_CHECKING:
    from mploader.cli.verification import VerifyReport


def add_parser(subparsers: Any) -> None:
    """Describes the command line."""
    parser = subparsers.add_parser(
        "verify",
        help="read and decode every sample, and list the bad ones",
        description="Reads every sample, decodes the pictures in it, and lists the bad ones with their file and byte. "
        "Exit status: 0 if all are good, 1 otherwise.",
    )
    help = "an image folder, a folder of shards, a shard or a glob"
    parser.add_argument("path", nargs="+", metavar="PATH", help=help)
    parser.add_argument(
        "--transform", metavar="MODULE:FUNCTION", help="(sample) -> anything; raises on a bad one (default: decode)"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    add_number(parser, "--workers", None, "worker processes (default: one per CPU)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Checks the data and prints the findings."""
    from mploader.cli.console import console, progress_bar
    from mploader.cli.objects import load
    from mploader.cli.verification import VerifyReport, open_all, verify

    check = load(args.transform) if args.transform else None
    with console.status("reading shards"):
        sources, refused = open_all(args.path)
    with progress_bar("verifying", sum(map(len, sources))) as advance:
        found = verify(
            sources,
            check=check,
            num_workers=args.workers,
            progress=lambda done, bad: advance(done, f"{bad + len(refused):,} bad"),
        )
    report = VerifyReport(found.samples, (*refused, *found.findings), found.seconds)
    if args.json:
        print(json.dumps(_facts(report), indent=2))
    else:
        for line in _lines(report):
            console.print(line, soft_wrap=True, markup=False)
    return 0 if report.is_good else 1


def _facts(report: VerifyReport) -> dict[str, Any]:
    return {
        "samples": report.samples,
        "bad": len(report.findings),
        "seconds": round(report.seconds, 3),
        "summary": report.summary(),
        "findings": [dataclasses.asdict(finding) for finding in report.findings],
    }


def _lines(report: VerifyReport) -> list[str]:
    from mploader.cli.console import count_text
    from mploader.cli.verification import one_line

    rate = report.samples / max(report.seconds, 1e-9)
    checked = f"{count_text(report.samples, 'sample')} in {report.seconds:,.1f} s ({rate:,.0f}/s)"
    if report.is_good:
        return [f"{checked}: all good"]
    counts = [f"{count:>7,}  {one_line(text)}" for text, count in report.summary().items()]
    return [*map(str, report.findings), "", f"{checked}: {len(report.findings):,} bad", *counts]
