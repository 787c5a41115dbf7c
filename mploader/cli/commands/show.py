"""``mploader show PATH``: draws a few batches with their labels, as the model will see them."""

from __future__ import annotations

import argparse
import os
from typing import Any

from mploader.cli.arguments import add_number


def add_parser(subparsers: Any) -> None:
    """Describes the command line."""
    parser = subparsers.add_parser(
        "show",
        help="draw a few batches with their labels",
        description="Draws a few batches as the model will see them, in a PNG file: pictures in a grid, each with its "
        "label, a line between batches.",
    )
    parser.add_argument("path", metavar="PATH", help="an image folder, a folder of shards, a shard or a glob")
    parser.add_argument("--augment", metavar="MODULE:TRANSFORM", help="(image, rng) -> image; Resize if missing")
    parser.add_argument("--transform", metavar="MODULE:FUNCTION", help="(sample) or (sample, rng) -> element, instead")
    parser.add_argument(
        "--output", type=_png, default="batches.png", metavar="FILE", help="where to write, a .png (batches.png)"
    )
    parser.add_argument("--no-shuffle", action="store_true", help="in the order of the source")
    add_number(parser, "--batches", 2, "batches")
    add_number(parser, "--batch-size", 16, "pictures in a batch")
    add_number(parser, "--size", 224, "height and width without --augment, in pixels")
    add_number(parser, "--seed", 0, "of the order and of random numbers", low=0)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draws and writes."""
    from mploader.cli.console import console
    from mploader.cli.image_grid import columns_for, draw, save
    from mploader.cli.objects import load
    from mploader.cli.sample_images import LabelledPicture
    from mploader.engine.ipc.sample_report import ADVICE
    from mploader.errors import SampleError
    from mploader.images import Resize
    from mploader.loader.loader import Loader
    from mploader.sources import open_source
    from mploader.sources.protocols import class_names_of

    source = open_source(args.path)
    augment = load(args.augment) if args.augment else Resize(args.size, args.size)
    transform = load(args.transform) if args.transform else LabelledPicture(augment)
    try:
        with Loader(
            source, transform, batch_size=args.batch_size, shuffle=not args.no_shuffle, seed=args.seed, num_workers=1
        ) as loader:
            batches = [batch for _, batch in zip(range(args.batches), loader, strict=False)]
            page = draw(batches, class_names_of(source), columns_for(args.batch_size))
    except SampleError as error:
        told = str(error).partition(f"\n{ADVICE}")[0]  # of an option that this command does not have
        raise SampleError(f"{told}\n`mploader verify {args.path}` lists what is bad there.") from error
    save(page, args.output)
    count = "1 batch" if len(batches) == 1 else f"{len(batches)} batches"
    console.print(f"{count}, {page.width} x {page.height} pixels, in {args.output}", markup=False)
    return 0


def _png(name: str) -> str:
    if os.path.splitext(name)[1].lower() != ".png":
        raise argparse.ArgumentTypeError(f"{name!r} does not end in .png: a PNG file is written")
    return name
