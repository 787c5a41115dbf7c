"""``mploader bench PATH``: measures how fast this machine loads some files, and recommends a number of workers."""

from __future__ import annotations

import argparse
from typing import Any

from mploader.cli.arguments import add_number


def add_parser(subparsers: Any) -> None:
    """Describes the command line."""
    parser = subparsers.add_parser(
        "bench",
        help="measure how fast files are loaded, and what limits it",
        description="Measures the decoder's limit (bare processes that only read and transform), then a loader with "
        "each number of workers. Reports the bottleneck and recommends a number of workers.",
    )
    parser.add_argument("path", metavar="PATH", help="an image folder, a folder of shards, a shard or a glob")
    parser.add_argument(
        "--transform", metavar="MODULE:FUNCTION", help="(sample) or (sample, rng) -> element (default: decode, resize)"
    )
    parser.add_argument(
        "--workers", metavar="N,N,...", help="numbers of workers to measure (default: 1, one per CPU, two per CPU)"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds for each measurement (default: 5)")
    add_number(parser, "--batch-size", 64, "samples in a batch")
    add_number(parser, "--size", 224, "height and width of the pictures without --transform, in pixels")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    from mploader.cli.benchmark import bench
    from mploader.cli.console import console
    from mploader.cli.objects import load
    from mploader.cli.sample_images import LabelledPicture
    from mploader.images import Resize
    from mploader.sources import open_source

    workers = None if args.workers is None else _numbers(args.workers)
    transform = load(args.transform) if args.transform else LabelledPicture(Resize(args.size, args.size))
    source = open_source(args.path)
    with console.status("measuring"):
        report = bench(source, transform, batch_size=args.batch_size, workers=workers, seconds=args.seconds)
    console.print(str(report), soft_wrap=True, markup=False)
    return 0


def _numbers(text: str) -> list[int]:
    from mploader.errors import ArgumentError

    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ArgumentError(f"--workers {text}: expected integers >= 1 with commas between them, such as 1,2,4")
    return [int(part) for part in parts]
