"""``mploader show PATH``: draws a few batches with their labels, as the model gets them."""

from __future__ import annotations

import argparse
import os
from typing import Any

from mploader.cli.arguments import add_number


def add_parser(subparsers: Any) -> None:
    """Describes the command line."""
    parser = subparsers.add_parser(
        "show",
        help="draw a few batches with their labels in a PNG file",
        description="Draws a few batches as the model gets them, in a PNG file: a grid of pictures with their labels, "
        "with a line between batches.",
    )
    parser.add_argument("path", metavar="PATH", help="an image folder, a folder of shards, a shard or a glob")
    parser.add_argument("--augment", metavar="MODULE:TRANSFORM", help="(image, rng) -> image (default: Resize)")
    parser.add_argument(
        "--transform", metavar="MODULE:FUNCTION", help="(sample) or (sample, rng) -> element, instead of --augment"
    )
    parser.add_argument(
        "--output", type=_png, default="batches.png", metavar="FILE", help="PNG file to write (default: batches.png)"
    )
    parser.add_argument("--no-shuffle", action="store_true", help="batches in the order of the source")
    add_number(parser, "--batches", 2, "number of batches")
    add_number(parser, "--batch-size", 16, "pictures in a batch")
    add_number(parser, "--size", 224, "height and width of the pictures without --augment, in pixels")
    add_number(parser, "--seed", 0, "seed of the order and of all random numbers", low=0)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draws the grid and writes it."""
    from mploader.cli.console import console, count_text
    from mploader.cli.image_grid import columns_for, draw, save
    from mploader.cli.objects import load
    from mploader.cli.sample_images import LabelledPicture
    from mploader.errors import SampleError
    from mploader.images import Resize
    from mploader.loader.loader import Loader
    from mploader.sources import open_source
    from mploader.sources.protocols import class_names_of, where_is

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
        # Without the loader's advice, which is about an option that this command does not have.
        place = "" if error.index is None else f"sample {error.index} ({where_is(source, error.index)}): "
        raise SampleError(
            f"{place}{error.kind}: {error.reason}\n`mploader verify {args.path}` lists all bad samples."
        ) from error
    save(page, args.output)
    count = count_text(len(batches), "batch", "batches")
    console.print(f"{count}, {page.width} x {page.height} pixels, in {args.output}", soft_wrap=True, markup=False)
    return 0


def _png(name: str) -> str:
    if os.path.splitext(name)[1].lower() != ".png":
        raise argparse.ArgumentTypeError(f"expected a name that ends in .png, got {name!r}")
    return name
