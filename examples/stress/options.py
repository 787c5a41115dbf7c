"""The command line of the stress test."""

from __future__ import annotations

import argparse
import math
import pathlib
from collections.abc import Callable

from mploader import ArgumentError
from mploader._util.resources import parse_bytes

START_S = 20.0
"""How long a replacement may take to give its first batch, on a loaded machine, before a pause counts as too long."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="stress_test.py", description="Loads batches, kills and stops workers, checks every batch, and reports.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--minutes", type=_number(float, 0, above=True), default=5.0, help="duration of the test")
    add("--workers", type=_number(int, 1), default=None, help="worker processes; None: one per CPU")
    add("--batch-size", type=_number(int, 1), default=32, help="samples in a batch")
    add("--image-size", type=_number(int, 1), default=96, help="height and width of the pictures, in pixels")
    add("--source", default="synthetic", help='"synthetic", or a path of pictures or shards')
    add("--kill-rate", type=_number(float, 0), default=30.0, help="workers killed per minute")
    add("--stall-rate", type=_number(float, 0), default=2.0, help="workers stopped per minute")
    add("--bad-rate", type=_number(float, 0, 1), default=0.01, help="share of the samples that are bad")
    add("--speed", type=_number(float, 0), default=0.0, help="batches per second that the consumer takes; 0: no limit")
    add("--memory", type=_memory, default=None, help='memory for slots, such as "64MiB"; None: the loader chooses')
    add("--stall-timeout", type=_number(float, 0, above=True), default=5.0, help="stall_timeout of the loader, seconds")
    limit = f"seconds that the trainer may wait for one thing; None: stall timeout + {START_S:.0f}"
    add("--pause-limit", type=_number(float, 0, above=True), default=None, help=limit)
    add("--tensorflow", action="store_true", help="load through tf.data")
    add("--seed", type=_number(int, 0), default=0, help="seed of the order, the random numbers and the faults")
    add("--out", type=pathlib.Path, default=None, help="folder for the reports; None: a new temporary folder")
    add("--no-live", action="store_true", help="no live view")
    add("--quick", action="store_true", help="a test of 12 seconds with many faults")
    options = parser.parse_args(arguments)
    if options.quick:
        options.minutes, options.kill_rate, options.stall_rate, options.stall_timeout = 0.2, 60.0, 10.0, 2.0
        options.pause_limit = 12.0
        options.batch_size, options.image_size, options.bad_rate = 16, 32, 0.02
    return options


def _number(
    kind: type[int] | type[float], low: float, high: float = math.inf, *, above: bool = False
) -> Callable[[str], float]:
    """Returns a function that reads a number from ``low`` to ``high``; ``above``: it must exceed ``low``."""
    expected = f"a {'whole ' if kind is int else ''}number {'>' if above else '>='} {low:g}"
    if high < math.inf:
        expected = f"a number from {low:g} to {high:g}"

    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high or (above and number == low) or math.isinf(number):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return number

    return read


def _memory(text: str) -> str:
    """Checks a size in bytes."""
    try:
        parse_bytes(text, "memory")
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text
