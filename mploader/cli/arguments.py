"""Arguments that several commands have. An invalid value ends the command with the usage and exit status 2."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def add_number(
    parser: argparse.ArgumentParser, name: str, default: int | None, help: str, *, low: int = 1, metavar: str = "N"
) -> None:
    """Adds an option whose value is a whole number.

    Args:
        parser: the parser of the command.
        name: name of the option, with its dashes.
        default: its default, shown in the help unless it is None.
        help: what the number is.
        low: the smallest valid number.
        metavar: name of the number in the usage.
    """
    shown = help if default is None else f"{help} (default: {default:,})"
    parser.add_argument(name, type=_at_least(low), default=default, metavar=metavar, help=shown)


def _at_least(low: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if number < low:
            raise argparse.ArgumentTypeError(f"expected a whole number >= {low}, got {text!r}")
        return number

    return convert
