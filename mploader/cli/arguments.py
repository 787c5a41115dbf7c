"""Arguments that several commands have. A value that is refused ends with exit status 2 and the usage."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def add_number(
    parser: argparse.ArgumentParser, name: str, default: int | None, help: str, *, low: int = 1, metavar: str = "N"
) -> None:
    """Adds an option that is a whole number.

    Args:
        parser: of the command.
        name: with its dashes.
        default: shown behind the help unless it is None.
        help: what the number is.
        low: the least that is accepted.
        metavar: what stands for the number in the usage.
    """
    shown = help if default is None else f"{help} ({default:,})"
    parser.add_argument(name, type=_at_least(low), default=default, metavar=metavar, help=shown)


def _at_least(low: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if number < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}")
        return number

    return convert
