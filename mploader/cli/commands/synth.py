"""``mploader synth DIR``: writes photograph-like JPEG data."""

from __future__ import annotations

import argparse
import time
from typing import Any

from mploader.cli.arguments import add_number


def add_parser(subparsers: Any) -> None:
    """Describes the command line."""
    parser = subparsers.add_parser(
        "synth",
        help="write photograph-like JPEG data",
        description="Writes pictures that cost a decoder what photographs cost it (about 110 kB, 500 x 400 pixels), "
        "with classes that can be learnt. Equal arguments give equal files.",
    )
    parser.add_argument("directory", metavar="DIR", help="where to write; made if it is missing")
    parser.add_argument(
        "--format", choices=("folder", "tfrecord", "tar"), default="folder", help="layout of the data (folder)"
    )
    add_number(parser, "--count", 1000, "pictures")
    add_number(parser, "--classes", 10, "classes")
    add_number(parser, "--shard-size", 256, "pictures in a shard")
    add_number(parser, "--seed", 0, "of all randomness", low=0)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the data."""
    from mploader.cli.console import console, progress_bar, size_text
    from mploader.cli.synthetic_data import synthesize

    started_s = time.monotonic()
    with progress_bar("pictures", args.count) as advance:
        report = synthesize(
            args.directory,
            format=args.format,
            count=args.count,
            classes=args.classes,
            shard_size=args.shard_size,
            seed=args.seed,
            progress=lambda done, count: advance(done),
        )
    console.print(
        f"{report.samples:,} pictures of {args.classes:,} classes, {size_text(report.bytes)} in {report.files:,} files "
        f"below {args.directory}, written in {time.monotonic() - started_s:.1f} s",
        soft_wrap=True,
        markup=False,
    )
    return 0
