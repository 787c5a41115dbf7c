"""``mploader index PATTERN``: reads shards once and saves where their samples start."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mploader.errors import ArgumentError

if TYPE_CHECKING:
    from mploader.sources import TarShards, TFRecordShards


def add_parser(subparsers: Any) -> None:
    """Describes the command line."""
    parser = subparsers.add_parser(
        "index",
        help="index TFRecord or tar shards ahead of their first use",
        description="Finds where each sample of the shards starts and saves that beside the shards, or in the user's "
        "cache folder where it cannot write there. A loader does the same when it first opens shards. Lists damaged "
        "shards. Exit status: 0 if all are good, 1 otherwise; the index is saved in both cases.",
    )
    parser.add_argument("pattern", nargs="+", metavar="PATTERN", help="a shard, a folder of shards, or a glob")
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="read the shards even if their index is current, and accept shards that were cut",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Indexes the shards and prints their size and which are damaged."""
    from mploader.cli.console import console, count_text, size_text
    from mploader.cli.verification import one_line
    from mploader.sources import TFRecordShards

    with console.status("reading shards"):
        source = _open_shards(args.pattern, args.rebuild)
        size = source.num_bytes
    kind, unit = ("TFRecord", "record") if isinstance(source, TFRecordShards) else ("tar", "sample")
    console.print(
        f"{count_text(len(source.paths), f'{kind} shard')}, {count_text(len(source), unit)}, "
        f"{count_text(size, 'byte')} ({size_text(size)})",
        soft_wrap=True,
        markup=False,
    )
    damaged = source.damaged_shards()
    for message in damaged.values():
        console.print(one_line(message), soft_wrap=True, markup=False)
    return 1 if damaged else 0


def _open_shards(patterns: Sequence[str], rebuild: bool) -> TFRecordShards | TarShards:
    from mploader.sources import TarShards, TFRecordShards, open_source

    # The shell expands globs, so there may be a hundred thousand patterns: one of each file ending shows their kind.
    examples = {os.path.splitext(pattern)[1]: pattern for pattern in patterns}.values()
    shards: list[TFRecordShards | TarShards] = []
    for example in examples:
        source = open_source(example, rebuild=rebuild)
        if not isinstance(source, (TFRecordShards, TarShards)):
            raise ArgumentError(f"{example} is an image folder: expected TFRecord or tar shards")
        shards.append(source)
    if len({type(source) for source in shards}) > 1:
        raise ArgumentError("TFRecord and tar shards are mixed: index one kind at a time")
    return shards[0] if len(patterns) == 1 else type(shards[0])(list(patterns), rebuild=rebuild)
