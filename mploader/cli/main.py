"""The ``mploader`` command: reads the command line, runs a module of ``commands``, and turns errors into text.

Exit status: 0 done; 1 an error of mploader, printed as one message; 2 an invalid command line; 130 Ctrl-C; 143 SIGTERM;
129 SIGHUP.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TextIO

import mploader
from mploader.cli.signals import unhandled_raise
from mploader.errors import LoaderError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status.

    Args:
        arguments: the arguments after the program's name. None: those of this process.
    """
    try:
        return _run(_parser().parse_args(arguments))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(args: argparse.Namespace) -> int:
    try:
        importlib.import_module("mploader._util.platform_check")
    except ImportError as error:
        print(f"mploader {args.command}: {error}", file=sys.stderr)
        return 1
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # so that a log shows each line when it is printed
    # So that no temporary folder is left.
    unwind = unhandled_raise([signal.SIGTERM, signal.SIGHUP], lambda number: SystemExit(128 + number))
    with warnings.catch_warnings(), _log_in_lines(), unwind:
        warnings.showwarning = _show_warning
        try:
            return int(args.run(args))
        except LoaderError as error:
            # The worker's traceback leads through our own transform, so it does not help the user of a command.
            message = str(error).replace(error.traceback or "\0", "").rstrip()
            print(f"mploader {args.command}: {message}", file=sys.stderr)
            return 1


def _parser() -> argparse.ArgumentParser:
    from mploader.cli.commands import bench, demo, index, show, synth, verify

    parser = argparse.ArgumentParser("mploader", description="A multiprocessing data loader for TensorFlow.")
    parser.add_argument("--version", action="version", version=f"mploader {mploader.__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for command in (demo, synth, show, bench, verify, index):
        command.add_parser(subparsers)
    return parser


@contextlib.contextmanager
def _log_in_lines() -> Iterator[None]:
    """Prints what the package logs, a line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("mploader: warning: %(message)s"))
    log = logging.getLogger("mploader")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Prints a warning in one line, without the place in our code that raised it."""
    print(f"mploader: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
