"""``mploader synth DIR``: writes JPEG data that looks like photographs to a decoder."""

from __future__ import annotations

import argparse
import time
from typing import Any

from mploader.cli.arguments import add_number


def add_parser(subparsers: Any) -> None:
    """Describes the command line."""
    parser = subparsers.add_parser(
        "synth",
        help="write synthetic pictures that cost as much to decode as photographs",
        description="Writes JPEG pictures that cost as much to decode as photographs (about 110 kB, 500 x 400 pixels), "
        "with classes that can be learnt. Equal arguments give equal files.",
    )
    parser.add_argument("directory", metavar="DIR", help="folder to write to; made if it does not exist")
    parser.add_argument(
        "--format", choices=("folder", "tfrecord", "tar"), default="folder", help="layout of the data (default: folder)"
    )
    add_number(parser, "--count", 1000, "number of pictures")
    add_number(parser, "--classes", 10, "number of classes")
    add_number(parser, "--shard-size", 256, "pictures in a shard")
    add_number(parser, "--seed", 0, "seed of all random numbers", low=0)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the data."""
    from mploader.cli.console import console, count_text, progress_bar, size_text
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
        f"{count_text(report.samples, 'picture')} of {count_text(args.classes, 'class', 'classes')}, "
        f"{size_text(report.bytes)} in {count_text(report.files, 'file')} in {args.directory}, "
        f"written in {time.monotonic() - started_s:.1f} s",
        soft_wrap=True,
        markup=False,
    )
    return 0
